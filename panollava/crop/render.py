"""Views sampled from a panorama: one convention, three renderers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
import torch
from torch.nn.functional import grid_sample

from panollava.crop.cameras import PERSPECTIVE, Camera
from panollava.crop.maps import fixed_maps, float_maps, half, sheets

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
    cameras = tuple(cameras)
    views = np.empty((len(cameras), *view_size, 3), dtype=panorama.dtype)
    source, padded = panorama, None
    for sheet in sheets(panorama.shape[:2], cameras, view_size):
        if padded is None or source.shape[:2] != sheet.source_size:
            # The largest source comes first, so that each is shrunk from the one before it.
            source = _shrink(source, sheet.source_size)
            padded = bordered(source)
        some = tuple(cameras[view] for view in sheet.views)
        pictures: Sequence[np.ndarray] | np.ndarray
        if renderer == "cv2":
            pictures = _sample_cv2(padded, some, view_size, sheet.samples)
        elif renderer == "torch":
            pictures = _sample_torch(padded, some, view_size, sheet.samples, device)
        else:
            pictures = _sample_equilib(source, some, view_size, sheet.samples)
        for view, picture in zip(sheet.views, pictures, strict=True):
            views[view] = _average(picture, view_size)
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


def bordered(panorama: np.ndarray) -> np.ndarray:
    """The panorama with a border of one pixel that goes on around the seam and over the poles.

    Above the top row lies the top row again, turned by 180 degrees.
    """
    result = cv2.copyMakeBorder(panorama, 1, 1, 1, 1, cv2.BORDER_WRAP)
    for edge in (0, -1):
        result[edge, 1:-1] = _turned(panorama[edge])
        result[edge, 0], result[edge, -1] = result[edge, -2], result[edge, 1]
    return result


def _turned(row: np.ndarray) -> np.ndarray:
    """A row ``(W, 3)`` as seen from across the pole; of an odd width, halfway between two pixels."""
    middle = len(row) // 2
    turned = np.roll(row, middle, axis=0)
    if len(row) % 2 == 0:
        return turned
    mean = (turned.astype(np.float32) + np.roll(row, middle + 1, axis=0).astype(np.float32)) / 2
    return mean.astype(row.dtype)


def _average(picture: np.ndarray, view_size: tuple[int, int]) -> np.ndarray:
    if picture.shape[:2] == view_size:
        return picture
    return cv2.resize(picture, view_size[::-1], interpolation=cv2.INTER_AREA)


def _sample_cv2(
    padded: np.ndarray, cameras: tuple[Camera, ...], view_size: tuple[int, int], samples: int
) -> list[np.ndarray]:
    size = (padded.shape[0] - 2, padded.shape[1] - 2)
    pairs: Sequence[tuple[np.ndarray, np.ndarray]]
    if padded.dtype == np.uint8:
        pairs = fixed_maps(size, cameras, view_size, samples)
    else:
        pairs = list(zip(*float_maps(size, cameras, view_size, samples), strict=True))
    return [
        cv2.remap(padded, first, second, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT) for first, second in pairs
    ]


def _sample_torch(
    padded: np.ndarray, cameras: tuple[Camera, ...], view_size: tuple[int, int], samples: int, device: str
) -> np.ndarray:
    height, width = padded.shape[:2]
    columns, rows = float_maps((height - 2, width - 2), cameras, view_size, samples)
    pixels = torch.from_numpy(padded).to(device).permute(2, 0, 1).unsqueeze(0).float()
    # Fractions of the span between the first and the last pixel centre, from -1 to 1.
    across = torch.from_numpy(columns).to(device) * (2 / (width - 1)) - 1
    down = torch.from_numpy(rows).to(device) * (2 / (height - 1)) - 1
    sampled = grid_sample(
        pixels.expand(len(cameras), -1, -1, -1),
        torch.stack((across, down), dim=-1),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
    )
    if padded.dtype == np.uint8:
        sampled = sampled.round().clamp(0, 255).to(torch.uint8)
    return sampled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _sample_equilib(
    source: np.ndarray, cameras: tuple[Camera, ...], view_size: tuple[int, int], samples: int
) -> list[np.ndarray]:
    from equilib import equi2pers

    pixels = np.moveaxis(source, 2, 0)
    pictures = []
    for camera in cameras:
        if camera.projection != PERSPECTIVE:
            pictures += _sample_cv2(bordered(source), (camera,), view_size, samples)
            continue
        _check_square_pixels(camera, view_size)
        view = equi2pers(
            pixels,
            rots={"yaw": camera.yaw_rad, "pitch": camera.pitch_rad, "roll": camera.roll_rad},
            height=view_size[0] * samples,
            width=view_size[1] * samples,
            fov_x=math.degrees(camera.h_extent_rad),
            z_down=True,
        )
        pictures.append(np.ascontiguousarray(np.moveaxis(view, 0, 2)))
    return pictures


def _check_square_pixels(camera: Camera, view_size: tuple[int, int]) -> None:
    height, width = view_size
    square_extent = 2 * math.atan(math.tan(camera.h_extent_rad / 2) * height / width)
    if abs(square_extent - camera.v_extent_rad) > 1e-6:
        raise ValueError(
            f"crop.renderer=equilib cannot cut a view of {math.degrees(camera.h_extent_rad):g} x "
            f"{math.degrees(camera.v_extent_rad):g} degrees into {height} x {width} pixels: its pixels are "
            "square. Use crop.renderer=cv2, or a view_size of that shape."
        )
