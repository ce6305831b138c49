"""The detection stage: boxes and masks of what is where, from tokens that keep a grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from panollava.batch import Batch
from panollava.crop.boxes import IGNORED, PictureBoxes, box_frames
from panollava.crop.cameras import Column, locate
from panollava.crop.places import PlaceEncoder
from panollava.model.places import (
    Assigned,
    PlaceHead,
    TokenFrames,
    assign,
    place_losses,
    token_frames,
    used_views,
)
from panollava.stages.protocol import Stage, StageSetup, StepOutput

if TYPE_CHECKING:
    from panollava.model.backbones import Backbones
    from panollava.model.vision import PanoVision

MOST_UNSEEN = 0.02
"""Share of boxes whose centre no view shows, above which a crop is refused."""


class DetectStage(Stage):
    """A head on the tokens of a frozen encoder and resampler; without earlier weights the resampler trains too.

    Args:
        vision: encoder and resampler.
        setup: name, the classes, the cameras, and the blocks that train.
        hidden: width of the head's network.
        mask_size: least number of cells along each side of a view, each with a class of its own.
        roll: whether boxes have a roll.
        train_resampler: whether the resampler trains; null: only where no earlier weights are there.
        global_view: whether the tokens of the global view are used.
        unseen: ``ignore`` trains where the crop does not show all boxes.

    Raises:
        ValueError: the resampler would neither train nor have weights.
    """

    def __init__(
        self,
        vision: PanoVision,
        setup: StageSetup,
        *,
        hidden: Annotated[int, Ge(1)] = 256,
        mask_size: Annotated[int, Ge(1)] = 24,
        roll: bool = False,
        train_resampler: bool | None = None,
        global_view: bool = True,
        unseen: Literal["refuse", "ignore"] = "refuse",
    ) -> None:
        super().__init__(setup)
        assert vision.token_grid is not None
        assert setup.cameras is not None
        self.vision, self.grid, self.classes = vision, vision.token_grid, setup.classes
        self.trains_resampler = setup.is_fresh if train_resampler is None else train_resampler
        self._is_fresh, self._global_view = setup.is_fresh, global_view
        if setup.is_fresh and not self.trains_resampler and any(True for _ in vision.resampler.parameters()):
            raise ValueError(
                f"stage.{setup.name}.train_resampler=false: no earlier stage or init_from gives the resampler its "
                "weights, which would stay random. Leave it out, or name a run (init_from=<folder>)."
            )
        options: dict[str, Any] = {"hidden": hidden, "mask_size": mask_size, "roll": roll}
        self.head = PlaceHead.for_grid(vision.width, len(self.classes), self.grid, **options)
        self._encoder = PlaceEncoder(setup.cameras, self.grid, self.head.cells)
        self.vision.tower.train_only(setup.vision_blocks)
        self.vision.resampler.requires_grad_(self.trains_resampler)
        if setup.checkpoint_activations:
            self.vision.tower.checkpoint_activations()

    @classmethod
    def misfit(
        cls, backbones: Backbones, names: Sequence[str], pictures: Sequence[PictureBoxes], own: Mapping[str, Any]
    ) -> str:
        """See ``Stage``: the resampler keeps no grid, the data have no boxes, or the crop does not show them."""
        kind = backbones.model["resampler"]["type"]
        if backbones.outline.token_grid is None:
            return (
                f"model.resampler.type={kind} keeps no grid of tokens, so that no token looks in one direction. Use "
                "mlp, bimamba, c_abstractor, pool or identity, or set model.resampler.shortcut=true where it has one."
            )
        if not names:
            return "the data have no boxes. Use data=boxes, or the built-in world (data=world)."
        if not own["roll"] and any(one.boxes[:, 4].any() for one in pictures):
            return "the data have boxes with a roll, and stage.detect.roll=false predicts none. Set it to true."
        if own["unseen"] == "ignore":
            return ""
        if backbones.crop.is_adaptive:  # which tiles it chooses is not known here; the global view shows everything
            return (
                ""
                if own["global_view"]
                else "crop=adaptive chooses tiles by their detail, so that boxes may be in none of them. Set "
                "stage.detect.global_view=true, or stage.detect.unseen=ignore, which counts them as not found."
            )
        cameras = backbones.crop.camera_rows
        if not own["global_view"]:
            cameras = cameras[cameras[:, Column.IS_GLOBAL] == 0]
        return unseen_boxes(cameras, pictures, names, backbones.crop.summary)

    @property
    def borrows(self) -> bool:
        """See ``Stage``: what does not train is read from the checkpoint that the stage stands on."""
        return not self._is_fresh

    @property
    def places(self) -> PlaceEncoder:
        """See ``Stage``."""
        return self._encoder

    def notes(self, batch_size: int, accumulate: int, processes: int) -> list[str]:
        """What trains."""
        height, width = (side * self.head.cells for side in self.grid)
        of_resampler = "its resampler is frozen"
        if self.trains_resampler:
            why = ", as no earlier weights are there" if self._is_fresh else ""
            of_resampler = f"the resampler trains too{why}"
        return [
            f"Stage {self.name}: {len(self.classes)} classes ({', '.join(self.classes)}), masks of {height} x {width} "
            f"cells a view; {of_resampler}."
        ]

    def counts(self, batch: Batch) -> dict[str, float]:
        """Tokens that predict a box, for two losses, and labelled cells."""
        assigned, _, view_mask = self._assigned(batch)
        assert batch.cells is not None
        cells = float(((batch.cells != IGNORED) & view_mask[..., None, None]).sum())
        return {"score": float(len(assigned.classes)), "box": float(len(assigned.classes)), "mask": cells}

    def forward(self, batch: Batch) -> StepOutput:
        """Losses of scores, boxes and cells; see ``place_losses``."""
        assigned, frames, view_mask = self._assigned(batch)
        assert batch.cells is not None
        tokens = self.vision(
            batch.pixel_values, cameras=batch.cameras, view_mask=batch.view_mask, vision_features=batch.vision_features
        )
        outputs = self.head(tokens, frames, self.grid)
        return StepOutput(losses=place_losses(outputs, assigned, frames, view_mask, batch.cells))

    def _assigned(self, batch: Batch) -> tuple[Assigned, TokenFrames, Tensor]:
        assert batch.boxes is not None
        assert batch.box_classes is not None
        frames, view_mask = token_frames(batch.cameras, self.grid), used_views(batch, self._global_view)
        return assign(batch.boxes, batch.box_classes, frames, view_mask), frames, view_mask


def unseen_boxes(cameras: Tensor, pictures: Sequence[PictureBoxes], names: Sequence[str], crop: str) -> str:
    """Why a crop does not show what is to be found; empty where it does.

    Args:
        cameras: ``(V, C)`` of the views.
        pictures: boxes of some pictures.
        names: of the classes.
        crop: its summary, for the message.
    """
    boxes = np.concatenate([one.boxes for one in pictures]) if pictures else np.zeros((0, 5))
    classes = np.concatenate([one.classes for one in pictures]) if pictures else np.zeros(0, int)
    centres = torch.from_numpy(box_frames(boxes)[:, 2].copy())
    seen = torch.zeros(len(boxes), dtype=torch.bool)
    for camera in cameras.double():
        x, y, is_ahead = (part[0] for part in locate(camera[None], centres[None]))
        left, top, right, bottom = camera[Column.BOX_X0 : Column.BOX_Y1 + 1]
        seen |= is_ahead & (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
    unseen = (~seen).numpy()
    if unseen.sum() <= MOST_UNSEEN * len(boxes):
        return ""
    counts = Counter(names[number] for number in classes[unseen])
    shown = ", ".join(f"{name} {count}" for name, count in counts.most_common(5))
    return (
        f"the crop ({crop}) does not show the centres of {unseen.sum()} of {len(boxes)} boxes in {len(pictures)} "
        f"pictures ({shown}). Use one that shows the whole sphere, such as crop=cubemap crop.poles=true, or crop=e2p "
        "'crop.pitch_rows_deg=[-45,0,45]'; or stage.detect.unseen=ignore, which counts them as not found."
    )
