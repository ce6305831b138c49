"""Changes of how a panorama is shown after which the right answers are known: of pixels, views or cameras."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch

from panollava.crop.cameras import Camera, camera_tensor, locate
from panollava.crop.partial import extent_of, rotate_yaw
from panollava.crop.sphere import direction_to_pixel, pixel_to_direction

_BORDER = 4  # rows and columns around a panorama that its resampling reads
_RIM = 16  # points of a thing's outline that are looked for in a view


@dataclass(frozen=True)
class Change:
    """One way to show a panorama; the default shows it as it is."""

    turn_deg: float = 0.0  # the panorama is rotated to the right, by whole columns
    tilt_deg: float = 0.0  # it is rotated about a horizontal axis, and resampled …
    axis_deg: float = 0.0  # … which points to this yaw
    pitch_deg: float | None = None  # the scene is drawn with one solid at this pitch and without discs
    phase: float = 0.0  # the tiles are rotated to the right by this part of their step; global views stay
    order: int = 0  # the tiles are shuffled with their cameras by this seed; 0 leaves them in order
    grey: int | None = None  # index of a view that is plain grey
    crop: tuple[tuple[str, Any], ...] = ()  # keys of ``crop`` that differ

    @property
    def changes_pixels(self) -> bool:
        """Whether the panorama itself differs."""
        return bool(self.turn_deg or self.tilt_deg or self.pitch_deg is not None)

    @property
    def record(self) -> dict[str, Any]:
        """What differs from the default, as plain values."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {key: dict(value) if key == "crop" else value for key, value in found.items() if value != _DEFAULTS[key]}

    def __str__(self) -> str:
        """The same in one line; empty for the default."""
        values = self.record
        values |= {f"crop.{key}": value for key, value in values.pop("crop", {}).items()}
        return ", ".join(
            f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
        )


_DEFAULTS = {one.name: one.default for one in fields(Change)}
UNCHANGED = Change()


def rotation(change: Change) -> np.ndarray:
    """Rotation ``(3, 3)`` of the things in a panorama: of column vectors, the yaw before the tilt.

    Source: O. Rodrigues, 1840, for the rotation about an axis.
    """
    turn, tilt, axis = (math.radians(angle) for angle in (change.turn_deg, change.tilt_deg, change.axis_deg))
    x, y, z = math.sin(axis), 0.0, math.cos(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    tilted = np.eye(3) + math.sin(tilt) * cross + (1 - math.cos(tilt)) * cross @ cross
    sin, cos = math.sin(turn), math.cos(turn)
    return tilted @ np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def rotated(panorama: np.ndarray, change: Change) -> np.ndarray:
    """A panorama ``(H, W, 3)`` uint8 of the whole sphere after the rotation of a change.

    A yaw alone moves whole columns, at most half a column from the angle, and resamples nothing.
    """
    if change.turn_deg:
        panorama = rotate_yaw(panorama, round(change.turn_deg / 360 * extent_of(panorama)[1]))
    if not change.tilt_deg:
        return panorama
    pixels = np.asarray(panorama)
    maps = _tilt_maps(pixels.shape[:2], replace(UNCHANGED, tilt_deg=change.tilt_deg, axis_deg=change.axis_deg))
    half = pixels.shape[1] // 2
    beyond = [np.roll(edge[::-1], half, axis=1) for edge in (pixels[:_BORDER], pixels[-_BORDER:])]
    wide = np.pad(np.concatenate([beyond[0], pixels, beyond[1]]), ((0, 0), (_BORDER, _BORDER), (0, 0)), mode="wrap")
    return cv2.remap(wide, *maps, interpolation=cv2.INTER_CUBIC)


@lru_cache(maxsize=4)
def _tilt_maps(size: tuple[int, int], change: Change) -> tuple[np.ndarray, np.ndarray]:
    """Column and row, in the panorama with its border, that each pixel of the tilted one shows."""
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in size), indexing="ij")
    back = torch.from_numpy(rotation(change))  # row vectors times the rotation: its inverse
    column, row = direction_to_pixel(pixel_to_direction(columns, rows, size) @ back, size)
    return (column.numpy() + _BORDER).astype(np.float32), (row.numpy() + _BORDER).astype(np.float32)


def tiles_of(cameras: Sequence[Camera]) -> list[int]:
    """Indices of the views that are no global ones."""
    return [at for at, one in enumerate(cameras) if not one.is_global]


def tile_step_deg(cameras: Sequence[Camera]) -> float | None:
    """Yaw from a tile to the next one of its row; None where there are fewer than two."""
    rows: dict[float, set[float]] = {}
    for at in tiles_of(cameras):
        one = cameras[at]
        rows.setdefault(round(one.pitch_rad, 4), set()).add(round(math.degrees(one.yaw_rad) % 360, 3) % 360)
    most = max(map(len, rows.values()), default=0)
    return 360 / most if most > 1 else None


def changed_cameras(cameras: Sequence[Camera], change: Change) -> tuple[Camera, ...]:
    """The cameras of the views in a change, in the order in which the model gets them."""
    tiles, step, result = tiles_of(cameras), tile_step_deg(cameras), list(cameras)
    if change.phase and step is not None:
        for at in tiles:
            yaw = cameras[at].yaw_rad + math.radians(change.phase * step)
            result[at] = replace(cameras[at], yaw_rad=yaw)
    if change.order:
        for at, camera in zip(tiles, [result[at] for at in shuffle(tiles, change.order)], strict=True):
            result[at] = camera
    return tuple(result)


def shuffle(places: Sequence[int], seed: int) -> list[int]:
    """The places in random order, of which at most a third stays where it is; the same for the same seed."""
    generator = np.random.default_rng([seed, 1])
    while True:
        found = [places[at] for at in generator.permutation(len(places))]
        if sum(one == other for one, other in zip(found, places, strict=True)) <= max(1, len(places) // 3):
            return found


def shows(camera: Camera, centre: np.ndarray, radius_deg: float) -> bool:
    """Whether a view shows the centre ``(3,)`` of a thing, or a point of its outline, a circle of this radius."""
    up = np.array([0.0, 1.0, 0.0]) if abs(centre[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
    right = np.cross(up, centre)
    right /= np.linalg.norm(right)
    around = np.linspace(0, 2 * math.pi, _RIM, endpoint=False)[:, None]
    radius = math.radians(radius_deg)
    rim = math.cos(radius) * centre + math.sin(radius) * (
        np.cos(around) * right + np.sin(around) * np.cross(centre, right)
    )
    x, y, is_ahead = locate(camera_tensor([camera], torch.float64)[0], torch.from_numpy(np.vstack([centre, rim])))
    return bool((is_ahead & (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)).any())


def circle_share(camera: Camera) -> float:
    """The part of the circle of yaws that a view shows along its middle row."""
    return min(1.0, camera.h_extent_rad / (2 * math.pi))
