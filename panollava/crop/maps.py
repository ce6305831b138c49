"""Where the pixels of views fall in a panorama, how far it is shrunk first and how densely it is sampled.

A panorama is halved while it stays as fine as the finest place of a view, and each pixel is the mean of as many
samples as panorama pixels fit into it (in a tile: into the pixel in its centre); so thin structures fade instead of
flickering.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor

from panollava.crop.cameras import (
    EQUIRECTANGULAR,
    Camera,
    Column,
    camera_tensor,
    focal_length,
    matching_panorama_size,
    point_directions,
)
from panollava.crop.sphere import direction_to_angles

LONGEST_SIDE = 32_700
"""cv2.remap refuses sides of 32,767 pixels and more; a little is left for the border."""

MOST_SAMPLES = 4
"""Samples a pixel, each way: more cost time and change nothing that can be seen."""

OUTSIDE = -16.0
"""Map coordinate of padding pixels: beyond the one-pixel border of the panorama, where samples are black."""


@dataclass(frozen=True)
class Sheet:
    """Views that are sampled alike.

    Attributes:
        views: their places among all views.
        source_size: (H, W) to which the panorama is shrunk for them.
        samples: samples of a pixel, each way.
    """

    views: tuple[int, ...]
    source_size: tuple[int, int]
    samples: int


@lru_cache(maxsize=64)
def sheets(
    panorama_size: tuple[int, int], cameras: tuple[Camera, ...], view_size: tuple[int, int]
) -> tuple[Sheet, ...]:
    """The views of one panorama by the way they are sampled, those of the largest source first."""
    views_of: dict[tuple[tuple[int, int], int], list[int]] = {}
    for view, camera in enumerate(cameras):
        size = _source_size(panorama_size, camera, view_size)
        views_of.setdefault((size, _samples(size, camera, view_size)), []).append(view)
    plan = [Sheet(tuple(views), size, samples) for (size, samples), views in views_of.items()]
    return tuple(sorted(plan, key=lambda sheet: math.prod(sheet.source_size), reverse=True))


def _source_size(panorama_size: tuple[int, int], camera: Camera, view_size: tuple[int, int]) -> tuple[int, int]:
    matching = matching_panorama_size(camera, view_size)
    size = panorama_size
    while all(have >= 2 * want for have, want in zip(size, matching, strict=True)) or max(size) > LONGEST_SIDE:
        size = half(size)
    return size


def half(size: tuple[int, int]) -> tuple[int, int]:
    """Half of (H, W), rounded up."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def _samples(source_size: tuple[int, int], camera: Camera, view_size: tuple[int, int]) -> int:
    height, width = source_size
    if camera.projection == EQUIRECTANGULAR:
        matching = matching_panorama_size(camera, view_size)
        samples = math.ceil(max(height / matching[0], width / matching[1]) - 1e-6)
    else:
        pixels_per_radian = min(width / (2 * math.pi), height / math.pi)
        samples = math.floor(pixels_per_radian / focal_length(camera, view_size))
    return min(max(1, samples), MOST_SAMPLES)


@lru_cache(maxsize=8)
def float_maps(
    source_size: tuple[int, int], cameras: tuple[Camera, ...], view_size: tuple[int, int], samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Maps into a panorama that has a border of one pixel.

    Args:
        source_size: (H, W) of the panorama without its border.
        cameras: n views.
        view_size: (h, w).
        samples: samples of a pixel, each way.

    Returns:
        Columns and rows, each ``(n, h * samples, w * samples)`` float32.
    """
    return _pixel_maps(source_size, cameras, view_size, samples)


@lru_cache(maxsize=8)
def fixed_maps(
    source_size: tuple[int, int], cameras: tuple[Camera, ...], view_size: tuple[int, int], samples: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The maps of ``float_maps`` view by view in the fixed-point form that remaps uint8 pictures fastest."""
    columns, rows = _pixel_maps(source_size, cameras, view_size, samples)
    return [cv2.convertMaps(*pair, cv2.CV_16SC2) for pair in zip(columns, rows, strict=True)]


def _pixel_maps(
    source_size: tuple[int, int], cameras: tuple[Camera, ...], view_size: tuple[int, int], samples: int
) -> tuple[np.ndarray, np.ndarray]:
    height, width = source_size
    across, down = _unit_maps(cameras, view_size, samples)
    is_padding = across < 0
    columns, rows = across * np.float32(width) + np.float32(0.5), down * np.float32(height) + np.float32(0.5)
    columns[is_padding], rows[is_padding] = OUTSIDE, OUTSIDE
    return columns, rows


@lru_cache(maxsize=8)
def _unit_maps(cameras: tuple[Camera, ...], view_size: tuple[int, int], samples: int) -> tuple[np.ndarray, np.ndarray]:
    """As ``float_maps``, in fractions of the panorama, -1 in padding: they serve panoramas of every size."""
    y, x = ((torch.arange(side * samples, dtype=torch.float64) + 0.5) / (side * samples) for side in view_size)
    across, down = (np.empty((len(cameras), len(y), len(x)), dtype=np.float32) for _ in range(2))
    # View by view: in float64 all of them at once would take gigabytes.
    for view, row in enumerate(camera_tensor(cameras, dtype=torch.float64)):
        longitude_rad, latitude_rad = direction_to_angles(point_directions(row, x, y))
        is_inside = _is_inside(view_size[1], row[Column.BOX_X0], row[Column.BOX_X1]) & _is_inside(
            view_size[0], row[Column.BOX_Y0], row[Column.BOX_Y1]
        ).unsqueeze(-1)
        is_inside = is_inside.repeat_interleave(samples, 0).repeat_interleave(samples, 1)
        across[view] = torch.where(is_inside, longitude_rad / (2 * math.pi) + 0.5, -1.0)
        down[view] = torch.where(is_inside, 0.5 - latitude_rad / math.pi, -1.0)
    return across, down


def _is_inside(pixels: int, start: Tensor, end: Tensor) -> Tensor:
    """Which of a row of pixels have their centre in the content box; a tie belongs to its end."""
    centres = (torch.arange(pixels, dtype=torch.float64) + 0.5) / pixels
    tolerance = 1e-9
    return (centres > start + tolerance) & (centres < end + tolerance)
