"""Samples to a batch: padded views and text, masks and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from panollava.batch import IGNORE_INDEX, Batch
from panollava.data.dataset import Sample
from panollava.store.making import PartBatch


@dataclass(frozen=True)
class Collate:
    """Makes a `Batch` of samples, or a `PartBatch` where a feature store is used; all of them have text or none has.

    Attributes:
        pad_id: token that fills short texts.
        padding_side: `right` for training; `left` for generation, which needs no labels.
    """

    pad_id: int = 0
    padding_side: Literal["right", "left"] = "right"

    def __call__(self, samples: Sequence[Sample]) -> Batch | PartBatch:
        batch = self._batch(samples)
        views = [sample.views for sample in samples if sample.views is not None]
        pictures = [sample.picture for sample in samples if sample.picture is not None]
        if not pictures:
            batch.pixel_values = pad_sequence(views, batch_first=True)
            return batch
        features = [sample.features for sample in samples if sample.features is not None]
        return PartBatch(
            batch=batch,
            pictures=pictures,
            known=[sample.features is not None for sample in samples],
            features=torch.stack(features) if features else None,
            views=torch.stack(views) if views else None,
        )

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        counts = torch.tensor([len(sample.cameras) for sample in samples])
        batch = Batch(
            sample_ids=[sample.sample_id for sample in samples],
            pixel_values=None,
            cameras=pad_sequence([sample.cameras for sample in samples], batch_first=True),
            view_mask=torch.arange(int(counts.max()))[None] < counts[:, None],
        )
        if samples[0].text is None:
            return batch
        texts = [sample.text for sample in samples if sample.text is not None]
        batch.input_ids = self._padded([torch.tensor(text.ids) for text in texts], self.pad_id)
        batch.attention_mask = self._padded([torch.ones(len(text.ids), dtype=torch.long) for text in texts], 0)
        if self.padding_side == "right":
            labels = [torch.tensor(text.ids).masked_fill(~torch.tensor(text.is_target), IGNORE_INDEX) for text in texts]
            batch.labels = self._padded(labels, IGNORE_INDEX)
        return batch

    def _padded(self, rows: list[Tensor], value: int) -> Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=self.padding_side)
