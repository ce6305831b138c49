"""How a panorama is divided into views: each strategy turns a few numbers into the cameras of its views."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Annotated, Literal, Protocol

from annotated_types import Interval

from panollava.crop.cameras import EQUIRECTANGULAR, PERSPECTIVE, Camera
from panollava.crop.rings import MOST_TILES, check_strips, check_tiles, ring_overlap, strip_ring, tile_rings

GlobalView = Literal["letterbox", "resize"]
"""How the whole panorama fits a view: in its own shape between black bars, or filling the view."""

MOST_STRETCH = 2
"""How far ``largest_grid`` stretches pixels for the sake of more tiles: as far as a square view of the whole does."""


def check_global_view(global_view: str) -> None:
    """Refuses a name that is none of ``GlobalView``."""
    if global_view not in ("letterbox", "resize"):
        raise ValueError(f"crop.global_view={global_view}: choose letterbox (keeps the shape) or resize (fills).")


def whole_view(global_view: GlobalView, view_size: tuple[int, int]) -> Camera:
    """The global view of the whole panorama in views (h, w)."""
    box = _letterbox(view_size) if global_view == "letterbox" else (0.0, 0.0, 1.0, 1.0)
    return Camera(EQUIRECTANGULAR, 0.0, 0.0, 0.0, 2 * math.pi, math.pi, box=box, is_global=True)


def grid_tiles(rows: int, columns: int) -> list[Camera]:
    """The panorama cut into equal rectangles, row by row from its top left corner; each row closes a ring."""
    return [
        Camera(
            EQUIRECTANGULAR,
            ((column + 0.5) / columns - 0.5) * 2 * math.pi,
            (0.5 - (row + 0.5) / rows) * math.pi,
            0.0,
            2 * math.pi / columns,
            math.pi / rows,
        )
        for row in range(rows)
        for column in range(columns)
    ]


def grids_within(max_tiles: int) -> list[tuple[int, int]]:
    """All grids (rows, columns) of at most so many tiles."""
    return [(rows, columns) for rows in range(1, max_tiles + 1) for columns in range(1, max_tiles // rows + 1)]


def least_wasteful_grid(grids: Iterable[tuple[int, int]], view_size: tuple[int, int]) -> tuple[int, int]:
    """The grid that shows a 2:1 picture largest, and of several such the one with the fewest pixels left over.

    The picture is taken to be finer than any grid, and is fitted into the grid's canvas in its own shape. Its
    area there is the effective resolution; the rest of the canvas is waste. Of equals the first is taken.

    Source: LLaVA-NeXT, ``select_best_resolution`` in haotian-liu/LLaVA, llava/mm_utils.py.

    Args:
        grids: (rows, columns) to choose from.
        view_size: (h, w) of a tile.
    """
    height, width = view_size
    # The fitted picture is min(2 H, W) wide, and with its area given the smallest canvas wastes least.
    return max(grids, key=lambda grid: (min(2 * grid[0] * height, grid[1] * width), -grid[0] * grid[1]))


def largest_grid(max_tiles: int, view_size: tuple[int, int]) -> tuple[int, int]:
    """The grid with the most tiles in the budget, as long as it does not stretch pixels beyond ``MOST_STRETCH``.

    The stretch is how many times as long one side of a pixel's angle is as the other, when the tiles fill their
    views. Of grids with as many tiles the least stretched is taken, then the one with more columns; where the
    budget has no grid within the limit, the least stretched one.

    Args:
        max_tiles: the budget.
        view_size: (h, w) of a tile.
    """
    height, width = view_size

    def rank(grid: tuple[int, int]) -> tuple[Fraction, int, Fraction, int]:
        rows, columns = grid
        shape = Fraction(columns * width, 2 * rows * height)
        stretch = max(shape, 1 / shape)
        return -max(stretch, Fraction(MOST_STRETCH)), rows * columns, -stretch, columns

    return max(grids_within(max_tiles), key=rank)


def _letterbox(view_size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest 2:1 box in the middle of a view."""
    height, width = view_size
    share_x, share_y = min(1.0, 2 * height / width), min(1.0, width / (2 * height))
    return (1 - share_x) / 2, (1 - share_y) / 2, (1 + share_x) / 2, (1 + share_y) / 2


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
