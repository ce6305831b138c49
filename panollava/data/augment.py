"""Training records with changed pictures.

Never for validation and test. Features of changed pictures cannot be kept, so whoever keeps features asks
``AugmentOptions.is_on``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor
from torch.utils.data import Dataset

from panollava.crop.crop import Crop
from panollava.crop.partial import extent_of, rotate_yaw
from panollava.data.dataset import Sample
from panollava.data.source import DataSource, Directions, Record
from panollava.prompt import Encoded

WORD_STEP_DEG = 45.0
"""Texts whose words are turned along are true after turns by multiples of this."""


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """Keys of ``data`` for changes of training pictures.

    Attributes:
        augment: whether pictures are changed at all.
        augment_turn: turn each panorama by a random angle, with the directions that its texts name.
        augment_brightness: factor between 1 - this and 1 + this, like the next two.
        augment_contrast: around middle grey.
        augment_saturation: 0 would be grey.
        augment_hue_deg: largest angle by which hues move.
    """

    augment: bool = False
    augment_turn: bool = True
    augment_brightness: Annotated[float, Interval(ge=0.0, le=0.4)] = 0.1
    augment_contrast: Annotated[float, Interval(ge=0.0, le=0.4)] = 0.1
    augment_saturation: Annotated[float, Interval(ge=0.0, le=0.4)] = 0.1
    augment_hue_deg: Annotated[float, Interval(ge=0.0, le=15.0)] = 4.0

    @property
    def is_on(self) -> bool:
        """Whether training pictures differ from one epoch to the next."""
        return self.augment and (self.turns or self.colours)

    @property
    def turns(self) -> bool:
        """Whether panoramas are turned."""
        return self.augment and self.augment_turn

    @property
    def colours(self) -> bool:
        """Whether colours are changed."""
        amounts = (self.augment_brightness, self.augment_contrast, self.augment_saturation, self.augment_hue_deg)
        return self.augment and any(amounts)


def check_turnable(source: DataSource) -> None:
    """Whether all records say how their texts name directions.

    Raises:
        ValueError: some do not, and after a turn they might be wrong.
    """
    unsaid = [index for index in range(len(source)) if source.directions(index) == "unknown"]
    if unsaid:
        raise ValueError(
            f"data.augment_turn=true turns panoramas, and {len(unsaid)} of the {len(source)} records of {source.name} "
            f"do not say how their texts name directions (such as {source.record(unsaid[0], 0).sample_id}). Say so: "
            "data.names_directions=none if they name none, data.names_directions=words if they do by the words ahead, "
            "ahead right, right, … and these are to be turned along, or entry by entry (see conf/README.md); or leave "
            "the panoramas as they are with data.augment_turn=false."
        )


@dataclass(frozen=True)
class Change:
    """What is done to one picture.

    Attributes:
        turn: to the right, as a share of the whole circle.
        brightness: factor.
        contrast: factor of the distance from middle grey.
        saturation: factor of the distance from grey.
        hue_deg: angle.
    """

    turn: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue_deg: float = 0.0


@dataclass(frozen=True)
class Augment:
    """Draws the changes of training pictures: a function of (seed, epoch, index) and nothing else.

    Attributes:
        options: what is changed.
        seed: of the stage.
    """

    options: AugmentOptions
    seed: int

    def change(self, epoch: int, index: int, directions: Directions) -> Change:
        """What is done to the picture of record `index` in an epoch.

        Args:
            epoch: of the stage.
            index: of the record.
            directions: which turns its texts allow.
        """
        # Trailing zeros do not change a seed; and all is drawn always, so that one option does not change another.
        drawn = np.random.default_rng([self.seed, epoch, index, 1]).random(5).tolist()
        options = self.options
        turn = _allowed(drawn[0], directions) if options.turns else 0.0
        if not options.colours:
            return Change(turn)
        amounts = (options.augment_brightness, options.augment_contrast, options.augment_saturation)
        brightness, contrast, saturation = (
            1.0 + amount * (2.0 * share - 1.0) for amount, share in zip(amounts, drawn[1:4], strict=True)
        )
        return Change(turn, brightness, contrast, saturation, options.augment_hue_deg * (2.0 * drawn[4] - 1.0))


def _allowed(share: float, directions: Directions) -> float:
    """The turn, as a share of the circle, nearest below one that was drawn."""
    if directions == "none":
        return share
    steps = 360.0 / WORD_STEP_DEG
    return np.floor(share * steps).item() / steps if directions == "words" else 0.0


_MIDDLE = 127.5
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""Source: FCC NTSC standard, 47 CFR 73.682: brightness, and two axes of colour."""


def recoloured(views: Tensor, change: Change) -> Tensor:
    """All views of a panorama in changed colours; what is quite black stays so, as it may be padding.

    Args:
        views: ``(V, 3, h, w)`` uint8.
        change: what is done to them.

    Returns:
        The same shape and type.
    """
    if (change.brightness, change.contrast, change.saturation, change.hue_deg) == (1.0, 1.0, 1.0, 0.0):
        return views
    red, green, blue = views.float().unbind(1)
    offset = (1.0 - change.contrast) * _MIDDLE
    # Plane by plane: a product of matrices may round otherwise with another number of threads.
    mixed = [r * red + g * green + b * blue + offset for r, g, b in _mixture(change)]
    changed = torch.stack(mixed, dim=1).round_().clamp_(0, 255).to(torch.uint8)
    return torch.where(views.amax(dim=1, keepdim=True) == 0, views, changed)


def _mixture(change: Change) -> list[list[float]]:
    """What of red, green and blue each of them becomes; grey stays grey."""
    angle = np.deg2rad(change.hue_deg)
    in_yiq = np.eye(3)
    in_yiq[1:, 1:] = change.saturation * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mixture: list[list[float]] = (
        change.contrast * change.brightness * (np.linalg.inv(_TO_YIQ) @ in_yiq @ _TO_YIQ)
    ).tolist()
    return mixture


class AugmentedDataset(Dataset[Sample]):
    """Records with changed pictures, indexed by (epoch, index) as those of ``PanoDataset`` are.

    Args:
        source: the training split.
        crop: cuts the views.
        encode: makes tokens of a record; None for stages without text.
        augment: draws the changes.
    """

    def __init__(
        self, source: DataSource, crop: Crop, encode: Callable[[Record], Encoded] | None, augment: Augment
    ) -> None:
        self.source = source
        self.crop = crop
        self.encode = encode
        self.augment = augment

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        change = self.augment.change(epoch, index, self.source.directions(index))
        record = self.source.turned_record(index, epoch, 360.0 * change.turn)
        panorama = self.source.panorama(index)
        # A whole number of columns: at most half a column from the angle that the texts are turned by.
        panorama = rotate_yaw(panorama, round(change.turn * extent_of(panorama)[1]))
        views = recoloured(self.crop.views(panorama), change)
        text = None if self.encode is None else self.encode(record)
        return Sample(sample_id=record.sample_id, views=views, cameras=self.crop.camera_rows, text=text)
