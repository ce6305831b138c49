"""Features of two views, small enough to look at."""

from __future__ import annotations

import torch

SHAPE = (2, 3, 4)


def features(value: int) -> torch.Tensor:
    """Features that tell whose they are."""
    return torch.full(SHAPE, float(value), dtype=torch.bfloat16)
