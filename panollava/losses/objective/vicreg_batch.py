"""VICReg with the variance and covariance of a whole batch, as its paper has them."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from panollava.losses.all_reduce import alone, all_reduce_sum
from panollava.losses.objective.vicreg import Weight, vicreg_batch
from panollava.losses.protocol import Cost, GridCorrespondences, Pairing


class VicregBatchObjective:
    """Variance and covariance are those of all matched places of all pairs of a micro-batch.

    A view of one plain wall need not vary in itself then, as long as panoramas differ.

    Args:
        pairing: see ``GridCorrespondences``.
        invariance: weight of the difference of matched places.
        variance: weight of the hinge on each dimension's deviation.
        covariance: weight of the covariances of dimensions.
    """

    coupled = "variance and covariance"

    def __init__(
        self,
        *,
        pairing: Pairing = "columns",
        invariance: Weight = 25.0,
        variance: Weight = 25.0,
        covariance: Weight = 1.0,
    ) -> None:
        self.places = GridCorrespondences(pairing)
        self.loss = partial(vicreg_batch, invariance=invariance, variance=variance, covariance=covariance)
        self.remedy = f"raise stage.vision.loss.variance (it is {variance:g})"

    def __call__(self, a: Tensor, b: Tensor, mask: Tensor, *, across_ranks: bool) -> Cost:
        """The batch's value times the pairs held here."""
        terms = self.loss(a, b, mask, total=all_reduce_sum if across_ranks else alone)
        return Cost(*terms.sums(len(a)))
