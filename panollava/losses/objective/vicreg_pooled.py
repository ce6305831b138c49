"""VICReg of views as wholes, for resamplers whose tokens keep no grid to be compared place by place."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from panollava.losses.all_reduce import alone, all_reduce_sum
from panollava.losses.objective.vicreg import Weight, vicreg_batch
from panollava.losses.protocol import Cost, ViewMeans


class VicregPooledObjective:
    """Each view is the mean of its tokens; variance and covariance are those of all pairs of a micro-batch.

    Args:
        invariance: weight of the difference of neighbours.
        variance: weight of the hinge on each dimension's deviation.
        covariance: weight of the covariances of dimensions.
    """

    coupled = "variance and covariance"

    def __init__(
        self,
        *,
        invariance: Weight = 25.0,
        variance: Weight = 25.0,
        covariance: Weight = 1.0,
    ) -> None:
        self.places = ViewMeans()
        self.loss = partial(vicreg_batch, invariance=invariance, variance=variance, covariance=covariance)
        self.remedy = f"raise stage.vision.loss.variance (it is {variance:g})"

    def __call__(self, a: Tensor, b: Tensor, mask: Tensor, *, across_ranks: bool) -> Cost:
        """The batch's value times the pairs held here."""
        terms = self.loss(a, b, mask, total=all_reduce_sum if across_ranks else alone)
        return Cost(*terms.sums(len(a)))
