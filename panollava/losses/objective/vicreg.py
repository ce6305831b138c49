"""VICReg of each pair of views by itself: the published form, and the default."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from panollava.losses.places import GridPlaces, Pairing
from panollava.losses.protocol import Cost
from panollava.losses.vicreg import Weight, vicreg_pairs


class VicregObjective:
    """Variance and covariance are those of the places that one pair of views has in common.

    Args:
        pairing: see ``GridPlaces``.
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
        self.places = GridPlaces(pairing)
        self.loss = partial(vicreg_pairs, invariance=invariance, variance=variance, covariance=covariance)
        self.remedy = f"raise stage.vision.loss.variance (it is {variance:g})"

    def __call__(self, a: Tensor, b: Tensor, mask: Tensor, *, across_ranks: bool) -> Cost:
        """Summed over pairs."""
        return Cost(*self.loss(a, b, mask).sums())
