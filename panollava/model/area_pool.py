"""Means of a grid of patches over the rectangles of a coarser grid."""

from __future__ import annotations

import torch
from torch import Tensor


def area_pool(patches: Tensor, grid: tuple[int, int], pooled: tuple[int, int]) -> Tensor:
    """Mean over each rectangle, in which a patch that lies across an edge counts by its part inside.

    A rectangle's mean is then a mean around its centre, which is the direction a token is taken to look in; pooling
    that gives every patch touched the same weight (PyTorch's adaptive average pooling) shifts it by up to a third of a
    patch from 16 to 12. Where the sides divide, both are the same. It is a product with a matrix, so that its gradient
    adds up in one order on a GPU too. Where there are more rectangles than patches, patches are repeated.

    Args:
        patches: ``(..., H * W, D)``, row by row.
        grid: ``(H, W)``.
        pooled: ``(H', W')``.

    Returns:
        ``(..., H' * W', D)``.
    """
    rows, columns = (_shares(*sides, like=patches) for sides in zip(grid, pooled, strict=True))
    return torch.kron(rows, columns) @ patches


def _shares(patches: int, pooled: int, like: Tensor) -> Tensor:
    """``(pooled, patches)``: of each interval's length, the share that lies in each patch.

    Lengths are counted in ``1 / (patches * pooled)`` of the whole, so they are whole numbers. Made at each call, as a
    buffer would not survive construction on the meta device.
    """
    edges = torch.arange(max(patches, pooled) + 1, device=like.device)
    starts, ends = edges[:pooled, None] * patches, edges[1 : pooled + 1, None] * patches
    left, right = edges[:patches] * pooled, edges[1 : patches + 1] * pooled
    inside = (torch.minimum(ends, right) - torch.maximum(starts, left)).clamp(min=0)
    return inside.to(like.dtype) / patches
