"""The batch that data, stages and models exchange, and the shape legend of all docstrings.

Shape legend:
    B   batch (panoramas)
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

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100  # label of a token that takes no part in the language loss (the value PyTorch and transformers use)


@dataclass
class Batch:
    """Samples collated for a stage or for generation."""

    sample_ids: list[str]  # name of each sample, for messages and predictions
    pixel_values: Tensor | None  # ``(B, V, 3, h, w)`` uint8, not normalised; None with ``vision_features``
    cameras: Tensor  # ``(B, V, C)`` float32
    view_mask: Tensor  # ``(B, V)`` bool, False where a view only pads the batch
    input_ids: Tensor | None = None  # ``(B, T)`` int64, image placeholders expanded; None for stages without text
    attention_mask: Tensor | None = None  # ``(B, T)`` int64, 1 on real tokens
    labels: Tensor | None = None  # ``(B, T)`` int64, ``IGNORE_INDEX`` where a token is not a target
    vision_features: Tensor | None = None  # ``(B, V, N, Dv)`` of the frozen encoder, in place of ``pixel_values``

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments of ``forward`` and ``generate`` of the composite: all tensors but the labels."""
        names = (field.name for field in fields(self) if field.name not in ("sample_ids", "labels"))
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
