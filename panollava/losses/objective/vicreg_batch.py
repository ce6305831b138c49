"""VICReg with the variance and covariance of a whole batch, as in its paper."""

from torch import Tensor

from panollava.losses.objective.vicreg import VicregObjective, vicreg_batch
from panollava.losses.protocol import Cost


class VicregBatchObjective(VicregObjective):
    """Variance and covariance are those of all correspondences of all pairs of a micro-batch.

    A view of a plain wall need not vary in itself then, as long as panoramas differ.
    """

    coupled = "variance and covariance"

    def __call__(self, a: Tensor, b: Tensor, mask: Tensor, *, across_ranks: bool) -> Cost:
        """See ``Objective``."""
        return vicreg_batch(a, b, mask, across_ranks=across_ranks, **self.weights).cost(len(a))
