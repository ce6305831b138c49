"""Stage 1: neighbouring views should agree where they overlap, learnt without any text or language model."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from panollava.batch import Batch
from panollava.crop.matches import Matches, column_matches, ray_matches
from panollava.crop.overlap import neighbour_pairs
from panollava.losses.diagnostics import effective_rank, neighbour_cosine, retrieval_accuracy
from panollava.losses.vicreg import vicreg_pairs
from panollava.model.encoder import PanoVision
from panollava.stages.protocol import StepOutput

LOSS = "overlap"
PAIRINGS = {"columns": column_matches, "rays": ray_matches}


class OverlapStage(nn.Module):
    """VICReg between the tokens that neighbouring views have in common.

    The encoder is frozen; the resampler and a token-wise head train. The global view is never in a pair.

    Source: Bardes, Ponce, LeCun, "VICReg", ICLR 2022 (arXiv:2105.04906), in the pair-wise form of
    ``panollava.losses.vicreg``.

    Args:
        vision: encoder and resampler.
        type: objective.
        pairing: ``columns`` pairs the last k columns of a view with the first k of its right neighbour; ``rays``
            pairs what truly looks the same way, in all views that overlap.
        invariance, variance, covariance: weights of the three terms.
        head_width: hidden width of the head; None takes the resampler's width.
    """

    name = "vision"

    def __init__(
        self,
        vision: PanoVision,
        *,
        type: Literal["vicreg"] = "vicreg",
        pairing: Literal["columns", "rays"] = "columns",
        invariance: Annotated[float, Ge(0)] = 25.0,
        variance: Annotated[float, Ge(0)] = 25.0,
        covariance: Annotated[float, Ge(0)] = 1.0,
        head_width: Annotated[int, Ge(1)] | None = None,
    ) -> None:
        super().__init__()
        grid = vision.token_grid
        if grid is None:
            raise ValueError(
                f"stage.vision.loss.pairing={pairing} needs a resampler that keeps a grid of tokens; "
                "choose resampler=mlp or resampler=bimamba, or leave the stage out (stage.run=[resampler,finetune])."
            )
        self.vision = vision
        self.grid = grid
        self.pairing = pairing
        self.loss = partial(vicreg_pairs, invariance=invariance, variance=variance, covariance=covariance)
        width, hidden = vision.width, head_width or vision.width
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, width))
        self.vision.tower.requires_grad_(False)
        self.vision.resampler.requires_grad_(True)

    @staticmethod
    def obstacle(vision: PanoVision, cameras: Tensor) -> str | None:
        """Why this stage cannot run on a model and its views, or None.

        Args:
            cameras: ``(V, C)`` of one panorama.
        """
        if not any(True for _ in vision.resampler.parameters()):
            return "the resampler has no parameters, so nothing but the head would train"
        mask = torch.ones(1, len(cameras), dtype=torch.bool)
        if len(neighbour_pairs(cameras[None], mask)) == 0:
            return "no view of this crop has a neighbour, so nothing overlaps"
        return None

    def train(self, mode: bool = True) -> OverlapStage:
        """Training mode for what trains; the frozen encoder stays as it is at inference."""
        super().train(mode)
        self.vision.tower.eval()
        return self

    def trained(self) -> dict[str, nn.Parameter]:
        """Resampler and head."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def counts(self, batch: Batch) -> dict[str, float]:
        """Number of pairs of views."""
        return {LOSS: float(len(self._matches(batch).pairs))}

    def forward(self, batch: Batch) -> StepOutput:
        """Weighted VICReg sum over all pairs of the micro-batch; diagnostics outside training."""
        matches = self._matches(batch)
        tokens = self.vision(batch.pixel_values, cameras=batch.cameras, view_mask=batch.view_mask)
        terms = self.loss(*matches.take(self.head(tokens)), matches.mask)
        metrics = {
            f"{LOSS}/{term}": getattr(terms, term).detach().sum() for term in ("invariance", "variance", "covariance")
        }
        if not self.training:
            metrics |= _diagnostics(*matches.take(tokens), matches.mask)
        return StepOutput(losses={LOSS: terms.total.sum()}, metrics=metrics)

    def _matches(self, batch: Batch) -> Matches:
        matches = PAIRINGS[self.pairing](batch.cameras, batch.view_mask, self.grid)
        if len(matches.pairs) == 0:
            raise ValueError(
                f"stage.vision.loss.pairing={self.pairing}: no two views share 2 of their {self.grid[0]} x "
                f"{self.grid[1]} tokens. Use a larger crop.overlap, views with more tokens, or pairing=columns."
            )
        return matches


def _diagnostics(a: Tensor, b: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """How well the resampler's own tokens ``(P, L, D)`` of neighbours agree, summed over pairs."""
    return {
        f"{LOSS}/neighbour_cosine": neighbour_cosine(a, b, mask).sum(),
        f"{LOSS}/retrieval": retrieval_accuracy(a, b, mask).sum(),
        f"{LOSS}/effective_rank": effective_rank(a[mask]) * len(a),
    }
