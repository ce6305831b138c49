"""A trained detection stage as a model: boxes and masks of a panorama."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panollava.batch import Batch
from panollava.component import allow as allow_packages
from panollava.crop.boxes import PictureBoxes
from panollava.crop.crop import Crop
from panollava.crop.partial import extent_of
from panollava.model.backbones import open_checkpoint
from panollava.model.places import Painter, PlaceHead, found_boxes, token_frames, used_views
from panollava.model.processor import Picture, read_picture
from panollava.model.trainable import load_trained
from panollava.model.vision import PanoVision
from panollava.run_folder import METADATA, find_trained, read_metadata, with_paths_found
from panollava.stages.registry import recorded_stage

MASK_HEIGHT = 512
"""Rows of a mask, unless the panorama has fewer."""
PAINTERS = 8
"""Sizes of masks for which the places of all pixels are kept, up to 25 MB each: clients of a server send any size."""
SURE = 0.5
"""Score from which ``detect`` gives a box: the score estimates the IoU with a thing."""


@dataclass(frozen=True)
class Detection:
    """One thing on the sphere; angles are degrees, as in ``panollava.crop.boxes``."""

    yaw: float
    pitch: float
    horizontal: float
    vertical: float
    roll: float
    name: str  # of its class
    score: float  # from 0 to 1


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in a panorama. Iterating gives each ``Detection``, the best first."""

    boxes: PictureBoxes
    mask: np.ndarray  # (H, W) int16 of the whole sphere, position of a pixel's class among `names`, -1 for no class
    names: tuple[str, ...]  # of the classes

    def __iter__(self) -> Iterator[Detection]:
        assert self.boxes.scores is not None
        for box, number, score in zip(self.boxes.boxes, self.boxes.classes, self.boxes.scores, strict=True):
            yaw, pitch, horizontal, vertical, roll = (float(value) for value in box)
            yield Detection(yaw, pitch, horizontal, vertical, roll, self.names[number], float(score))

    def __len__(self) -> int:
        return len(self.boxes.boxes)

    @property
    def nbytes(self) -> int:
        """Memory that they take, about: that of the mask and the boxes."""
        return self.mask.nbytes + self.boxes.boxes.nbytes


def find_detector(path: Path) -> tuple[Path, Path]:
    """The folder of a detection stage and its checkpoint; raises a FileNotFoundError if `path` has none."""
    try:
        return find_trained(path, ("detect",))
    except FileNotFoundError as error:
        if not path.exists():
            raise
        raise FileNotFoundError(
            f"{path} has no detection stage. Train one: python -m panollava.train stage=detect init_from=<run>."
        ) from error


class PanoDetector:
    """Finds boxes and masks in panoramas, by a head on the tokens of an encoder and a resampler.

    Args:
        vision: encoder and resampler, in evaluation mode.
        head: on its tokens.
        crop: cuts the views.
        names: of the classes.
        global_view: whether the tokens of the global view are used.
    """

    def __init__(
        self, vision: PanoVision, head: PlaceHead, crop: Crop, names: Sequence[str], *, global_view: bool = False
    ) -> None:
        self.vision, self.head, self.crop, self.names = vision, head, crop, tuple(names)
        self.global_view = global_view
        self._painters: dict[tuple[int, int], Painter] = {}

    def __repr__(self) -> str:
        return f"PanoDetector({len(self.names)} classes: {', '.join(self.names)})"

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        allow: str | Sequence[str] = (),
    ) -> PanoDetector:
        """Opens the detection stage of an experiment's folder, its run folder or a checkpoint in it.

        ``dtype`` is of the encoder. ``allow`` names packages whose classes the model may be made of; their code is run.

        Raises:
            FileNotFoundError: there is no detection stage, or the checkpoint that it stands on is missing.
            ValueError: the run is of another stage, or the weights that it stands on have changed.
        """
        allow_packages(allow)
        run, checkpoint = find_detector(Path(folder).expanduser())
        return cls.from_checkpoint(checkpoint, with_paths_found(read_metadata(run), run), device=device, dtype=dtype)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Path,
        settings: Mapping[str, Any],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> PanoDetector:
        """As ``from_pretrained``, for a ``*.ckpt`` folder and changed settings of its run, such as another crop."""
        if not recorded_stage(settings).finds:
            raise ValueError(
                f"{checkpoint} is of stage {settings['stage']}, which finds no boxes. Train one: python -m "
                "panollava.train stage=detect init_from=<this run>."
            )
        backbones, vision, own = open_checkpoint(checkpoint, settings, device=device, dtype=dtype)
        section, names = settings["stage_settings"], settings["classes"]
        options = {key: section[key] for key in ("hidden", "mask_size", "roll")}
        head = PlaceHead.for_grid(vision.width, len(names), vision.token_grid, **options)
        load_trained(head, {name.removeprefix("head."): value for name, value in own.items()}, str(checkpoint))
        return cls(vision, head.to(device).eval(), backbones.crop, names, global_view=section["global_view"])

    @classmethod
    def beside(
        cls, checkpoint: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> PanoDetector | None:
        """The detection stage of the experiment that a checkpoint is of; None where it has none."""
        root = checkpoint.resolve().parent.parent.parent
        if not any(root.glob(f"detect/*/{METADATA}")):
            return None
        return cls.from_pretrained(root, device=device, dtype=dtype)

    @torch.inference_mode()
    def detect(self, image: Picture, *, least_score: float = SURE) -> Detections:
        """Finds what is where in a panorama.

        Args:
            image: as for ``PanoLlava.generate``.
            least_score: from 0 to 1; boxes with a lower score are left out.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError: `least_score` is no number.
            ValueError: it is no panorama, or `least_score` is not from 0 to 1.
        """
        if isinstance(least_score, bool) or not isinstance(least_score, Real):
            raise TypeError(f"least_score={least_score!r} is no number. Give one from 0 to 1, such as 0.5.")
        if not 0 <= least_score <= 1:
            raise ValueError(f"least_score={least_score} is not from 0 to 1. Scores are; {SURE} is the default.")
        panorama = read_picture(image, self.crop)
        views, cameras = self.crop.cut(panorama)
        batch = Batch(
            sample_ids=["picture"],
            pixel_values=views[None],
            cameras=cameras[None],
            view_mask=torch.ones(1, len(cameras), dtype=torch.bool),
        )
        (found,) = self.find(batch.to(self.vision.tower.mean.device), [mask_size(extent_of(panorama))])
        assert found.boxes.scores is not None
        kept = found.boxes.scores >= least_score
        boxes = PictureBoxes(found.boxes.boxes[kept], found.boxes.classes[kept], found.boxes.scores[kept])
        return Detections(boxes, found.mask, self.names)

    @torch.inference_mode()
    def find(self, batch: Batch, sizes: Sequence[tuple[int, int] | None]) -> list[Detections]:
        """Boxes of all scores and masks of the pictures of a batch, on the detector's device.

        Args:
            batch: of ``B`` pictures.
            sizes: (H, W) of each picture's mask; None for none.
        """
        tokens = self.vision(
            batch.pixel_values, cameras=batch.cameras, view_mask=batch.view_mask, vision_features=batch.vision_features
        )
        grid = self.vision.token_grid
        assert grid is not None
        frames, view_mask = token_frames(batch.cameras, grid), used_views(batch, self.global_view)
        outputs = self.head(tokens, frames, grid)
        results = []
        for row, (boxes, size) in enumerate(zip(found_boxes(outputs, frames, view_mask), sizes, strict=True)):
            mask = np.zeros((0, 0), np.int16)
            if size is not None:
                mask = self._painter(batch.cameras[row], size)(outputs.cells[row], view_mask[row])
            results.append(Detections(boxes, mask, self.names))
        return results

    def _painter(self, cameras: Tensor, size: tuple[int, int]) -> Painter:
        if self.crop.is_adaptive:
            return Painter(cameras, size)
        if size not in self._painters:  # all panoramas have the same cameras
            if len(self._painters) == PAINTERS:
                del self._painters[next(iter(self._painters))]
            self._painters[size] = Painter(cameras, size)
        return self._painters[size]


def mask_size(size: Sequence[float]) -> tuple[int, int]:
    """(H, W) of the mask of a panorama whose whole sphere is (H, W)."""
    height = min(round(size[0]), MASK_HEIGHT)
    return height, round(size[1] * height / size[0])
