"""Which views close a ring around the viewer, and in which order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from panollava.crop.cameras import EQUIRECTANGULAR, PERSPECTIVE, Camera, Column

MOST_TILES = 1000
"""Tiles of one crop; a language model has no room for the tokens of more."""

MOST_OVERLAP = 0.9
"""Beyond it a ring is ten times as many tiles as it takes to see everything once."""

_CLOSEST_ROWS_DEG = 0.1
"""Rows nearer than this would be taken for one ring, and their views show the same."""


def tile_count(fov_deg: float, overlap: float) -> int:
    """Views of a closed ring whose neighbours share at least ``overlap`` of their angle."""
    # Without the tolerance a rounding error makes 21 tiles of the 20 that 90 degrees at 0.8 need.
    return math.ceil(360 / (fov_deg * (1 - overlap)) - 1e-6)


def ring_overlap(fov_deg: float, overlap: float) -> float:
    """The overlap that a whole number of views gives: never less than the one asked for."""
    return max(0.0, 1 - 360 / (tile_count(fov_deg, overlap) * fov_deg))


def tile_rings(
    fov_deg: float, overlap: float, pitch_rows_deg: Sequence[float], view_size: tuple[int, int]
) -> list[Camera]:
    """Perspective tiles with square pixels, a ring a pitch row, each beginning ahead and going right."""
    h_extent = math.radians(fov_deg)
    v_extent = 2 * math.atan(math.tan(h_extent / 2) * view_size[0] / view_size[1])
    return [
        Camera(PERSPECTIVE, yaw_rad, math.radians(pitch_deg), 0.0, h_extent, v_extent)
        for pitch_deg in pitch_rows_deg
        for yaw_rad in _yaws(fov_deg, overlap)
    ]


def strip_ring(fov_deg: float, overlap: float) -> list[Camera]:
    """Strips of the panorama from pole to pole, the first around yaw 0 and the others to its right."""
    return [
        Camera(EQUIRECTANGULAR, yaw_rad, 0.0, 0.0, math.radians(fov_deg), math.pi)
        for yaw_rad in _yaws(fov_deg, overlap)
    ]


def _yaws(fov_deg: float, overlap: float) -> list[float]:
    count = tile_count(fov_deg, overlap)
    return [2 * math.pi * index / count for index in range(count)]


def check_tiles(fov_deg: float, overlap: float, pitch_rows_deg: Sequence[float]) -> None:
    """Refuses rings of perspective tiles that cannot be cut.

    Raises:
        ValueError: naming the key, its value, what it would lead to and the way out.
    """
    if not 0 < fov_deg < 180:
        raise ValueError(
            f"crop.fov_deg={fov_deg:g} is not a perspective view: 0 < fov_deg < 180. "
            "For wider views use crop=sliding_window, for the whole panorama in one view crop=resize."
        )
    _check_rows(pitch_rows_deg)
    _check_count(fov_deg, overlap, len(pitch_rows_deg))


def check_strips(fov_deg: float, overlap: float) -> None:
    """Refuses a ring of strips that cannot be cut, as ``check_tiles`` does."""
    if not 0 < fov_deg <= 360:
        raise ValueError(
            f"crop.fov_deg={fov_deg:g} is not a strip of the panorama: 0 < fov_deg <= 360. "
            "A wider one would show the same things twice."
        )
    _check_count(fov_deg, overlap, 1)


def _check_count(fov_deg: float, overlap: float, rows: int) -> None:
    if not 0 <= overlap <= MOST_OVERLAP:
        raise ValueError(
            f"crop.overlap={overlap:g} is out of range: 0 <= overlap <= {MOST_OVERLAP}. "
            f"It is the share of its angle that a view has in common with the next one; {_beyond(fov_deg, overlap)}."
        )
    needed = 360 / fov_deg / (1 - overlap)
    if rows * (needed - 1e-6) > MOST_TILES:
        each = f" in each of {rows} pitch rows" if rows > 1 else ""
        raise ValueError(
            f"crop.fov_deg={fov_deg:g} at crop.overlap={overlap:g} would need {needed:,.0f} views{each}, and a crop "
            f"has at most {MOST_TILES}. Use a wider fov_deg or less overlap."
        )


def _beyond(fov_deg: float, overlap: float) -> str:
    """What an overlap out of range would lead to."""
    if overlap < 0:
        return f"here {-overlap * fov_deg:g} degrees between two views would be seen by none"
    if overlap < 1:
        counts = f"{tile_count(fov_deg, overlap):,} views a ring, against {tile_count(fov_deg, MOST_OVERLAP):,}"
        return f"crop.fov_deg={fov_deg:g} would need {counts} at {MOST_OVERLAP}"
    return "no number of views would close the ring"


def _check_rows(pitch_rows_deg: Sequence[float]) -> None:
    rows = ", ".join(f"{pitch:g}" for pitch in pitch_rows_deg)
    if not pitch_rows_deg:
        raise ValueError("crop.pitch_rows_deg=[] leaves no tiles. Use [0] for one ring at the horizon.")
    if not all(-90 < pitch < 90 for pitch in pitch_rows_deg):
        raise ValueError(
            f"crop.pitch_rows_deg=[{rows}]: each row lies between -90 and 90. For the poles use crop=cubemap."
        )
    if len(set(pitch_rows_deg)) < len(pitch_rows_deg):
        raise ValueError(f"crop.pitch_rows_deg=[{rows}] names a row twice. Name each once.")
    missing = [f"{-pitch:g}" for pitch in pitch_rows_deg if -pitch not in pitch_rows_deg]
    if missing:
        raise ValueError(f"crop.pitch_rows_deg=[{rows}] is not symmetric about the horizon. Add {', '.join(missing)}.")
    if any(upper - lower < _CLOSEST_ROWS_DEG for lower, upper in pairwise(sorted(pitch_rows_deg))):
        raise ValueError(
            f"crop.pitch_rows_deg=[{rows}] has rows less than {_CLOSEST_ROWS_DEG:g} degrees apart, which see the "
            "same. Leave one out."
        )


_ANGLE_TOLERANCE_RAD = 1e-4
"""Angles closer than this are the same: camera rows are float32."""


def neighbour_pairs(cameras: Tensor, view_mask: Tensor) -> Tensor:
    """Every tile with its right neighbour in the same ring.

    A ring is the tiles of one projection and pitch. The right neighbour is the tile at the smallest step of
    yaw to the right, and it counts if the two touch or overlap. Global views and views that only pad a batch
    take no part.

    Args:
        cameras: ``(B, V, C)``.
        view_mask: ``(B, V)``.

    Returns:
        ``(P, 3)`` int64 rows (sample, view, its right neighbour), in order of sample and view.
    """
    is_tile = view_mask & (cameras[..., Column.IS_GLOBAL] == 0)
    projection, pitch = cameras[..., Column.PROJECTION], cameras[..., Column.PITCH]
    h_extent, yaw = cameras[..., Column.H_EXTENT], cameras[..., Column.YAW]
    step = _step_right(yaw[:, :, None], yaw[:, None, :])
    reach = (h_extent[:, :, None] + h_extent[:, None, :]) / 2
    allowed = (
        (is_tile[:, :, None] & is_tile[:, None, :])
        & (projection[:, :, None] == projection[:, None, :])
        & ((pitch[:, :, None] - pitch[:, None, :]).abs() < _ANGLE_TOLERANCE_RAD)
        & (step <= reach + _ANGLE_TOLERANCE_RAD)
    )
    allowed &= ~torch.eye(cameras.shape[1], dtype=torch.bool, device=cameras.device)
    nearest_step, nearest = step.masked_fill(~allowed, math.inf).min(dim=2)
    sample, view = torch.nonzero(nearest_step.isfinite(), as_tuple=True)
    return torch.stack((sample, view, nearest[sample, view]), dim=1)


def pair_overlap(cameras: Tensor, pairs: Tensor) -> Tensor:
    """Share of its angle that a view has in common with its right neighbour: 0 where they only touch.

    Args:
        cameras: ``(B, V, C)``.
        pairs: ``(P, 3)`` of ``neighbour_pairs``.

    Returns:
        ``(P)`` in [0, 1).
    """
    sample, view, neighbour = pairs.unbind(1)
    left, right = cameras[sample, view], cameras[sample, neighbour]
    step = _step_right(left[:, Column.YAW], right[:, Column.YAW])
    return (1 - step / left[:, Column.H_EXTENT]).clamp(min=0)


def columns_line_up(cameras: Tensor, pairs: Tensor) -> bool:
    """Whether columns of neighbours can look the same way: not those of flat tiles that look up or down.

    Such tiles are rolled against each other about their common edge, by more the steeper they look.

    Args:
        cameras: ``(B, V, C)``.
        pairs: ``(P, 3)`` of ``neighbour_pairs``.
    """
    tiles = cameras[pairs[:, 0], pairs[:, 1]]
    is_steep = tiles[:, Column.PITCH].abs() > _ANGLE_TOLERANCE_RAD
    return not bool((is_steep & (tiles[:, Column.PROJECTION] == PERSPECTIVE)).any())


def overlap_columns(grid_width: int, overlap: float) -> int:
    """How many of a grid's columns a view pairs with its neighbour's; the touching edge column at least.

    The tolerance is that of overlaps taken from float32 cameras, so that half of 16 columns is 8 and not 7.
    """
    return max(1, math.floor(grid_width * overlap + _ANGLE_TOLERANCE_RAD))


def _step_right(from_rad: Tensor, to_rad: Tensor) -> Tensor:
    """Yaw from one direction to another, turning right: in (0, 2 pi], equal directions a whole turn apart."""
    step = torch.remainder(to_rad - from_rad, 2 * math.pi)
    return torch.where(step < _ANGLE_TOLERANCE_RAD, step + 2 * math.pi, step)


def closed_rings(cameras: Tensor, view_mask: Tensor) -> list[tuple[int, list[int]]]:
    """Rings in which each view's right neighbour is the next, and the last one's is the first.

    Global views, views that only pad a batch, and rows of views with a gap are in none.

    Args:
        cameras: ``(B, V, C)``.
        view_mask: ``(B, V)``.

    Returns:
        (sample, its views to the right from the lowest on), in order of sample and that view.
    """
    to_the_right = {(sample, view): right for sample, view, right in neighbour_pairs(cameras, view_mask).tolist()}
    rings: list[tuple[int, list[int]]] = []
    walked: set[tuple[int, int]] = set()
    for sample, first in to_the_right:
        views, view = [], first
        while (sample, view) in to_the_right and (sample, view) not in walked:
            walked.add((sample, view))
            views.append(view)
            view = to_the_right[sample, view]
        if views and view == first:
            rings.append((sample, views))
    return rings
