"""How a panorama is divided into views: each strategy turns a few numbers into the cameras of its views."""

from __future__ import annotations

import math
from typing import Annotated, Protocol

from annotated_types import Interval

from panollava.crop.cameras import PERSPECTIVE, Camera
from panollava.crop.grid import (
    GlobalView,
    check_global_view,
    grid_tiles,
    grids_within,
    largest_grid,
    least_wasteful_grid,
    whole_view,
)
from panollava.crop.ring import MOST_TILES, check_strips, check_tiles, ring_overlap, strip_ring, tile_rings

SQUARE = (1, 1)
"""View size of a square view where only the shape matters."""

Grid = tuple[Annotated[int, Interval(ge=1)], Annotated[int, Interval(ge=1)]]
"""Rows and columns of tiles."""


class CropStrategy(Protocol):
    """What every strategy offers."""

    @property
    def effective_overlap(self) -> float:
        """Share of its angle that a tile has in common with its right neighbour; 0 where there is none."""
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
        check_tiles(fov_deg, overlap, pitch_rows_deg)
        self.fov_deg = float(fov_deg)
        self.overlap = float(overlap)
        self.pitch_rows_deg = tuple(float(pitch) for pitch in pitch_rows_deg)

    @property
    def effective_overlap(self) -> float:
        return ring_overlap(self.fov_deg, self.overlap)

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        return tile_rings(self.fov_deg, self.overlap, self.pitch_rows_deg, view_size)


class AnyresE2pCrop:
    """The tiles of ``e2p`` after one global view of the whole panorama."""

    def __init__(
        self,
        *,
        fov_deg: Annotated[float, Interval(gt=0.0, lt=180.0)] = 90.0,
        overlap: Annotated[float, Interval(ge=0.0, le=0.9)] = 0.5,
        pitch_rows_deg: tuple[float, ...] = (0.0,),
        global_view: GlobalView = "letterbox",
    ) -> None:
        check_tiles(fov_deg, overlap, pitch_rows_deg)
        check_global_view(global_view)
        self.fov_deg = float(fov_deg)
        self.overlap = float(overlap)
        self.pitch_rows_deg = tuple(float(pitch) for pitch in pitch_rows_deg)
        self.global_view: GlobalView = global_view

    @property
    def effective_overlap(self) -> float:
        return ring_overlap(self.fov_deg, self.overlap)

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        tiles = tile_rings(self.fov_deg, self.overlap, self.pitch_rows_deg, view_size)
        return [whole_view(self.global_view, view_size), *tiles]


class SlidingWindowCrop:
    """Strips of the panorama itself, from pole to pole, in one closed ring that wraps around the seam.

    A strip fills its view whatever the view's shape, so that the columns of neighbours match all the way down;
    in a square view its pixels are square at 180 degrees. Strips so wide that two of them meet on both sides
    overlap by the share on the side of the right neighbour.
    """

    def __init__(
        self,
        *,
        fov_deg: Annotated[float, Interval(gt=0.0, le=360.0)] = 90.0,
        overlap: Annotated[float, Interval(ge=0.0, le=0.9)] = 0.5,
    ) -> None:
        check_strips(fov_deg, overlap)
        self.fov_deg = float(fov_deg)
        self.overlap = float(overlap)

    @property
    def effective_overlap(self) -> float:
        return ring_overlap(self.fov_deg, self.overlap)

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        return strip_ring(self.fov_deg, self.overlap)


class AnyresCrop:
    """One global view, then the panorama cut into the grid of tiles that wastes least of a budget.

    Of the grids in the budget the one that shows a 2:1 picture largest is taken, and of those that show it
    equally large the one with the fewest tiles. Of square views 2, 8 or 18 make a grid of 1x2, 2x4 or 3x6 tiles,
    whose pixels are square. A grid of another shape is stretched over its views, by a third in 2x3 tiles, and not
    padded: black patches would take the place of what is seen and stand between neighbours.

    Source: Liu et al., "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", 2024, for AnyRes and its
    choice of a grid, which is made here for the shape that all panoramas have.
    """

    effective_overlap = 0.0

    def __init__(
        self,
        *,
        max_tiles: Annotated[int, Interval(ge=1, le=MOST_TILES)] = 8,
        grids: tuple[Grid, ...] | None = None,
        global_view: GlobalView = "letterbox",
    ) -> None:
        """Choose the tiles.

        Args:
            max_tiles: the budget: most tiles there may be, the global view not counted.
            grids: (rows, columns) to choose from, as far as the budget reaches; None takes all that there are.
            global_view: see ``GlobalView``.
        """
        _check_budget(max_tiles)
        check_global_view(global_view)
        named = grids_within(max_tiles) if grids is None else [(rows, columns) for rows, columns in grids]
        listed = ", ".join(f"[{rows}, {columns}]" for rows, columns in named)
        if not all(min(grid) >= 1 for grid in named):
            raise ValueError(f"crop.grids=[{listed}]: rows and columns of each grid are at least 1.")
        self.grids = tuple((rows, columns) for rows, columns in named if rows * columns <= max_tiles)
        if not self.grids:
            raise ValueError(
                f"crop.grids=[{listed}] holds no grid of at most crop.max_tiles={max_tiles} tiles. Raise max_tiles, "
                "name a smaller grid, or leave the choice open with crop.grids=null."
            )
        self.global_view: GlobalView = global_view

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        rows, columns = least_wasteful_grid(self.grids, view_size)
        return [whole_view(self.global_view, view_size), *grid_tiles(rows, columns)]


class AnyresMaxCrop:
    """One global view, then the panorama cut into the largest grid of tiles that a budget allows.

    The grid with the most tiles is taken whose pixels are at most twice as long one way as the other, and of
    several the one whose shape is closest to the panorama's: 3x3 of nine, 2x4 of eight, 3x6 of eighteen tiles in
    square views. The tiles fill their views.

    Source: Li et al., "LLaVA-OneVision: Easy Visual Task Transfer", 2024 (arXiv:2408.03326), section 3.2, for
    spending a budget of so many crops (``anyres_max_9``). There a finer grid is cut and its tokens interpolated
    down to the budget; a crop has views and no tokens, so here the grid itself keeps within it.
    """

    effective_overlap = 0.0

    def __init__(
        self,
        *,
        max_tiles: Annotated[int, Interval(ge=1, le=MOST_TILES)] = 9,
        global_view: GlobalView = "letterbox",
    ) -> None:
        """Choose the tiles.

        Args:
            max_tiles: the budget: most tiles there may be, the global view not counted.
            global_view: see ``GlobalView``.
        """
        _check_budget(max_tiles)
        check_global_view(global_view)
        self.max_tiles = int(max_tiles)
        self.global_view: GlobalView = global_view

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        rows, columns = largest_grid(self.max_tiles, view_size)
        return [whole_view(self.global_view, view_size), *grid_tiles(rows, columns)]


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
        return [whole_view("resize", view_size)]


def _check_budget(max_tiles: int) -> None:
    if not 1 <= max_tiles <= MOST_TILES:
        raise ValueError(
            f"crop.max_tiles={max_tiles} is out of range: 1 <= max_tiles <= {MOST_TILES}. Each tile is a view of its "
            "own with its share of image tokens; for the whole panorama alone use crop=resize."
        )
