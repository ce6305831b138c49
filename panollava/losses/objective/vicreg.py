"""VICReg of each pair of views by itself: the published form, and the default."""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor

from panollava.losses.all_reduce import all_reduce_sum
from panollava.losses.protocol import Correspondences, Cost, GridCorrespondences, Pairing

VARIANCE_EPSILON = 1e-4
Weight = Annotated[float, Ge(0)]
_Reduce = Callable[[Tensor], Tensor]  # sums a tensor over the processes that share a batch


class VicregTerms(NamedTuple):
    """The unweighted terms and ``total``, their weighted sum, in float32: ``(P,)``, or scalars of a batch."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor
    total: Tensor

    def cost(self, pairs: int = 1) -> Cost:
        """The sum over pairs, or ``pairs`` times the value of a batch."""
        terms = {name: getattr(self, name).detach().sum() * pairs for name in self._fields[:3]}
        return Cost(self.total.sum() * pairs, terms)


def vicreg_pairs(a: Tensor, b: Tensor, mask: Tensor | None = None, **weights: float) -> VicregTerms:
    """VICReg of each pair by itself, in float32 also under autocast; ValueError for one of fewer than two tokens.

    Args:
        a: ``(P, L, D)``, tokens of the first view of each pair; ``b`` those they are matched with.
        mask: ``(P, L)`` bool, False where a pair has fewer tokens than ``L``; None if all are present.
        **weights: ``invariance`` (25) of the mean squared difference, ``variance`` (25) of the hinge that keeps the
            standard deviation of each dimension at 1 or more, ``covariance`` (1) of the squared covariances between
            dimensions.

    Source: Bardes et al. 2022, VICReg, section 4.1, with variance and covariance over the tokens of one
        pair, population variance, and the covariance halved like the variance.
    """
    return _vicreg(a, b, mask, None, **weights)


def vicreg_batch(
    a: Tensor, b: Tensor, mask: Tensor | None = None, *, across_ranks: bool = False, **weights: float
) -> VicregTerms:
    """VICReg of all pairs as if they were one, as scalars, in float32 also under autocast.

    Every matched token has the same weight, in every pair. With one pair this is ``vicreg_pairs``, which also has
    the arguments and errors. With ``across_ranks`` the batch is that of all processes, and so is the result.

    Source: as ``vicreg_pairs``, with the variance and covariance of the paper, which are those of a batch.
    """
    a, b = (side.flatten(0, 1)[None] if side.dim() == 3 else side for side in (a, b))
    mask = None if mask is None else mask.reshape(1, -1)
    reduce = all_reduce_sum if across_ranks else lambda tensor: tensor
    return VicregTerms(*(term.squeeze(0) for term in _vicreg(a, b, mask, reduce, **weights)))


def _vicreg(
    a: Tensor,
    b: Tensor,
    mask: Tensor | None,
    reduce: _Reduce | None,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> VicregTerms:
    """VICReg of each pair. With ``reduce`` there is one pair in each process, and together they are a batch."""
    mask = a.new_ones(a.shape[:2], dtype=torch.bool) if mask is None else mask
    with torch.autocast(a.device.type, enabled=False):
        is_token = mask[..., None].float()
        count = _token_sum(is_token, reduce)[:, 0]  # (P,)
        if bool((count < 2).any()):
            raise ValueError(
                f"VICReg needs at least 2 matched tokens a {'batch' if reduce else 'pair'} to compute their variance, "
                f"got {int(count.min())}: use a larger view, a larger crop.overlap, or a resampler that keeps more "
                "tokens."
            )
        a, b = a.float() * is_token, b.float() * is_token
        difference = _token_sum((a - b).square(), reduce).sum(dim=1) / (count * a.shape[2])
        # Centred; padding stays 0, so that it adds nothing to any sum below.
        a, b = ((side - _token_sum(side, reduce)[:, None] / count[:, None, None]) * is_token for side in (a, b))
        hinge = (_variance_hinge(a, count, reduce) + _variance_hinge(b, count, reduce)) / 2
        redundancy = (_squared_covariance(a, count, reduce) + _squared_covariance(b, count, reduce)) / 2
        total = invariance * difference + variance * hinge + covariance * redundancy
    return VicregTerms(difference, hinge, redundancy, total)


def _token_sum(tokens: Tensor, reduce: _Reduce | None) -> Tensor:
    own = tokens.sum(dim=1)
    return own if reduce is None else reduce(own)


def _variance_hinge(centred: Tensor, count: Tensor, reduce: _Reduce | None) -> Tensor:
    """``(P, L, D)`` -> ``(P,)``: how far standard deviations fall short of 1, averaged over dimensions."""
    deviation = (_token_sum(centred.square(), reduce) / count[:, None] + VARIANCE_EPSILON).sqrt()
    return (1 - deviation).relu().mean(dim=-1)


def _squared_covariance(centred: Tensor, count: Tensor, reduce: _Reduce | None) -> Tensor:
    """``(P, L, D)`` -> ``(P,)``: sum of squared off-diagonal covariances over D.

    XᵀX and XXᵀ have the same Frobenius norm, so the smaller of the two is formed where one process has all
    tokens: a pair has a few hundred, of a width near a thousand.
    """
    length, width = centred.shape[1:]
    if reduce is None:
        product = centred @ centred.mT if length < width else centred.mT @ centred
    else:
        product = reduce(centred.mT @ centred)
    everything = product.square().sum(dim=(1, 2))
    diagonal = _token_sum(centred.square(), reduce).square().sum(dim=-1)
    return (everything - diagonal) / ((count - 1) ** 2 * width)


class VicregObjective:
    """Variance and covariance are those of the correspondences of one pair of views; weights as ``vicreg_pairs``."""

    coupled = ""

    def __init__(
        self,
        *,
        pairing: Pairing = "columns",
        invariance: Weight = 25.0,
        variance: Weight = 25.0,
        covariance: Weight = 1.0,
    ) -> None:
        self.correspondences: Correspondences = GridCorrespondences(pairing)
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        self.remedy = f"raise stage.vision.loss.variance (it is {variance:g})"

    def __call__(self, a: Tensor, b: Tensor, mask: Tensor, *, across_ranks: bool) -> Cost:
        """See ``Objective``."""
        return vicreg_pairs(a, b, mask, **self.weights).cost()
