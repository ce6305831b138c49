"""VICReg of whole views, for resamplers whose tokens keep no grid to be compared position by position."""

from panollava.losses.objective.vicreg import Weight
from panollava.losses.objective.vicreg_batch import VicregBatchObjective
from panollava.losses.protocol import ViewMeans


class VicregPooledObjective(VicregBatchObjective):
    """Each view is the mean of its tokens. Variance and covariance are those of all pairs of a micro-batch."""

    def __init__(self, *, invariance: Weight = 25.0, variance: Weight = 25.0, covariance: Weight = 1.0) -> None:
        super().__init__(invariance=invariance, variance=variance, covariance=covariance)
        self.correspondences = ViewMeans()
