"""Sizes of the pieces that large tensors are worked through in."""

from __future__ import annotations

import torch

ELEMENTS = {"cpu": 2**17, "other": 2**26}
"""Elements of a piece: so few that a processor's caches hold several, so many that an accelerator is busy."""


def blocks(rows: int, row_elements: int, device: torch.device) -> list[slice]:
    """Slices that cover so many rows, each of as many rows as a piece has room for, one at least."""
    size = max(1, ELEMENTS.get(device.type, ELEMENTS["other"]) // row_elements)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
