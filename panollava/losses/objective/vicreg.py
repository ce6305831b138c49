"""VICReg of each pair of views by itself: the published form, and the default."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor

from panollava.losses.all_reduce import alone
from panollava.losses.protocol import Cost, GridCorrespondences, Pairing

VARIANCE_EPSILON = 1e-4

Weight = Annotated[float, Ge(0)]
"""How much a term counts."""

Total = Callable[[Tensor], Tensor]
"""Adds up a tensor over those who compute together."""


class VicregTerms(NamedTuple):
    """The three terms unweighted and ``total``, their weighted sum, in float32: ``(P,)``, or scalars of a batch."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor
    total: Tensor

    def sums(self, pairs: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """``total`` and the terms by name, detached, summed over pairs or, of a batch, for so many pairs."""
        terms = {name: getattr(self, name).detach().sum() * pairs for name in self._fields[:3]}
        return self.total.sum() * pairs, terms


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
    return _vicreg(a, b, mask, None, (invariance, variance, covariance))


def vicreg_batch(
    a: Tensor,
    b: Tensor,
    mask: Tensor | None = None,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    total: Total = alone,
) -> VicregTerms:
    """VICReg of all pairs as if they were one, in float32 also under autocast.

    Every matched token counts alike, whichever pair it is of; with one pair this is ``vicreg_pairs``.

    Args:
        a: as for ``vicreg_pairs``.
        b: likewise.
        mask: likewise.
        invariance: weight, as there.
        variance: likewise.
        covariance: likewise.
        total: adds sums over tokens up over processes that each hold a part of the batch; the result is then
            the same in all of them.

    Returns:
        Scalars.

    Raises:
        ValueError: the shapes differ, or the batch has fewer than two tokens.

    Source: as ``vicreg_pairs``, with the variance and covariance of the paper, which are those of a batch.
    """
    a, b = (side.flatten(0, 1)[None] if side.dim() == 3 else side for side in (a, b))
    mask = None if mask is None else mask.reshape(1, -1)
    return VicregTerms(*(term.squeeze(0) for term in _vicreg(a, b, mask, total, (invariance, variance, covariance))))


def _vicreg(
    a: Tensor, b: Tensor, mask: Tensor | None, total: Total | None, weights: tuple[float, float, float]
) -> VicregTerms:
    if a.dim() != 3 or a.shape != b.shape:
        raise ValueError(
            f"VICReg matches tokens one to one: it takes two tensors (pairs, tokens, width) of one shape, "
            f"not {tuple(a.shape)} and {tuple(b.shape)}."
        )
    mask = a.new_ones(a.shape[:2], dtype=torch.bool) if mask is None else mask
    with torch.autocast(a.device.type, enabled=False):
        is_token = mask[..., None].float()
        count = _all(is_token, total)[:, 0]
        if bool((count < 2).any()):
            raise ValueError(
                f"VICReg needs at least 2 matched tokens a {'batch' if total else 'pair'} to speak of their variance, "
                f"got {int(count.min())}: use a larger view, a larger crop.overlap, or a resampler that keeps more "
                "tokens."
            )
        a, b = a.float() * is_token, b.float() * is_token
        difference = _all((a - b).square(), total).sum(dim=1) / (count * a.shape[2])
        a, b = ((side - _all(side, total)[:, None] / count[:, None, None]) * is_token for side in (a, b))
        hinge = (_variance_hinge(a, count, total) + _variance_hinge(b, count, total)) / 2
        redundancy = (_squared_covariance(a, count, total) + _squared_covariance(b, count, total)) / 2
        cost = weights[0] * difference + weights[1] * hinge + weights[2] * redundancy
    return VicregTerms(difference, hinge, redundancy, cost)


def _all(tokens: Tensor, total: Total | None) -> Tensor:
    """``(P, L, D)`` -> ``(P, D)``: the sum over tokens, those of other processes too if there is a total."""
    own = tokens.sum(dim=1)
    return own if total is None else total(own)


def _variance_hinge(centred: Tensor, count: Tensor, total: Total | None) -> Tensor:
    """``(P, L, D)`` -> ``(P,)``: how far standard deviations fall short of 1, averaged over dimensions."""
    deviation = (_all(centred.square(), total) / count[:, None] + VARIANCE_EPSILON).sqrt()
    return (1 - deviation).relu().mean(dim=-1)


def _squared_covariance(centred: Tensor, count: Tensor, total: Total | None) -> Tensor:
    """``(P, L, D)`` -> ``(P,)``: sum of squared off-diagonal covariances over D.

    XᵀX and XXᵀ have the same Frobenius norm, so the smaller of the two is formed where one process has all
    tokens: pairs have some hundred of them of a width near a thousand.
    """
    length, width = centred.shape[1:]
    if total is None:
        product = centred @ centred.mT if length < width else centred.mT @ centred
    else:
        product = total(centred.mT @ centred)
    everything = product.square().sum(dim=(1, 2))
    diagonal = _all(centred.square(), total).square().sum(dim=-1)
    return (everything - diagonal) / ((count - 1) ** 2 * width)


class VicregObjective:
    """Variance and covariance are those of the places that one pair of views has in common.

    Args:
        pairing: see ``GridCorrespondences``.
        invariance: weight of the difference of matched places.
        variance: weight of the hinge on each dimension's deviation.
        covariance: weight of the covariances of dimensions.
    """

    coupled = ""

    def __init__(
        self,
        *,
        pairing: Pairing = "columns",
        invariance: Weight = 25.0,
        variance: Weight = 25.0,
        covariance: Weight = 1.0,
    ) -> None:
        self.places = GridCorrespondences(pairing)
        self.loss = partial(vicreg_pairs, invariance=invariance, variance=variance, covariance=covariance)
        self.remedy = f"raise stage.vision.loss.variance (it is {variance:g})"

    def __call__(self, a: Tensor, b: Tensor, mask: Tensor, *, across_ranks: bool) -> Cost:
        """Summed over pairs."""
        return Cost(*self.loss(a, b, mask).sums())
