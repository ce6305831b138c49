"""``V`` views of each of ``B`` panoramas, sampled with torch: on any device, and differentiable."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from panollava.crop.cameras import Camera
from panollava.crop.maps import ViewGroup, float_maps, view_groups
from panollava.crop.partial import Extent, Size

_FIXED_STEPS = 32  # steps per pixel in the fixed-point maps with which cv2 samples uint8 pictures


def render_batch(panoramas: Tensor, cameras: Sequence[Camera], view_size: Size, extent: Extent | None = None) -> Tensor:
    """Views ``(B, V, 3, h, w)`` of panoramas ``(B, 3, H, W)``, as ``render_views`` cuts them, on their device.

    The panoramas are uint8 or floating point, each the whole sphere, which takes ``extent`` rows and columns (None for
    all). The sampling of floating-point panoramas is differentiable with respect to them.
    """
    if (
        panoramas.ndim != 4
        or panoramas.shape[1] != 3
        or not (panoramas.dtype == torch.uint8 or panoramas.is_floating_point())
    ):
        raise ValueError(
            "Panoramas are a tensor (panoramas, 3, height, width) of uint8 or floating point, not "
            f"{tuple(panoramas.shape)} of {panoramas.dtype}."
        )
    if min(view_size) < 1:
        raise ValueError(f"crop.view_size={list(view_size)}: height and width are at least 1 pixel.")
    cameras, is_bytes = tuple(cameras), panoramas.dtype == torch.uint8
    # Half precision would lose the fractions of a pixel.
    source = panoramas if panoramas.dtype == torch.float64 else panoramas.float()
    size = panoramas.shape[2], panoramas.shape[3]
    extent = extent or (float(size[0]), float(size[1]))
    views = source.new_zeros(len(panoramas), len(cameras), 3, *view_size)
    for group in view_groups(size, cameras, view_size, extent):
        shrunk = _shrink(source, extent, group.source_size, is_bytes)
        top, left, bottom, right = group.content
        views[:, list(group.views), :, top:bottom, left:right] = _sample(shrunk[0], group, cameras, view_size, is_bytes)
        if not group.is_strip:  # the largest source comes first, so that each is shrunk from the one before it
            source, extent = shrunk
    return views.to(panoramas.dtype)


def _shrink(source: Tensor, extent: Extent, size: Size, is_bytes: bool) -> tuple[Tensor, Extent]:
    """Panoramas ``(B, 3, H, W)`` and their extent, halved until they have a size that repeated ``half`` gives."""
    while (have := (source.shape[2], source.shape[3])) != size:
        even, by = source, (1 + (have[0] > size[0]), 1 + (have[1] > size[1]))
        if have[0] % by[0] or have[1] % by[1]:
            even = _bordered(source, extent, is_bytes)[..., 1:, 1:]
            even = even[..., : have[0] + have[0] % by[0], : have[1] + have[1] % by[1]]
        source = avg_pool2d(even, by)
        source = _half_up(source) if is_bytes else source
        extent = extent[0] / by[0], extent[1] / by[1]
    return source, extent


def _sample(source: Tensor, group: ViewGroup, cameras: tuple[Camera, ...], view_size: Size, is_bytes: bool) -> Tensor:
    """The content ``(B, n, 3, h', w')`` of a group's n views."""
    grid = _grid(group, cameras, view_size, is_bytes, source.device).to(source.dtype)
    # All views below one another: (1, n h', w', 2), so that the panoramas need not be repeated.
    stacked = grid.flatten(0, 1).expand(len(source), -1, -1, -1)
    sampled = grid_sample(_bordered(source, group.extent, is_bytes), stacked, mode="bilinear", align_corners=True)
    sampled = _half_up(sampled) if is_bytes else sampled
    if group.samples > 1:
        sampled = avg_pool2d(sampled, group.samples)
        if is_bytes:
            # cv2 rounds the mean of 2 x 2 pixels up and that of more to the even side.
            sampled = _half_up(sampled) if group.samples == 2 else sampled.round()
    return sampled.unflatten(2, (len(group.views), -1)).transpose(1, 2)


@lru_cache(maxsize=8)
def _grid(
    group: ViewGroup, cameras: tuple[Camera, ...], view_size: Size, is_bytes: bool, device: torch.device
) -> Tensor:
    """The maps of a group as ``(n, h', w', 2)``, from -1 at the first pixel centre of the border to 1 at the last."""
    height, width = group.source_size
    columns, rows = (torch.from_numpy(positions).double() for positions in float_maps(group, cameras, view_size))
    if is_bytes:
        columns, rows = ((positions * _FIXED_STEPS).round() / _FIXED_STEPS for positions in (columns, rows))
    grid = torch.stack((columns * (2 / (width + 1)) - 1, rows * (2 / (height + 1)) - 1), dim=-1)
    return grid.float().to(device)


def _bordered(source: Tensor, extent: Extent, is_bytes: bool) -> Tensor:
    """``(B, 3, H + 2, W + 2)``: continued around the seam and, rotated by 180 degrees, over the poles."""
    height, width = source.shape[2:]
    rows, columns = extent
    whole = torch.cat(
        (
            _rotated(source[:, :, :1], columns / 2, is_bytes),
            source,
            _rotated(_between(source, 2 * rows - 1 - height, 2, is_bytes), columns / 2, is_bytes),
        ),
        dim=2,
    )
    left, right = (_between(whole, position, 3, is_bytes) for position in (columns - 1, width - columns))
    return torch.cat((left, whole, right), dim=3)


def _rotated(row: Tensor, by: float, is_bytes: bool) -> Tensor:
    """A row ``(B, 3, 1, W)`` shifted to the left by ``by`` columns, in a circle."""
    first = math.floor(by)
    return _mixed(row.roll(-first, dims=3), row.roll(-first - 1, dims=3), by - first, is_bytes)


def _between(source: Tensor, position: float, dim: int, is_bytes: bool) -> Tensor:
    """The row or column, kept as a dimension, at a position that may lie between two of them."""
    first, count = math.floor(position), source.shape[dim]
    one, other = (source.narrow(dim, index % count, 1) for index in (first, first + 1))
    return _mixed(one, other, position - first, is_bytes)


def _mixed(one: Tensor, other: Tensor, share: float, is_bytes: bool) -> Tensor:
    if share == 0:
        return one
    mean = one * (1 - share) + other * share
    return _half_up(mean) if is_bytes else mean


def _half_up(values: Tensor) -> Tensor:
    return torch.floor(values + 0.5)
