"""Views sampled from a panorama on the CPU with cv2 or equilib; ``render_torch`` does the same on any device."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import cv2
import numpy as np
import torch

from panollava.crop.cameras import PERSPECTIVE, Camera
from panollava.crop.maps import ViewGroup, fixed_maps, float_maps, half, row_span, view_groups
from panollava.crop.partial import Extent, Size, extent_of
from panollava.crop.render_torch import render_batch

Renderer = Literal["cv2", "torch", "equilib"]


def render_views(
    panorama: np.ndarray, cameras: Sequence[Camera], view_size: Size, renderer: Renderer = "cv2", device: str = "cpu"
) -> np.ndarray:
    """Views ``(V, h, w, 3)`` of a panorama ``(H, W, 3)`` of the whole sphere, both uint8 or float32.

    Args:
        renderer: ``cv2``; ``torch``, the same on ``device``; ``equilib``, an independent implementation for
            comparison whose pixel centres are off by a fraction of a pixel (perspective views only, others by cv2).
    """
    _check(panorama, view_size, renderer, device)
    if renderer == "torch":
        batch = torch.from_numpy(np.ascontiguousarray(panorama)).to(device).permute(2, 0, 1).unsqueeze(0)
        result = render_batch(batch, cameras, view_size, extent_of(panorama))[0]
        return result.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    cameras = tuple(cameras)
    views = np.zeros((len(cameras), *view_size, 3), dtype=panorama.dtype)
    larger = np.asarray(panorama), extent_of(panorama)
    for group in view_groups(panorama.shape[:2], cameras, view_size, larger[1]):
        source, _ = shrunk = _shrink(*larger, group.source_size)
        if not group.is_strip:  # the largest source comes first, so that each is shrunk from the one before it
            larger = shrunk
        pictures = _sample_cv2(source, group, cameras, view_size)
        if renderer == "equilib":
            pictures = _sample_equilib(source, group, cameras, pictures)
        top, left, bottom, right = group.content
        for view, picture in zip(group.views, pictures, strict=True):
            if group.samples > 1:
                picture = cv2.resize(picture, group.content_size[::-1], interpolation=cv2.INTER_AREA)
            views[view, top:bottom, left:right] = picture
    return views


def _check(panorama: np.ndarray, view_size: Size, renderer: str, device: str) -> None:
    if panorama.ndim != 3 or panorama.shape[2] != 3 or panorama.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"A panorama is an array (height, width, 3) of uint8 or float32, not {panorama.shape} of "
            f"{panorama.dtype}. Read files with read_panorama, which converts them."
        )
    if min(view_size) < 1:
        raise ValueError(f"crop.view_size={list(view_size)}: height and width are at least 1 pixel.")
    if renderer not in ("cv2", "torch", "equilib"):
        raise ValueError(f"crop.renderer={renderer}: choose cv2, torch or equilib.")
    check_device(device, renderer)


def _shrink(panorama: np.ndarray, extent: Extent, size: Size) -> tuple[np.ndarray, Extent]:
    """The panorama and its extent, halved until it has a size that repeated ``half`` gives."""
    while (have := panorama.shape[:2]) != size:
        even, by = panorama, (1 + (have[0] > size[0]), 1 + (have[1] > size[1]))
        if have[0] % by[0] or have[1] % by[1]:
            # An odd side gets one pixel of the border at its end.
            even = bordered(panorama, extent)[1:, 1:][: have[0] + have[0] % by[0], : have[1] + have[1] % by[1]]
        panorama = cv2.resize(even, half(have, by)[::-1], interpolation=cv2.INTER_LINEAR)  # mean of 2 x 2 or 2 pixels
        extent = extent[0] / by[0], extent[1] / by[1]
    return panorama, extent


def bordered(panorama: np.ndarray, extent: Extent, filled: tuple[int, int] | None = None) -> np.ndarray:
    """A panorama ``(H, W, 3)`` with a border of one pixel that continues it around the seam and over the poles.

    Above the top row lies the top row again, rotated by 180 degrees. The sphere takes ``extent`` rows and columns.
    ``filled`` are the first and last (exclusive) row of the result that are needed; None for all.
    """
    height, width = panorama.shape[:2]
    rows, columns = extent
    result = np.empty((height + 2, width + 2, 3), dtype=panorama.dtype)
    first, beyond = filled or (0, height + 2)
    inner = slice(max(first, 1), min(beyond, height + 1))
    result[inner, 1:-1] = panorama[inner.start - 1 : inner.stop - 1]
    for edge, position in ((0, 0.0), (height + 1, 2 * rows - 1 - height)):
        if first <= edge < beyond:
            result[edge, 1:-1] = _rotated(_between(panorama, position), columns / 2)
    needed = result[first:beyond].swapaxes(0, 1)
    needed[0], needed[-1] = (_between(needed[1:-1], position) for position in (columns - 1, width - columns))
    return result


def _rotated(row: np.ndarray, by: float) -> np.ndarray:
    """A row ``(W, 3)`` shifted to the left by ``by`` columns, in a circle."""
    first = math.floor(by)
    return _mixed(np.roll(row, -first, axis=0), np.roll(row, -first - 1, axis=0), by - first)


def _between(lines: np.ndarray, position: float) -> np.ndarray:
    """The row (of a transposed panorama the column) at a position that may lie between two of them."""
    first = math.floor(position)
    return _mixed(lines[first % len(lines)], lines[(first + 1) % len(lines)], position - first)


def _mixed(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    if share == 0:
        return one
    mean = one.astype(np.float32) * (1 - share) + other.astype(np.float32) * share
    return np.floor(mean + 0.5).astype(one.dtype) if one.dtype == np.uint8 else mean


def _sample_cv2(
    source: np.ndarray, group: ViewGroup, cameras: tuple[Camera, ...], view_size: Size
) -> Iterator[np.ndarray]:
    """The content of a group's views, not averaged yet. Each picture is overwritten by the next one."""
    pairs: Iterable[tuple[np.ndarray, np.ndarray]]
    if source.dtype == np.uint8:
        pairs = fixed_maps(group, cameras, view_size)
    else:
        pairs = zip(*float_maps(group, cameras, view_size), strict=True)
    # Tiles at the horizon need half of the rows.
    padded = bordered(source, group.extent, row_span(group, cameras, view_size))
    picture = None
    for first, second in pairs:
        picture = cv2.remap(padded, first, second, cv2.INTER_LINEAR, dst=picture)
        yield picture


def _sample_equilib(
    source: np.ndarray, group: ViewGroup, cameras: tuple[Camera, ...], by_cv2: Iterator[np.ndarray]
) -> Iterator[np.ndarray]:
    """The pictures of ``by_cv2`` with perspective views replaced by equilib's."""
    from equilib import equi2pers

    pixels = np.moveaxis(source, 2, 0)
    for view, picture in zip(group.views, by_cv2, strict=True):
        camera = cameras[view]
        if camera.projection != PERSPECTIVE:
            yield picture
            continue
        _check_square_pixels(camera, group.content_size)
        cut = equi2pers(
            pixels,
            rots={"yaw": camera.yaw_rad, "pitch": camera.pitch_rad, "roll": camera.roll_rad},
            height=picture.shape[0],
            width=picture.shape[1],
            fov_x=math.degrees(camera.h_extent_rad),
            z_down=True,
        )
        yield np.ascontiguousarray(np.moveaxis(cut, 0, 2))


def _check_square_pixels(camera: Camera, size: Size) -> None:
    height, width = size
    square_extent = 2 * math.atan(math.tan(camera.h_extent_rad / 2) * height / width)
    if abs(square_extent - camera.v_extent_rad) > 1e-6:
        raise ValueError(
            f"crop.renderer=equilib cannot cut a view of {math.degrees(camera.h_extent_rad):g} x "
            f"{math.degrees(camera.v_extent_rad):g} degrees into {height} x {width} pixels: its pixels are "
            "square. Use crop.renderer=cv2, or a view_size of that shape."
        )


def check_device(device: str, renderer: str) -> None:
    """Raise ValueError if the renderer cannot use ``crop.device``, or this machine has no such device."""
    if device == "cpu":
        return
    if renderer != "torch":
        raise ValueError(f"crop.device={device} needs crop.renderer=torch: {renderer} runs on the CPU only.")
    kind, index, count = _parsed(device)
    if kind not in ("cuda", "mps") or index < 0:
        raise ValueError(f"crop.device={device}: allowed are cpu, cuda, cuda:<number> and mps.")
    if index >= count:
        raise ValueError(
            f"crop.device={device} is not there: torch finds {count} {kind} devices on this machine. Name one "
            "of them, or use crop.device=cpu."
        )


def check_workers(device: str, num_workers: int) -> None:
    """Raise ValueError if loader workers would cut views on a device other than the CPU."""
    if device != "cpu" and num_workers > 0:
        raise ValueError(
            f"crop.device={device} needs num_workers=0, not {num_workers}: a process that was forked to load pictures "
            "cannot use the device of its parent. Use crop.device=cpu to cut views in several processes."
        )


def available_device(device: str) -> str:
    """The device that a run recorded, or the CPU if this machine has none such: the views are the same."""
    _, index, count = _parsed(device)
    return device if 0 <= index < count else "cpu"


def _parsed(device: str) -> tuple[str, int, int]:
    """Kind of a device, its index (-1 if it is no number) and how many of the kind this machine has."""
    kind, _, index = device.partition(":")
    if kind == "mps":
        count = int(torch.backends.mps.is_available())
    else:
        count = torch.cuda.device_count() if kind == "cuda" else 0
    return kind, int(index) if index.isdecimal() else (-1 if index else 0), count
