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
    a: Tensor,
    b: Tensor,
    mask: Tensor | None = None,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> VicregTerms:
    """VICReg of each pair by itself, in float32 also under autocast.

    Args:
        a: ``(P, L, D)``, tokens of the first view of each pair.
        b: ``(P, L, D)``, the tokens they are matched with.
        mask: ``(P, L)`` bool, False where a pair has fewer tokens than ``L``; None where it has not.
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
    mask = a.new_ones(a.shape[:2], dtype=torch.bool) if mask is None else mask
    count = mask.sum(dim=1)
    if bool((count < 2).any()):
        raise ValueError(
            f"VICReg needs at least 2 matched tokens a pair to speak of their variance, got {int(count.min())}: "
            "use a larger view, a larger crop.overlap, or a resampler that keeps more tokens."
        )
    with torch.autocast(a.device.type, enabled=False):
        is_token, count = mask[..., None].float(), count.float()
        a, b = a.float() * is_token, b.float() * is_token
        difference = (a - b).square().sum(dim=(1, 2)) / (count * a.shape[2])
        a, b = (_centred(side, is_token, count) for side in (a, b))
        hinge = (_variance_hinge(a, count) + _variance_hinge(b, count)) / 2
        redundancy = (_squared_covariance(a, count) + _squared_covariance(b, count)) / 2
        total = invariance * difference + variance * hinge + covariance * redundancy
    return VicregTerms(difference, hinge, redundancy, total)


def _centred(tokens: Tensor, is_token: Tensor, count: Tensor) -> Tensor:
    """Tokens less their mean; what is no token stays 0 and adds to no sum."""
    return (tokens - tokens.sum(dim=1, keepdim=True) / count[:, None, None]) * is_token


def _variance_hinge(centred: Tensor, count: Tensor) -> Tensor:
    """``(P, L, D)`` -> ``(P,)``: how far standard deviations fall short of 1, averaged over dimensions."""
    deviation = (centred.square().sum(dim=1) / count[:, None] + VARIANCE_EPSILON).sqrt()
    return (1 - deviation).relu().mean(dim=-1)


def _squared_covariance(centred: Tensor, count: Tensor) -> Tensor:
    """``(P, L, D)`` -> ``(P,)``: sum of squared off-diagonal covariances over D.

    XᵀX and XXᵀ have the same Frobenius norm, so the smaller of the two is formed: pairs have some hundred
    tokens of a width near a thousand.
    """
    length, width = centred.shape[1:]
    product = centred @ centred.mT if length < width else centred.mT @ centred
    everything = product.square().sum(dim=(1, 2))
    diagonal = centred.square().sum(dim=1).square().sum(dim=-1)
    return (everything - diagonal) / ((count - 1) ** 2 * width)
