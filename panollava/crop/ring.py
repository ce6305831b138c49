"""Closed rings of views around the vertical axis: how many views one takes, their cameras, and what cannot be one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from panollava.crop.cameras import EQUIRECTANGULAR, PERSPECTIVE, Camera

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
