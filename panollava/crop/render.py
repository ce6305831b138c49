"""Views sampled from a panorama: one convention, three renderers, sampling maps kept between panoramas.

Every renderer samples bilinearly from a panorama that is shrunk first, by area, where its pixels are finer than
the view's, so that thin structures fade instead of flickering.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from panollava.crop.cameras import (
    EQUIRECTANGULAR,
    PERSPECTIVE,
    Camera,
    Column,
    camera_tensor,
    matching_panorama_size,
    point_directions,
)
from panollava.crop.sphere import direction_to_pixel

Renderer = Literal["cv2", "torch", "equilib"]

LONGEST_SIDE = 32_700
"""cv2.remap refuses sides of 32,767 pixels and more; a little is left for the border."""

_OUTSIDE = -16.0
"""Map coordinate of padding pixels: beyond the one-pixel border, where every renderer gives black."""


@dataclass(frozen=True)
class _Sheet:
    """Views that are sampled from the panorama at one size, and their maps stacked into one tall picture.

    Attributes:
        size: (H, W) of the panorama that they are sampled from.
        views: their places among all views.
        columns: ``(views * h, w)`` float32 map into that panorama with its border of one pixel.
        rows: likewise.
        fixed: the same maps in the fixed-point form that remaps uint8 pictures fastest.
    """

    size: tuple[int, int]
    views: tuple[int, ...]
    columns: np.ndarray
    rows: np.ndarray
    fixed: tuple[np.ndarray, np.ndarray]


def render_views(
    panorama: np.ndarray,
    cameras: Sequence[Camera],
    view_size: tuple[int, int],
    renderer: Renderer = "cv2",
    device: str = "cpu",
) -> np.ndarray:
    """The views that cameras have of a panorama.

    Args:
        panorama: ``(H, W, 3)`` uint8 or float32, the whole sphere.
        cameras: V cameras.
        view_size: (h, w).
        renderer: ``cv2`` with cached maps; ``torch`` the same on ``device``; ``equilib`` a second opinion, whose
            pixel centres lie a fraction of a pixel off (views that are not perspective are cut by cv2 there).
        device: where the torch renderer works.

    Returns:
        ``(V, h, w, 3)`` of the panorama's type.
    """
    _check(panorama, view_size, renderer, device)
    cameras = tuple(cameras)
    views = np.empty((len(cameras), *view_size, 3), dtype=panorama.dtype)
    source = panorama
    for sheet in _sheets(panorama.shape[:2], cameras, view_size):
        if source.shape[:2] != sheet.size:
            # Sheets come with the finest first, so that each shrinks the one before it.
            source = cv2.resize(source, sheet.size[::-1], interpolation=cv2.INTER_AREA)
        if renderer == "equilib":
            views[list(sheet.views)] = _sample_equilib(source, sheet, cameras, view_size)
        else:
            pixels = _sample_cv2(source, sheet) if renderer == "cv2" else _sample_torch(source, sheet, device)
            views[list(sheet.views)] = pixels.reshape(-1, *view_size, 3)
    return views


def _check(panorama: np.ndarray, view_size: tuple[int, int], renderer: str, device: str) -> None:
    if panorama.ndim != 3 or panorama.shape[2] != 3 or panorama.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"A panorama is an array (height, width, 3) of uint8 or float32, not {panorama.shape} of "
            f"{panorama.dtype}. Read files with read_panorama, which converts them."
        )
    if min(view_size) < 1:
        raise ValueError(f"crop.view_size={list(view_size)}: height and width are at least 1 pixel.")
    if renderer not in ("cv2", "torch", "equilib"):
        raise ValueError(f"crop.renderer={renderer}: choose cv2, torch or equilib.")
    if device != "cpu" and renderer != "torch":
        raise ValueError(
            f"crop.device={device} needs crop.renderer=torch; crop.renderer={renderer} runs on the CPU."
        )


@lru_cache(maxsize=32)
def _sheets(
    panorama_size: tuple[int, int], cameras: tuple[Camera, ...], view_size: tuple[int, int]
) -> tuple[_Sheet, ...]:
    sources = [_source_size(panorama_size, camera, view_size) for camera in cameras]
    sizes = sorted(set(sources), key=math.prod, reverse=True)
    return tuple(
        _sheet(size, tuple(view for view, source in enumerate(sources) if source == size), cameras, view_size)
        for size in sizes
    )


def _source_size(
    panorama_size: tuple[int, int], camera: Camera, view_size: tuple[int, int]
) -> tuple[int, int]:
    wanted = matching_panorama_size(camera, view_size)
    height, width = (min(have, want, LONGEST_SIDE) for have, want in zip(panorama_size, wanted, strict=True))
    return height, width


@lru_cache(maxsize=32)
def _sheet(
    size: tuple[int, int], views: tuple[int, ...], cameras: tuple[Camera, ...], view_size: tuple[int, int]
) -> _Sheet:
    height, width = view_size
    rows = camera_tensor([cameras[view] for view in views], dtype=torch.float64)
    x = (torch.arange(width, dtype=torch.float64) + 0.5) / width
    y = (torch.arange(height, dtype=torch.float64) + 0.5) / height
    column, row = direction_to_pixel(point_directions(rows, x, y), size)
    inside = _inside(x, rows, Column.BOX_X0, Column.BOX_X1)[:, None, :]
    inside = inside & _inside(y, rows, Column.BOX_Y0, Column.BOX_Y1)[:, :, None]
    columns, lines = (
        torch.where(inside, coordinate + 1, _OUTSIDE).flatten(0, 1).to(torch.float32).numpy()
        for coordinate in (column, row)
    )
    return _Sheet(size, views, columns, lines, cv2.convertMaps(columns, lines, cv2.CV_16SC2))


def _inside(position: Tensor, rows: Tensor, start: Column, end: Column) -> Tensor:
    """``(V, n)``: which of n positions lie in the content box of each view; a tie belongs to its end."""
    tolerance = 1e-9
    return (position > rows[:, start, None] + tolerance) & (position < rows[:, end, None] + tolerance)


def bordered(panorama: np.ndarray) -> np.ndarray:
    """The panorama with a border of one pixel that goes on around the seam and over the poles.

    Above the top row lies the top row again, turned by 180 degrees.
    """
    result = cv2.copyMakeBorder(panorama, 1, 1, 1, 1, cv2.BORDER_WRAP)
    for border, edge in ((0, 0), (-1, -1)):
        result[border, 1:-1] = _turned(panorama[edge])
        result[border, 0], result[border, -1] = result[border, -2], result[border, 1]
    return result


def _turned(row: np.ndarray) -> np.ndarray:
    """A row ``(W, 3)`` seen from the other side of the pole; of an odd width, halfway between two pixels."""
    half = len(row) // 2
    turned = np.roll(row, half, axis=0)
    if len(row) % 2 == 0:
        return turned
    mean = (turned.astype(np.float32) + np.roll(row, half + 1, axis=0).astype(np.float32)) / 2
    return mean.astype(row.dtype)


def _sample_cv2(source: np.ndarray, sheet: _Sheet) -> np.ndarray:
    maps = sheet.fixed if source.dtype == np.uint8 else (sheet.columns, sheet.rows)
    padded = bordered(source)
    # The result is as tall as all views together, so it too may pass the limit of cv2.remap.
    parts = range(0, len(sheet.rows), LONGEST_SIDE)
    return np.concatenate(
        [
            cv2.remap(
                padded,
                *(part[start : start + LONGEST_SIDE] for part in maps),
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_CONSTANT,
            )
            for start in parts
        ]
    )


def _sample_torch(source: np.ndarray, sheet: _Sheet, device: str) -> np.ndarray:
    pixels = torch.from_numpy(bordered(source)).to(device).permute(2, 0, 1).unsqueeze(0).float()
    height, width = pixels.shape[-2:]
    # Fractions of the span between the first and the last pixel centre, from -1 to 1.
    columns = torch.from_numpy(sheet.columns).to(device) * (2 / (width - 1)) - 1
    rows = torch.from_numpy(sheet.rows).to(device) * (2 / (height - 1)) - 1
    grid = torch.stack((columns, rows), dim=-1).unsqueeze(0)
    sampled = grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    sampled = sampled[0].permute(1, 2, 0)
    if source.dtype == np.uint8:
        sampled = sampled.round().clamp(0, 255).to(torch.uint8)
    return sampled.cpu().numpy()


def _sample_equilib(
    source: np.ndarray, sheet: _Sheet, cameras: Sequence[Camera], view_size: tuple[int, int]
) -> np.ndarray:
    from equilib import equi2pers

    views = [cameras[view] for view in sheet.views]
    if any(camera.projection == EQUIRECTANGULAR for camera in views):
        return _sample_cv2(source, sheet).reshape(-1, *view_size, 3)
    pixels = np.moveaxis(source, 2, 0)
    return np.stack(
        [np.moveaxis(equi2pers(pixels, **_equilib_view(camera, view_size)), 0, 2) for camera in views]
    )


def _equilib_view(camera: Camera, view_size: tuple[int, int]) -> dict[str, object]:
    height, width = view_size
    square_extent = 2 * math.atan(math.tan(camera.h_extent_rad / 2) * height / width)
    if camera.projection != PERSPECTIVE or abs(square_extent - camera.v_extent_rad) > 1e-6:
        raise ValueError(
            f"crop.renderer=equilib cannot cut a view of {math.degrees(camera.h_extent_rad):g} x "
            f"{math.degrees(camera.v_extent_rad):g} degrees into {height} x {width} pixels: its pixels are square. "
            "Use crop.renderer=cv2, or a view_size of that shape."
        )
    angles = {"yaw": camera.yaw_rad, "pitch": camera.pitch_rad, "roll": camera.roll_rad}
    return {
        "rots": angles,
        "height": height,
        "width": width,
        "fov_x": math.degrees(camera.h_extent_rad),
        "z_down": True,
    }
