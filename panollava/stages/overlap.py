"""Stage 1: neighbouring views should agree where they overlap, learnt without any text or language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from panollava.batch import Batch
from panollava.crop.matches import Matches
from panollava.crop.rings import neighbour_pairs
from panollava.losses.diagnostics import collapse
from panollava.losses.protocol import Objective
from panollava.model.trainable import Blocks, is_backbone
from panollava.model.vision import PanoVision
from panollava.stages.protocol import StepOutput

LOSS = "overlap"


class OverlapStage(nn.Module):
    """An objective between what neighbouring views have in common.

    The encoder is frozen but for its last blocks; the resampler and a head train. The global view is never in a pair.

    Args:
        vision: encoder and resampler.
        objective: what is compared, and what a difference costs.
        head_width: hidden width of the head; None takes the resampler's width.
        vision_blocks: blocks of the encoder that train (see ``VisionTower.train_only``).
        checkpoint_activations: recompute the activations of those blocks in the backward pass to save memory.

    Raises:
        ValueError: the encoder has fewer blocks.
    """

    name = "vision"

    def __init__(
        self,
        vision: PanoVision,
        *,
        objective: Objective,
        head_width: Annotated[int, Ge(1)] | None = None,
        vision_blocks: Blocks = 0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        assert vision.token_grid is not None or not objective.places.needs_grid
        self.vision = vision
        self.objective = objective
        self.grid = vision.token_grid
        width, hidden = vision.width, head_width or vision.width
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, width))
        self.vision.tower.train_only(vision_blocks)
        self.vision.resampler.requires_grad_(True)
        if checkpoint_activations:
            self.vision.tower.checkpoint_activations()

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

    @property
    def caveat(self) -> str:
        """Tokens that see other views agree with them without having learnt anything."""
        if not getattr(self.vision.resampler, "mixes_views", False):
            return ""
        return "this resampler's tokens see other views, so their agreement is built in and evidence of nothing"

    def concern(self, metrics: Mapping[str, float]) -> str | None:
        """Whether features have collapsed."""
        own = {name.removeprefix(f"{LOSS}/"): value for name, value in metrics.items()}
        found = collapse(own, width=self.vision.width)
        if found is None:
            return None
        return f"{found}. Start again (overwrite=true) and {self.objective.remedy}; a lower stage.vision.lr helps too."

    @property
    def coupled(self) -> str:
        """What the objective takes over a whole micro-batch."""
        return self.objective.coupled

    def trained(self) -> dict[str, nn.Parameter]:
        """Resampler and head, and what trains of the encoder."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def frozen_backbone(self) -> dict[str, nn.Parameter]:
        """Weights of the encoder that do not train here."""
        return {name: p for name, p in self.named_parameters() if is_backbone(name) and not p.requires_grad}

    def counts(self, batch: Batch) -> dict[str, float]:
        """Number of pairs of views."""
        return {LOSS: float(len(self._matches(batch).pairs))}

    def forward(self, batch: Batch) -> StepOutput:
        """The objective over all pairs of the micro-batch; diagnostics of the resampler's own tokens outside training.

        Processes validate batches of their own, and not equally many: outside training none waits for another.
        """
        matches, places = self._matches(batch), self.objective.places
        tokens = places.tokens(
            self.vision(
                batch.pixel_values,
                cameras=batch.cameras,
                view_mask=batch.view_mask,
                vision_features=batch.vision_features,
            )
        )
        sides = matches.take(self.head(tokens).float())
        total, metrics = self.objective(*sides, matches.mask, across_ranks=self.training)
        if not self.training:
            metrics |= places.diagnostics(tokens, matches)
        return StepOutput(losses={LOSS: total}, metrics={f"{LOSS}/{name}": value for name, value in metrics.items()})

    def _matches(self, batch: Batch) -> Matches:
        return self.objective.places.match(batch.cameras, batch.view_mask, self.grid)
