"""The batch that data, stages and models exchange, and the shape legend of all docstrings.

Shape legend:
    B   batch (panoramas, or P where samples share them, with B' rows of text)
    V   views of one panorama, the global view first where there is one
    h,w pixels of a view
    C   columns of a camera row (see ``panollava.crop.cameras``)
    N   patches of a view that the vision encoder emits
    Q   tokens of a view after the resampler
    T   text tokens, image placeholders included
    S   fused sequence that the language model sees
    Dv, Dr, Dl   widths of vision encoder, resampler output and language model
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100  # label of a token that takes no part in the language loss (the value PyTorch and transformers use)


@dataclass
class Batch:
    """Samples collated for a stage or for generation.

    Samples may share what is computed of their panoramas. Then there are P panoramas, B' rows of text, and
    ``picture_index`` says which panorama a row is about. For training, a row has the texts of several samples, see
    ``panollava.model.shared_prefix``; for generation it is a sample.
    """

    sample_ids: list[str]  # name of each sample, for messages and predictions
    pixel_values: Tensor | None  # ``(B, V, 3, h, w)`` uint8, not normalised; None with ``vision_features``
    cameras: Tensor  # ``(B, V, C)`` float32
    view_mask: Tensor  # ``(B, V)`` bool, False where a view only pads the batch
    input_ids: Tensor | None = None  # ``(B, T)`` int64, image placeholders expanded; None for stages without text
    attention_mask: Tensor | None = None  # ``(B, T)`` int64, 1 on real tokens
    labels: Tensor | None = None  # ``(B, T)`` int64, ``IGNORE_INDEX`` where a token is not a target
    vision_features: Tensor | None = None  # ``(B, V, N, Dv)`` of the frozen encoder, in place of ``pixel_values``
    picture_index: Tensor | None = None  # ``(B',)`` int64, row of the panorama; None: each text has its own
    position_ids: Tensor | None = None  # ``(B', T)`` int64, only with ``segments``
    segments: Tensor | None = None  # ``(B', T)`` int64, parts of a row with several texts; None: a text a row
    boxes: Tensor | None = None  # ``(B, M, 5)`` float32 degrees, as in ``crop.boxes``; None for stages without boxes
    box_classes: Tensor | None = None  # ``(B, M)`` int64, -1 where a row only fills the batch
    cells: Tensor | None = None  # ``(B, V, H'k, W'k)`` int16, classes of parts of tokens, see ``data.places``

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments of ``forward`` and ``generate`` of the composite: all tensors but the targets."""
        others = ("sample_ids", "labels", "boxes", "box_classes", "cells")
        names = (field.name for field in fields(self) if field.name not in others)
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; the DataLoader calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def first(self, count: int) -> Batch:
        """The first ``count`` samples, or all where there are fewer."""
        return replace(self._map(lambda tensor: tensor[:count]), sample_ids=self.sample_ids[:count])

    def _map(self, function) -> Batch:  # type: ignore[no-untyped-def]
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {key: function(value) if isinstance(value, Tensor) else value for key, value in values.items()}
        return Batch(**moved)


PREFIX, PAD = 0, -1
"""Segments of a packed sequence; its texts are 1, 2, …"""


@dataclass(frozen=True)
class Packed:
    """Texts about the same panorama behind their common prefix, as CPU lists of one sequence."""

    ids: list[int]
    labels: list[int]
    positions: list[int]  # of each token in its own text
    segments: list[int]  # PREFIX, then the number of the text


def pack(texts: Sequence[tuple[Sequence[int], Sequence[int]]], placeholder: int) -> list[Packed]:
    """Packs texts, as token ids and labels, about one panorama; those whose prefixes differ are packed apart.

    The prefix ends before the panorama's last token, which is the first of each text: its output predicts the token
    that follows, and texts may differ there.
    """
    groups: dict[tuple[int, ...], list[tuple[Sequence[int], Sequence[int]]]] = {}
    for ids, labels in texts:
        groups.setdefault(tuple(ids[: image_end(ids, placeholder) - 1]), []).append((ids, labels))
    packed = []
    for prefix, members in groups.items():
        start = len(prefix)
        one = Packed(list(prefix), list(members[0][1][:start]), list(range(start)), [PREFIX] * start)
        for number, (ids, labels) in enumerate(members, start=1):
            one.ids.extend(ids[start:])
            one.labels.extend(labels[start:])
            one.positions.extend(range(start, len(ids)))
            one.segments.extend([number] * (len(ids) - start))
        packed.append(one)
    return packed


def image_end(ids: Sequence[int], placeholder: int) -> int:
    """Place after the last image placeholder; 1 where there is none, so that a text keeps all its tokens."""
    return max((place for place, token in enumerate(ids, start=1) if token == placeholder), default=1)
