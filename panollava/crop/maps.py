"""The sampling maps of views: how far a panorama is halved, where its samples lie, and how many make a pixel.

A panorama is halved while it stays as fine as a view needs, for narrow strips each side by itself. Each view pixel is
the mean of enough samples to include every pixel of the panorama, so that thin structures fade instead of flickering.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import torch

from panollava.crop.cameras import (
    CENTRE_MARGIN,
    EQUIRECTANGULAR,
    PERSPECTIVE,
    Camera,
    camera_tensor,
    needed_panorama_size,
    pixels_per_radian,
    point_directions,
)
from panollava.crop.partial import Extent, Size
from panollava.crop.sphere import direction_to_angles

MAX_SIDE = 32_700  # cv2.remap refuses sides of 32,767 pixels and more; this leaves room for the border
MAX_SAMPLES = 4  # Samples per pixel, each way. More cost time without a visible change
MAX_STEP = {PERSPECTIVE: 1.55, EQUIRECTANGULAR: 1.4}
"""Largest distance between samples in panorama pixels. A bilinear sample covers two; in a tile the distance is that
between its centre and its edge, where samples are closer."""
ENLARGED = 0.6  # panorama pixels per view pixel up to which the view is enlarged: one sample per pixel is enough


@dataclass(frozen=True)
class ViewGroup:
    """Views that are sampled in the same way."""

    views: tuple[int, ...]  # their indices among all views
    source_size: Size  # of the shrunk panorama
    extent: Extent  # what the sphere takes of it
    samples: int  # per pixel, each way
    content: tuple[int, int, int, int]  # top, left, bottom, right of the unpadded pixels, the last two exclusive
    is_strip: bool  # its source may be halved one way only, so no other is shrunk from it

    @property
    def content_size(self) -> Size:
        """(h, w) of the pixels that are not padding."""
        top, left, bottom, right = self.content
        return bottom - top, right - left


@lru_cache(maxsize=64)
def view_groups(
    panorama_size: Size, cameras: tuple[Camera, ...], view_size: Size, extent: Extent | None = None
) -> tuple[ViewGroup, ...]:
    """Groups views by their sampling: strips, then those with the largest source. ``extent`` is that of the sphere."""
    rows, columns = extent or panorama_size
    views_of: dict[tuple[Size, Extent, int, tuple[int, int, int, int], bool], list[int]] = {}
    for view, camera in enumerate(cameras):
        size, (down, across) = _source_size(panorama_size, camera, view_size)
        taken, samples = (rows * down, columns * across), _samples(size, camera, view_size)
        key = (size, taken, samples, _content(camera, view_size), is_strip(camera, view_size))
        views_of.setdefault(key, []).append(view)
    plan = [ViewGroup(tuple(views), *key) for key, views in views_of.items()]
    return tuple(sorted(plan, key=lambda group: (group.is_strip, math.prod(group.source_size)), reverse=True))


def half(size: Size, by: tuple[int, int] = (2, 2)) -> Size:
    """(H, W) with each side divided by 2, or as ``by`` says, and rounded up."""
    return -(-size[0] // by[0]), -(-size[1] // by[1])


def is_strip(camera: Camera, view_size: Size) -> bool:
    """Whether a view needs so much more of one side of a panorama that samples would skip pixels of the other."""
    down, across = needed_panorama_size(camera, view_size)
    most = 2 * MAX_SAMPLES / CENTRE_MARGIN  # a bilinear sample covers two pixels
    return camera.projection == EQUIRECTANGULAR and not down <= across <= most * down


def _source_size(panorama_size: Size, camera: Camera, view_size: Size) -> tuple[Size, tuple[float, float]]:
    """(H, W) to which the panorama is shrunk for a view, and the factor of each."""
    needed = needed_panorama_size(camera, view_size)
    size, down, across = panorama_size, 1.0, 1.0
    while all(have >= 2 * want for have, want in zip(size, needed, strict=True)) or max(size) > MAX_SIDE:
        size, down, across = half(size), down / 2, across / 2
    if is_strip(camera, view_size):
        most = MAX_SAMPLES * MAX_STEP[EQUIRECTANGULAR] / CENTRE_MARGIN
        while size[0] > most * needed[0]:
            size, down = half(size, (2, 1)), down / 2
        while size[1] > most * needed[1]:
            size, across = half(size, (1, 2)), across / 2
    return size, (down, across)


def _samples(source_size: Size, camera: Camera, view_size: Size) -> int:
    centre, finest = pixels_per_radian(camera, view_size)
    have = (source_size[0] / math.pi, source_size[1] / (2 * math.pi))
    if camera.projection == PERSPECTIVE:
        typical = (math.sqrt(min(centre) * max(finest)),) * 2
    else:
        typical = finest
    apart = max(pixels / wanted for pixels, wanted in zip(have, typical, strict=True))
    if apart <= ENLARGED:
        return 1
    return min(max(2, math.ceil(apart / MAX_STEP[camera.projection] - 1e-6)), MAX_SAMPLES)


def _content(camera: Camera, view_size: Size) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the pixels whose centre is in the content box, at least one each way."""
    x0, y0, x1, y1 = camera.box
    (top, bottom), (left, right) = _span(y0, y1, view_size[0]), _span(x0, x1, view_size[1])
    return top, left, bottom, right


def _span(start: float, end: float, pixels: int) -> tuple[int, int]:
    # A pixel whose centre lies on the end of the box belongs to it.
    first, beyond = (math.floor(pixels * (edge + 1e-9) - 0.5) + 1 for edge in (start, end))
    first = min(first, pixels - 1)
    return first, max(beyond, first + 1)


@lru_cache(maxsize=8)
def float_maps(group: ViewGroup, cameras: tuple[Camera, ...], view_size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the samples of a group's n views in its source, which has a border of one pixel.

    Columns and rows, each ``(n, content height * samples, content width * samples)`` float32, of (h, w) views.
    """
    rows, columns = group.extent
    across, down = _unit_maps(tuple(cameras[view] for view in group.views), view_size, group.content, group.samples)
    # Fractions to pixel indices: - 1/2 for the pixel centre, + 1 for the border.
    return across * np.float32(columns) + np.float32(0.5), down * np.float32(rows) + np.float32(0.5)


@lru_cache(maxsize=8)
def fixed_maps(group: ViewGroup, cameras: tuple[Camera, ...], view_size: Size) -> list[tuple[np.ndarray, np.ndarray]]:
    """The maps of ``float_maps`` view by view in the fixed-point form that remaps uint8 pictures fastest."""
    columns, rows = float_maps.__wrapped__(group, cameras, view_size)  # not cached in both forms
    return [cv2.convertMaps(*pair, cv2.CV_16SC2) for pair in zip(columns, rows, strict=True)]


@lru_cache(maxsize=64)
def row_span(group: ViewGroup, cameras: tuple[Camera, ...], view_size: Size) -> tuple[int, int]:
    """First and last (exclusive) row that those maps reach in the source with its border."""
    _, down = _unit_maps(tuple(cameras[view] for view in group.views), view_size, group.content, group.samples)
    rows = group.extent[0]
    # A sample lies between two rows, and the maps are rounded.
    first, last = math.floor(float(down.min()) * rows), math.ceil(float(down.max()) * rows) + 1
    return max(first - 1, 0), min(last + 2, group.source_size[0] + 2)


@lru_cache(maxsize=8)
def _unit_maps(
    cameras: tuple[Camera, ...], view_size: Size, content: tuple[int, int, int, int], samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """As ``float_maps``, in fractions of the panorama, which are the same for panoramas of every size."""
    top, left, bottom, right = content
    size = (len(cameras), (bottom - top) * samples, (right - left) * samples)
    across, down = (np.empty(size, dtype=np.float32) for _ in range(2))
    views_of: dict[Camera, list[int]] = {}
    for view, camera in enumerate(cameras):
        views_of.setdefault(replace(camera, yaw_rad=0.0), []).append(view)
    for ahead, views in views_of.items():
        # Views that differ only in yaw are one view rotated about the vertical axis: a shift of the columns.
        turns, rows = _ahead_maps(ahead, view_size, content, samples)
        down[views] = rows
        for view in views:
            rotated = turns + cameras[view].yaw_rad / (2 * math.pi)
            across[view] = rotated - np.floor(rotated)
    return across, down


@lru_cache(maxsize=32)  # crop=adaptive has few angles besides the yaw, in another combination for each panorama
def _ahead_maps(
    camera: Camera, view_size: Size, content: tuple[int, int, int, int], samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """The maps of a view at yaw 0, ``(h, w)`` each: fractions of a turn in float64, and of the height in float32."""
    top, left, bottom, right = content
    y, x = _positions(top, bottom, view_size[0], samples), _positions(left, right, view_size[1], samples)
    directions = point_directions(camera_tensor([camera], dtype=torch.float64)[0], x, y)
    longitude_rad, latitude_rad = (angle.numpy() for angle in direction_to_angles(directions))
    return longitude_rad / (2 * math.pi) + 0.5, (0.5 - latitude_rad / math.pi).astype(np.float32)


def _positions(first: int, beyond: int, pixels: int, samples: int) -> torch.Tensor:
    """Positions of the samples of a row of pixels, as fractions of the view."""
    return (first + (torch.arange((beyond - first) * samples, dtype=torch.float64) + 0.5) / samples) / pixels
