"""DenseCL: each place finds its match in the other view among places that look elsewhere."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval
from torch import Tensor

from panollava.losses.dense import dense_batch, dense_pairs
from panollava.losses.places import GridPlaces, Pairing
from panollava.losses.protocol import Cost


class DenseclObjective:
    """Cross-entropy over matched places in both directions, by cosine.

    Args:
        pairing: see ``GridPlaces``.
        temperature: cosines are divided by it.
        negatives: what a match is told from; ``pair``: the other places of the same two views; ``batch``: those
            of all pairs of a micro-batch.
    """

    remedy = "lower stage.vision.lr, raise stage.vision.loss.temperature, or take negatives=batch"

    def __init__(
        self,
        *,
        pairing: Pairing = "columns",
        temperature: Annotated[float, Interval(ge=0.01, le=10)] = 0.07,
        negatives: Literal["pair", "batch"] = "pair",
    ) -> None:
        self.places = GridPlaces(pairing)
        self.temperature = temperature
        self.coupled = "negatives" if negatives == "batch" else ""

    def __call__(self, a: Tensor, b: Tensor, mask: Tensor, *, across_ranks: bool) -> Cost:
        """Summed over pairs; ``forward`` finds places of second views, ``backward`` those of first ones."""
        if self.coupled:
            sides = dense_batch(a, b, mask, temperature=self.temperature, across_ranks=across_ranks)
        else:
            sides = dense_pairs(a, b, mask, temperature=self.temperature)
        forward, backward = (side.sum() for side in sides)
        return Cost((forward + backward) / 2, {"forward": forward.detach(), "backward": backward.detach()})
