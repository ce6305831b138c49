"""How a panorama is divided into views: each strategy turns a few angles into the cameras of its views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

from annotated_types import Interval

from panollava.crop.cameras import EQUIRECTANGULAR, PERSPECTIVE, Camera

SQUARE = (1, 1)
"""View size of a square view where only the shape matters."""


class CropStrategy(Protocol):
    """What every strategy offers."""

    @property
    def effective_overlap(self) -> float:
        """Share of its angle that a tile has in common with its neighbour; 0 where there is no neighbour."""
        ...

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        """The views in order, a global view first; of ``view_size`` (h, w) only the shape matters."""
        ...


class E2pCrop:
    """Perspective tiles in one closed ring a pitch row, the first at yaw 0 and the others to its right."""

    def __init__(
        self,
        *,
        fov_deg: Annotated[float, Interval(gt=0.0, lt=180.0)] = 90.0,
        overlap: Annotated[float, Interval(ge=0.0, le=0.9)] = 0.5,
        pitch_rows_deg: tuple[float, ...] = (0.0,),
    ) -> None:
        _check_tiles(fov_deg, overlap, pitch_rows_deg)
        self.fov_deg = float(fov_deg)
        self.overlap = float(overlap)
        self.pitch_rows_deg = tuple(float(pitch) for pitch in pitch_rows_deg)

    @property
    def effective_overlap(self) -> float:
        return ring_overlap(self.fov_deg, self.overlap)

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        return _tiles(self.fov_deg, self.overlap, self.pitch_rows_deg, view_size)


class AnyresE2pCrop:
    """The tiles of ``e2p`` after one global view of the whole panorama."""

    def __init__(
        self,
        *,
        fov_deg: Annotated[float, Interval(gt=0.0, lt=180.0)] = 90.0,
        overlap: Annotated[float, Interval(ge=0.0, le=0.9)] = 0.5,
        pitch_rows_deg: tuple[float, ...] = (0.0,),
        global_view: Literal["letterbox", "resize"] = "letterbox",
    ) -> None:
        _check_tiles(fov_deg, overlap, pitch_rows_deg)
        if global_view not in ("letterbox", "resize"):
            raise ValueError(f"crop.global_view={global_view}: choose letterbox (keeps the shape) or resize (fills).")
        self.fov_deg = float(fov_deg)
        self.overlap = float(overlap)
        self.pitch_rows_deg = tuple(float(pitch) for pitch in pitch_rows_deg)
        self.global_view = global_view

    @property
    def effective_overlap(self) -> float:
        return ring_overlap(self.fov_deg, self.overlap)

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        box = _letterbox(view_size) if self.global_view == "letterbox" else (0.0, 0.0, 1.0, 1.0)
        return [_whole(box), *_tiles(self.fov_deg, self.overlap, self.pitch_rows_deg, view_size)]


class CubemapCrop:
    """The faces of a cube: front, right, back, left, and by option up and down, which belong to no ring."""

    effective_overlap = 0.0

    def __init__(self, *, poles: bool = False) -> None:
        self.poles = poles

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        """The faces, 90 degrees each way whatever the shape of the view, so that they fill the sphere."""
        angles_deg = [(0.0, 0.0), (90.0, 0.0), (180.0, 0.0), (270.0, 0.0)]
        if self.poles:
            angles_deg += [(0.0, 90.0), (0.0, -90.0)]
        quarter = math.pi / 2
        return [
            Camera(PERSPECTIVE, math.radians(yaw), math.radians(pitch), 0.0, quarter, quarter)
            for yaw, pitch in angles_deg
        ]


class ResizeCrop:
    """The whole panorama squeezed into one view."""

    effective_overlap = 0.0

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        return [_whole((0.0, 0.0, 1.0, 1.0))]


def tile_count(fov_deg: float, overlap: float) -> int:
    """Tiles of a closed ring whose neighbours share at least ``overlap`` of their angle."""
    # Without the tolerance a rounding error makes 21 tiles of the 20 that 90 degrees at 0.8 need.
    return math.ceil(360 / (fov_deg * (1 - overlap)) - 1e-6)


def ring_overlap(fov_deg: float, overlap: float) -> float:
    """The overlap that a whole number of tiles gives: never less than the one asked for."""
    return max(0.0, 1 - 360 / (tile_count(fov_deg, overlap) * fov_deg))


def _tiles(fov_deg: float, overlap: float, pitch_rows_deg: Sequence[float], view_size: tuple[int, int]) -> list[Camera]:
    count = tile_count(fov_deg, overlap)
    h_extent = math.radians(fov_deg)
    v_extent = 2 * math.atan(math.tan(h_extent / 2) * view_size[0] / view_size[1])
    return [
        Camera(PERSPECTIVE, 2 * math.pi * index / count, math.radians(pitch_deg), 0.0, h_extent, v_extent)
        for pitch_deg in pitch_rows_deg
        for index in range(count)
    ]


def _whole(box: tuple[float, float, float, float]) -> Camera:
    return Camera(EQUIRECTANGULAR, 0.0, 0.0, 0.0, 2 * math.pi, math.pi, box=box, is_global=True)


def _letterbox(view_size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest 2:1 box in the middle of a view."""
    height, width = view_size
    share_x, share_y = min(1.0, 2 * height / width), min(1.0, width / (2 * height))
    return (1 - share_x) / 2, (1 - share_y) / 2, (1 + share_x) / 2, (1 + share_y) / 2


def _check_tiles(fov_deg: float, overlap: float, pitch_rows_deg: Sequence[float]) -> None:
    if not 0 < fov_deg < 180:
        raise ValueError(
            f"crop.fov_deg={fov_deg:g} is not a perspective view: 0 < fov_deg < 180. "
            "For the whole panorama in one view use crop=resize."
        )
    if not 0 <= overlap <= 0.9:
        raise ValueError(
            f"crop.overlap={overlap:g} is out of range: 0 <= overlap <= 0.9. "
            "It is the share of its angle that a tile has in common with the next one."
        )
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
