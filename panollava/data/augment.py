"""Random changes of training pictures: a yaw rotation of the panorama, and its colours.

Validation and test pictures never change. Features of changed pictures are not stored (``AugmentOptions.is_on``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from annotated_types import Interval

from panollava.data.source import DataSource, Directions

if TYPE_CHECKING:
    from torch import Tensor

WORD_STEPS = 8
"""Rotations by multiples of this part of the circle keep texts true whose direction words are rotated as well."""


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """Keys of ``data`` for changes of training pictures."""

    augment: bool = False  # whether pictures are changed at all
    augment_turn: bool = True  # rotate each panorama by a random yaw, with the directions that its texts name
    # factor between 1 - this and 1 + this, like the next two.
    augment_brightness: Annotated[float, Interval(ge=0.0, le=0.4)] = 0.1
    augment_contrast: Annotated[float, Interval(ge=0.0, le=0.4)] = 0.1  # around middle grey
    augment_saturation: Annotated[float, Interval(ge=0.0, le=0.4)] = 0.1  # 0 would be grey
    augment_hue_deg: Annotated[float, Interval(ge=0.0, le=15.0)] = 4.0  # largest angle by which hues move

    @property
    def is_on(self) -> bool:
        """Whether training pictures differ from one epoch to the next."""
        return self.augment and (self.turns or self.colours)

    @property
    def turns(self) -> bool:
        """Whether panoramas are rotated."""
        return self.augment and self.augment_turn

    @property
    def colours(self) -> bool:
        """Whether colours are changed."""
        amounts = (self.augment_brightness, self.augment_contrast, self.augment_saturation, self.augment_hue_deg)
        return self.augment and any(amounts)


def check_turnable(source: DataSource) -> None:
    """Checks that all records state how their texts name directions.

    Raises:
        ValueError: some do not, and after a rotation they might be wrong.
    """
    unsaid = [index for index in range(len(source)) if source.directions(index) == "unknown"]
    if unsaid:
        raise ValueError(
            f"data.augment_turn=true rotates pictures, and {len(unsaid)} of the {len(source)} records of {source.name} "
            f"do not say how their texts name directions (such as {source.record(unsaid[0], 0).sample_id}). Say so: "
            "data.names_directions=none if they name none, data.names_directions=words if they do by the words ahead, "
            "ahead right, right, … and these are to be rotated too, or entry by entry (see conf/README.md); or leave "
            "the panoramas as they are with data.augment_turn=false."
        )


@dataclass(frozen=True)
class Change:
    """The changes of one picture."""

    turn: float = 0.0  # yaw rotation to the right, as a fraction of the circle
    brightness: float = 1.0  # factor
    contrast: float = 1.0  # factor of the distance from middle grey
    saturation: float = 1.0  # factor of the distance from grey
    hue_deg: float = 0.0  # angle


@dataclass(frozen=True)
class Augment:
    """Draws the changes of training pictures, as a function of (seed, epoch, index) and nothing else."""

    options: AugmentOptions  # what is changed
    seed: int  # of the stage

    def change(self, epoch: int, index: int, directions: Directions) -> Change:
        """The changes of the picture of record `index` in an epoch.

        Args:
            epoch: of the stage.
            index: of the record.
            directions: how its texts name directions, which limits the rotation.
        """
        # The 1 ends the seed, as trailing zeros do not change one. All values are drawn always, so that one option
        # does not change what another draws.
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
    """The rotation that keeps the texts true, as a fraction of the circle: the one drawn, or the nearest below it."""
    if directions == "none":
        return share
    return np.floor(share * WORD_STEPS).item() / WORD_STEPS if directions == "words" else 0.0


_MIDDLE = 127.5
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""Source: FCC NTSC standard, 47 CFR 73.682: brightness, and two axes of colour."""


def recoloured(views: Tensor, change: Change) -> Tensor:
    """All views of a panorama in changed colours; black stays black, as it may be padding.

    Args:
        views: ``(V, 3, h, w)`` uint8.
        change: the colour changes.

    Returns:
        The same shape and type.
    """
    import torch  # here, as the check of a data set reads the options alone

    if (change.brightness, change.contrast, change.saturation, change.hue_deg) == (1.0, 1.0, 1.0, 0.0):
        return views
    # Hue is an angle and saturation a length in the plane of I and Q; brightness and contrast scale all three axes.
    angle = np.deg2rad(change.hue_deg)
    in_yiq = np.eye(3)
    in_yiq[1:, 1:] = change.saturation * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mixture = change.contrast * change.brightness * (np.linalg.inv(_TO_YIQ) @ in_yiq @ _TO_YIQ)
    red, green, blue = views.float().unbind(1)  # each (V, h, w)
    offset = (1.0 - change.contrast) * _MIDDLE
    # Plane by plane: a matrix product may round differently with another number of threads.
    mixed = [r * red + g * green + b * blue + offset for r, g, b in mixture.tolist()]
    changed = torch.stack(mixed, dim=1).round_().clamp_(0, 255).to(torch.uint8)
    return torch.where(views.amax(dim=1, keepdim=True) == 0, views, changed)
