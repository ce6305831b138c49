"""VICReg on pairs of views: matched tokens agree, every dimension varies, no two dimensions repeat."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

VARIANCE_EPSILON = 1e-4


class VicregTerms(NamedTuple):
    """Terms of each pair, ``(P,)`` float32; the three terms unweighted, ``total`` their weighted sum."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor
    total: Tensor


def vicreg_pairs(
    a: Tensor, b: Tensor, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> VicregTerms:
    """VICReg of each pair by itself, in float32 also under autocast.

    Args:
        a: ``(P, L, D)``, tokens of the first view of each pair.
        b: ``(P, L, D)``, the tokens they are matched with.
        invariance: weight of the mean squared difference.
        variance: weight of the hinge that keeps each dimension's standard deviation at 1 or more.
        covariance: weight of the squared covariances between dimensions.

    Raises:
        ValueError: the shapes differ, or a pair has fewer than two tokens.

    Source: Bardes et al. 2022, VICReg, section 4.1, with variance and covariance over the tokens of one
        pair, population variance, and the covariance halved like the variance.
    """
    if a.dim() != 3 or a.shape != b.shape:
        raise ValueError(
            f"VICReg matches tokens one to one: it takes two tensors (pairs, tokens, width) of one shape, "
            f"not {tuple(a.shape)} and {tuple(b.shape)}."
        )
    if a.shape[1] < 2:
        raise ValueError(
            f"VICReg needs at least 2 matched tokens a pair to speak of their variance, got {a.shape[1]}: "
            "use a larger view, a larger crop.overlap, or a resampler that keeps more tokens."
        )
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.float(), b.float()
        difference = (a - b).square().mean(dim=(1, 2))
        a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
        hinge = (_variance_hinge(a) + _variance_hinge(b)) / 2
        redundancy = (_squared_covariance(a) + _squared_covariance(b)) / 2
        total = invariance * difference + variance * hinge + covariance * redundancy
    return VicregTerms(difference, hinge, redundancy, total)


def column_pairs(tokens: Tensor, grid: tuple[int, int], pairs: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Match the last columns of each view with the first columns of its right neighbour.

    Args:
        tokens: ``(B, V, Q, D)`` that keep a grid.
        grid: their ``(H', W')``.
        pairs: ``(P, 3)`` rows (sample, view, its right neighbour).
        columns: how many columns two neighbours share, 1 to ``W'``.

    Returns:
        ``(P, H' * columns, D)`` of the views and of their neighbours, in the same order.
    """
    height, width = grid
    if tokens.shape[2] != height * width:
        raise ValueError(f"{tokens.shape[2]} tokens a view do not fill a grid of {height} x {width}.")
    if not 1 <= columns <= width:
        raise ValueError(f"columns={columns} must lie between 1 and the grid's width, {width}.")
    images = tokens.unflatten(2, (height, width))
    sample, view, neighbour = pairs.to(tokens.device).unbind(-1)
    right = images[:, :, :, width - columns :][sample, view]
    left = images[:, :, :, :columns][sample, neighbour]
    return right.flatten(1, 2), left.flatten(1, 2)


def _variance_hinge(centred: Tensor) -> Tensor:
    """``(P, L, D)`` -> ``(P,)``: how far standard deviations fall short of 1, averaged over dimensions."""
    deviation = (centred.square().mean(dim=1) + VARIANCE_EPSILON).sqrt()
    return (1 - deviation).relu().mean(dim=-1)


def _squared_covariance(centred: Tensor) -> Tensor:
    """``(P, L, D)`` -> ``(P,)``: sum of squared off-diagonal covariances over D.

    XᵀX and XXᵀ have the same Frobenius norm, so the smaller of the two is formed: pairs have some hundred
    tokens of a width near a thousand.
    """
    length, width = centred.shape[1:]
    product = centred @ centred.mT if length < width else centred.mT @ centred
    everything = product.square().sum(dim=(1, 2))
    diagonal = centred.square().sum(dim=1).square().sum(dim=-1)
    return (everything - diagonal) / ((length - 1) ** 2 * width)
