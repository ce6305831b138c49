"""Views sampled from a panorama: one convention, three renderers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import cv2
import numpy as np
import torch

from panollava.crop.cameras import PERSPECTIVE, Camera
from panollava.crop.maps import Sheet, fixed_maps, float_maps, half, row_span, sheets
from panollava.crop.render_torch import render_batch

Renderer = Literal["cv2", "torch", "equilib"]


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
        renderer: ``cv2``; ``torch``, the same on ``device``; ``equilib``, a second opinion whose pixel
            centres lie a fraction of a pixel off (it cuts perspective views, cv2 the others).
        device: where the torch renderer works.

    Returns:
        ``(V, h, w, 3)`` of the panorama's type.
    """
    _check(panorama, view_size, renderer, device)
    if renderer == "torch":
        batch = torch.from_numpy(np.ascontiguousarray(panorama)).to(device).permute(2, 0, 1).unsqueeze(0)
        return render_batch(batch, cameras, view_size)[0].permute(0, 2, 3, 1).contiguous().cpu().numpy()
    cameras = tuple(cameras)
    views = np.zeros((len(cameras), *view_size, 3), dtype=panorama.dtype)
    source = panorama
    for sheet in sheets(panorama.shape[:2], cameras, view_size):
        # The largest source comes first, so that each is shrunk from the one before it.
        source = _shrink(source, sheet.source_size)
        pictures = _sample_cv2(source, sheet, cameras, view_size)
        if renderer == "equilib":
            pictures = _sample_equilib(source, sheet, cameras, pictures)
        top, left, bottom, right = sheet.content
        for view, picture in zip(sheet.views, pictures, strict=True):
            views[view, top:bottom, left:right] = _average(picture, sheet.content_size)
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
        raise ValueError(f"crop.device={device} needs crop.renderer=torch: {renderer} runs on the CPU only.")


def _shrink(panorama: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The panorama halved down to a size that ``half`` leads to."""
    while panorama.shape[:2] != size:
        # The mean of 2 x 2 pixels; INTER_AREA would be many times slower on odd sides.
        panorama = cv2.resize(panorama, half(panorama.shape[:2])[::-1], interpolation=cv2.INTER_LINEAR)
    return panorama


def bordered(panorama: np.ndarray, rows: tuple[int, int] | None = None) -> np.ndarray:
    """The panorama with a border of one pixel that goes on around the seam and over the poles.

    Above the top row lies the top row again, turned by 180 degrees.

    Args:
        panorama: ``(H, W, 3)``.
        rows: first and last, exclusive, of the rows of the result that are filled; None fills all.
    """
    height, width = panorama.shape[:2]
    result = np.empty((height + 2, width + 2, 3), dtype=panorama.dtype)
    first, beyond = (0, height + 2) if rows is None else rows
    inner = slice(max(first, 1), min(beyond, height + 1))
    result[inner, 1:-1] = panorama[inner.start - 1 : inner.stop - 1]
    for edge, row in ((0, 0), (height + 1, height - 1)):
        if first <= edge < beyond:
            result[edge, 1:-1] = _turned(panorama[row])
    filled = result[first:beyond]
    filled[:, 0], filled[:, -1] = filled[:, -2], filled[:, 1]
    return result


def _turned(row: np.ndarray) -> np.ndarray:
    """A row ``(W, 3)`` as seen from across the pole; of an odd width, halfway between two pixels."""
    middle = len(row) // 2
    turned = np.roll(row, middle, axis=0)
    if len(row) % 2 == 0:
        return turned
    mean = (turned.astype(np.float32) + np.roll(row, middle + 1, axis=0).astype(np.float32)) / 2
    return np.floor(mean + 0.5).astype(row.dtype) if row.dtype == np.uint8 else mean


def _average(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if picture.shape[:2] == size:
        return picture
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)


def _sample_cv2(
    source: np.ndarray, sheet: Sheet, cameras: tuple[Camera, ...], view_size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """The content of a sheet's views, not averaged yet; each picture is gone when the next one is asked for."""
    pairs: Iterable[tuple[np.ndarray, np.ndarray]]
    if source.dtype == np.uint8:
        pairs = fixed_maps(sheet, cameras, view_size)
    else:
        pairs = zip(*float_maps(sheet, cameras, view_size), strict=True)
    # Tiles at the horizon need half of the rows.
    padded = bordered(source, row_span(sheet, cameras, view_size))
    picture = None
    for first, second in pairs:
        picture = cv2.remap(padded, first, second, cv2.INTER_LINEAR, dst=picture)
        yield picture


def _sample_equilib(
    source: np.ndarray, sheet: Sheet, cameras: tuple[Camera, ...], by_cv2: Iterator[np.ndarray]
) -> Iterator[np.ndarray]:
    """Pictures as those in ``by_cv2``, which stay where the camera is not a perspective one."""
    from equilib import equi2pers

    pixels = np.moveaxis(source, 2, 0)
    for view, picture in zip(sheet.views, by_cv2, strict=True):
        camera = cameras[view]
        if camera.projection != PERSPECTIVE:
            yield picture
            continue
        _check_square_pixels(camera, sheet.content_size)
        cut = equi2pers(
            pixels,
            rots={"yaw": camera.yaw_rad, "pitch": camera.pitch_rad, "roll": camera.roll_rad},
            height=picture.shape[0],
            width=picture.shape[1],
            fov_x=math.degrees(camera.h_extent_rad),
            z_down=True,
        )
        yield np.ascontiguousarray(np.moveaxis(cut, 0, 2))


def _check_square_pixels(camera: Camera, size: tuple[int, int]) -> None:
    height, width = size
    square_extent = 2 * math.atan(math.tan(camera.h_extent_rad / 2) * height / width)
    if abs(square_extent - camera.v_extent_rad) > 1e-6:
        raise ValueError(
            f"crop.renderer=equilib cannot cut a view of {math.degrees(camera.h_extent_rad):g} x "
            f"{math.degrees(camera.v_extent_rad):g} degrees into {height} x {width} pixels: its pixels are "
            "square. Use crop.renderer=cv2, or a view_size of that shape."
        )
