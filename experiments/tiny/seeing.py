"""Training data of the miniature encoder: views of the built-in world with a label for each patch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from panollava.crop.cameras import PERSPECTIVE, Camera, camera_tensor, point_directions, token_directions
from panollava.crop.render import render_views
from panollava.crop.strategies import AnyresE2pCrop
from panollava.data.scenes.paint import BACKGROUND_ID, paint_with_ids
from panollava.data.scenes.scene import COLOURS, POLES, SHAPES, Disc, Scene, scene_at

VIEW_SIZE = 64
PATCH_SIZE = 16
GRID = VIEW_SIZE // PATCH_SIZE
PANORAMA_HEIGHT = 256
COLOUR_CLASSES = ("none", *COLOURS)
SHAPE_CLASSES = ("none", *SHAPES, *POLES.values())
OFFSET_UNIT_DEG = 20.0
IGNORED = -100
LEAST_PIXELS, UNSURE_PIXELS = 14, 4
"""Of a patch's 256 pixels: a thing with as many is what the patch shows; fewer than the second are nothing."""

_BANKS = 12
_TILES = 11


@dataclass(frozen=True)
class Bank:
    """A set of cameras with what is needed to label their views."""

    cameras: tuple[Camera, ...]
    columns: np.ndarray
    """Panorama pixel of each view pixel, (V, h, w), like `rows`; row -1 where a view has padding."""
    rows: np.ndarray
    angles: np.ndarray
    """Yaw and pitch of the patch centres in degrees, (V, N, 2)."""
    has_offset: np.ndarray
    """Views (V) in which an object's offset can be measured: all near the horizon."""


@dataclass(frozen=True)
class Labelled:
    """Views with what each patch shows. n views, N patches.

    Attributes:
        views: (n, 3, h, w) uint8.
        colour: (n, N) index into ``COLOUR_CLASSES`` or ``IGNORED``.
        shape: (n, N) index into ``SHAPE_CLASSES`` or ``IGNORED``.
        offset: (n, N, 2) yaw and pitch from the patch centre to the thing's, in ``OFFSET_UNIT_DEG``; NaN if none.
    """

    views: Tensor
    colour: Tensor
    shape: Tensor
    offset: Tensor


@lru_cache(maxsize=4)
def banks(seed: int) -> tuple[Bank, ...]:
    """Camera sets as crops have them: a letterboxed whole, and tiles of several fields of view and pitches."""
    rng = np.random.default_rng([seed, 11])
    (whole,) = (camera for camera in AnyresE2pCrop().cameras() if camera.is_global)
    return tuple(_bank((whole, *(_tile(rng) for _ in range(_TILES)))) for _ in range(_BANKS))


def default_bank(overlap: float = 0.5) -> Bank:
    """The cameras of the default crop."""
    return _bank(tuple(AnyresE2pCrop(overlap=overlap).cameras()))


def label_views(scene: Scene, bank: Bank, shift: int = 0) -> Labelled:
    """Views of a scene, its panorama rolled to the right by `shift` columns, with their labels."""
    panorama, ids = paint_with_ids(scene, PANORAMA_HEIGHT)
    panorama, ids = np.roll(panorama, shift, axis=1), np.roll(ids, shift, axis=1)
    views = render_views(panorama, bank.cameras, (VIEW_SIZE, VIEW_SIZE))
    seen = np.where(bank.rows >= 0, ids[bank.rows, bank.columns], BACKGROUND_ID)
    count = len(bank.cameras)
    patches = seen.reshape(count, GRID, PATCH_SIZE, GRID, PATCH_SIZE)
    pixels = np.stack([(patches == index).sum(axis=(2, 4)) for index in range(len(scene.things))], axis=-1)
    pixels = pixels.reshape(count, GRID * GRID, -1)
    best, most = pixels.argmax(-1), pixels.max(-1)
    shown = most >= LEAST_PIXELS
    unsure = (most >= UNSURE_PIXELS) & ~shown
    is_disc = np.array([isinstance(thing, Disc) for thing in scene.things])
    # A solid is two pixels wide in the global view and cannot be recognised there, so it has no label.
    unsure |= np.array([camera.is_global for camera in bank.cameras])[:, None] & ~is_disc[best] & (most > 0)
    colours = np.array([COLOUR_CLASSES.index(thing.colour) for thing in scene.things])
    shapes = np.array([SHAPE_CLASSES.index(thing.shape) for thing in scene.things])
    where = np.array([(thing.yaw_deg + shift * 180.0 / PANORAMA_HEIGHT, thing.pitch_deg) for thing in scene.things])
    offset = where[best] - bank.angles
    offset[..., 0] = (offset[..., 0] + 180.0) % 360.0 - 180.0
    usable = shown & ~unsure & ~is_disc[best] & bank.has_offset[:, None]
    offset = np.where(usable[..., None], offset / OFFSET_UNIT_DEG, np.nan)
    return Labelled(
        views=torch.from_numpy(views).permute(0, 3, 1, 2),
        colour=torch.from_numpy(np.where(unsure, IGNORED, np.where(shown, colours[best], 0))),
        shape=torch.from_numpy(np.where(unsure, IGNORED, np.where(shown, shapes[best], 0))),
        offset=torch.from_numpy(offset).float(),
    )


def batches(first_scene: int, size: int, seed: int = 0) -> Iterator[Labelled]:
    """Endless batches of `size` scenes, each seen by a random bank from a random heading."""
    rng = np.random.default_rng([seed, first_scene, 13])
    chosen = banks(seed)
    scene = first_scene
    while True:
        parts = [
            label_views(
                scene_at(0, "backbones", scene + number),
                chosen[int(rng.integers(len(chosen)))],
                int(rng.integers(2 * PANORAMA_HEIGHT)),
            )
            for number in range(size)
        ]
        scene += size
        yield join(parts)


def join(parts: list[Labelled]) -> Labelled:
    """Several scenes' views as one batch."""
    return Labelled(
        views=torch.cat([part.views for part in parts]),
        colour=torch.cat([part.colour for part in parts]),
        shape=torch.cat([part.shape for part in parts]),
        offset=torch.cat([part.offset for part in parts]),
    )


def _tile(rng: np.random.Generator) -> Camera:
    fov = math.radians(90.0 if rng.random() < 0.65 else rng.uniform(55.0, 100.0))
    pitch_deg = rng.choice([0.0, rng.uniform(-12.0, 12.0), rng.uniform(-90.0, 90.0)], p=[0.6, 0.3, 0.1])
    yaw = rng.uniform(-math.pi, math.pi)
    return Camera(PERSPECTIVE, yaw, math.radians(float(pitch_deg)), 0.0, fov, fov)


def _bank(cameras: tuple[Camera, ...]) -> Bank:
    rows = camera_tensor(cameras, torch.float64)
    centres = (torch.arange(VIEW_SIZE, dtype=torch.float64) + 0.5) / VIEW_SIZE
    yaw, pitch = _angles(point_directions(rows, centres, centres).numpy())
    height, width = PANORAMA_HEIGHT, 2 * PANORAMA_HEIGHT
    column = np.floor((yaw / (2.0 * np.pi) + 0.5) * width).astype(int) % width
    row = np.clip(np.floor((0.5 - pitch / np.pi) * height).astype(int), 0, height - 1)
    for view, camera in enumerate(cameras):
        x0, y0, x1, y1 = camera.box
        position = centres.numpy()
        outside = ((position < y0) | (position > y1))[:, None] | ((position < x0) | (position > x1))[None, :]
        row[view][outside] = -1
    patch_angles = np.stack(_angles(token_directions(rows, (GRID, GRID)).numpy()), axis=-1)
    return Bank(
        cameras=cameras,
        columns=column,
        rows=row,
        angles=np.degrees(patch_angles).reshape(len(cameras), GRID * GRID, 2),
        has_offset=np.array([abs(camera.pitch_rad) < math.radians(15.0) for camera in cameras]),
    )


def _angles(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y, z = np.moveaxis(directions, -1, 0)
    return np.arctan2(x, z), np.arcsin(np.clip(y, -1.0, 1.0))
