"""How a panorama is divided into views: each strategy turns a few numbers into the cameras of its views."""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Literal, Protocol

import numpy as np
from annotated_types import Interval

from panollava.component import find_component
from panollava.crop.adaptive import COLUMNS, FOVS_DEG, PITCHES_DEG, choose_tiles, detail_map, v_extent_rad, yaw_rad
from panollava.crop.cameras import EQUIRECTANGULAR, PERSPECTIVE, Camera

MAX_TILES = 1000  # Tiles of one crop. No language model has a context for the tokens of more
MAX_CHOSEN = 40  # tiles of ``adaptive``: its ring then overlaps as far as any may
MAX_OVERLAP = 0.9  # at this overlap a ring has ten times as many tiles as are needed to see everything once
MAX_STRETCH = 2  # of the pixels in ``largest_grid``: as far as a square view of the whole panorama stretches them
SQUARE = (1, 1)  # view size of a square view where only the shape matters

_MIN_ROW_STEP_DEG = 0.1  # closer pitch rows would be taken for one ring, and their views show the same

GlobalView = Literal["letterbox", "resize"]
"""How the whole panorama fits a view: in its own shape between black bars, or filling the view."""
Overlap = Annotated[float, Interval(ge=0.0, le=0.9)]
PerspectiveFov = Annotated[float, Interval(gt=0.0, lt=180.0)]
TileBudget = Annotated[int, Interval(ge=1, le=MAX_TILES)]
Grid = tuple[Annotated[int, Interval(ge=1)], Annotated[int, Interval(ge=1)]]  # rows and columns of tiles


class CropStrategy(Protocol):
    """What every strategy offers."""

    @property
    def effective_overlap(self) -> float:
        """Share of its angle that a tile has in common with its right neighbour; 0 where there is none."""

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        """The views in order, a global view first. Only the shape of ``view_size`` (h, w) matters."""


class ChoosingStrategy(CropStrategy, Protocol):
    """A strategy that chooses the cameras of each panorama. ``cameras`` then has as many, for counts and checks."""

    def choose(self, panorama: np.ndarray, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        """The views of a panorama ``(H, W, 3)`` uint8 of the whole sphere, in order, a global view first."""

    def finest(self, view_size: tuple[int, int] = SQUARE) -> Camera:
        """The camera, of all that may be chosen, that needs the finest panorama."""


def choosing_class(type: str) -> type[ChoosingStrategy] | None:
    """The class of a crop that chooses the views of each panorama, by its config name; None for any other crop."""
    found = find_component("crop.strategies", type, "Crop")
    return found if hasattr(found, "choose") else None


class E2pCrop:
    """Square-pixel perspective tiles: one closed ring per pitch row, from yaw 0 to the right."""

    def __init__(
        self, *, fov_deg: PerspectiveFov = 90.0, overlap: Overlap = 0.5, pitch_rows_deg: tuple[float, ...] = (0.0,)
    ) -> None:
        if not 0 < fov_deg < 180:
            raise ValueError(
                f"crop.fov_deg={fov_deg:g} is not a perspective view: 0 < fov_deg < 180. "
                "For wider views use crop=sliding_window, for the whole panorama in one view crop=resize."
            )
        _check_rows(pitch_rows_deg)
        _check_count(fov_deg, overlap, len(pitch_rows_deg))
        self.fov_deg = float(fov_deg)
        self.overlap = float(overlap)
        self.pitch_rows_deg = tuple(float(pitch) for pitch in pitch_rows_deg)

    @property
    def effective_overlap(self) -> float:
        return ring_overlap(self.fov_deg, self.overlap)

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        h_extent = math.radians(self.fov_deg)
        v_extent = 2 * math.atan(math.tan(h_extent / 2) * view_size[0] / view_size[1])
        return [
            Camera(PERSPECTIVE, yaw_rad, math.radians(pitch_deg), 0.0, h_extent, v_extent)
            for pitch_deg in self.pitch_rows_deg
            for yaw_rad in _yaws(self.fov_deg, self.overlap)
        ]


class AnyresE2pCrop(E2pCrop):
    """The tiles of ``e2p`` after one global view of the whole panorama."""

    def __init__(
        self,
        *,
        fov_deg: PerspectiveFov = 90.0,
        overlap: Overlap = 0.5,
        pitch_rows_deg: tuple[float, ...] = (0.0,),
        global_view: GlobalView = "letterbox",
    ) -> None:
        super().__init__(fov_deg=fov_deg, overlap=overlap, pitch_rows_deg=pitch_rows_deg)
        self.global_view = _checked_global_view(global_view)

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        return [global_camera(self.global_view, view_size), *super().cameras(view_size)]


class SlidingWindowCrop:
    """Strips of the panorama itself, from pole to pole, in one closed ring that wraps around the seam.

    A strip fills a view of any shape, so that the columns of neighbours match from top to bottom.
    In a square view, a strip of 180 degrees has square pixels. For two strips that meet on both sides, the overlap is
    that on the side of the right neighbour.
    """

    def __init__(self, *, fov_deg: Annotated[float, Interval(gt=0.0, le=360.0)] = 90.0, overlap: Overlap = 0.5) -> None:
        if not 0 < fov_deg <= 360:
            raise ValueError(
                f"crop.fov_deg={fov_deg:g} is not a strip of the panorama: 0 < fov_deg <= 360. "
                "A wider one would show the same things twice."
            )
        _check_count(fov_deg, overlap, 1)
        self.fov_deg = float(fov_deg)
        self.overlap = float(overlap)

    @property
    def effective_overlap(self) -> float:
        return ring_overlap(self.fov_deg, self.overlap)

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        return [
            Camera(EQUIRECTANGULAR, yaw_rad, 0.0, 0.0, math.radians(self.fov_deg), math.pi)
            for yaw_rad in _yaws(self.fov_deg, self.overlap)
        ]


class AnyresCrop:
    """One global view, then the panorama cut into the grid of at most ``max_tiles`` tiles that wastes least.

    Of ``grids`` (None for all) the one that shows a 2:1 picture largest is taken, and of those that show it equally
    large the one with the fewest tiles. In square views 2, 8 or 18 tiles make a grid of 1x2, 2x4 or 3x6 with square
    pixels. A grid of another shape is stretched over its views (2x3 tiles by a third), not padded: black patches would
    replace content and separate neighbours.

    Source: Liu et al., "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", 2024, for AnyRes and its
    choice of a grid, which is made here for the shape that all panoramas have.
    """

    effective_overlap = 0.0

    def __init__(
        self, *, max_tiles: TileBudget = 8, grids: tuple[Grid, ...] | None = None, global_view: GlobalView = "letterbox"
    ) -> None:
        _check_budget(max_tiles)
        self.global_view = _checked_global_view(global_view)
        named = grids_within(max_tiles) if grids is None else grids
        listed = ", ".join(f"[{rows}, {columns}]" for rows, columns in named)
        if not all(min(grid) >= 1 for grid in named):
            raise ValueError(f"crop.grids=[{listed}]: rows and columns of each grid are at least 1.")
        self.grids = tuple((rows, columns) for rows, columns in named if rows * columns <= max_tiles)
        if not self.grids:
            raise ValueError(
                f"crop.grids=[{listed}] holds no grid of at most crop.max_tiles={max_tiles} tiles. Raise max_tiles, "
                "name a smaller grid, or leave the choice open with crop.grids=null."
            )

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        rows, columns = least_wasteful_grid(self.grids, view_size)
        return [global_camera(self.global_view, view_size), *grid_tiles(rows, columns)]


class AnyresMaxCrop:
    """One global view, then the panorama cut into the largest grid of at most ``max_tiles`` tiles.

    The grid with the most tiles is taken whose pixels are at most twice as long one way as the other, and of
    several the one whose shape is closest to the panorama's: 3x3 of nine, 2x4 of eight, 3x6 of eighteen tiles in
    square views. The tiles fill their views.

    Source: Li et al., "LLaVA-OneVision: Easy Visual Task Transfer", 2024 (arXiv:2408.03326), section 3.2, for
    the budget of crops (``anyres_max_9``). There a finer grid is cut and its tokens are interpolated down to the
    budget. A crop has views and no tokens, so here the grid itself keeps within it.
    """

    effective_overlap = 0.0

    def __init__(self, *, max_tiles: TileBudget = 9, global_view: GlobalView = "letterbox") -> None:
        _check_budget(max_tiles)
        self.max_tiles = int(max_tiles)
        self.global_view = _checked_global_view(global_view)

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        rows, columns = largest_grid(self.max_tiles, view_size)
        return [global_camera(self.global_view, view_size), *grid_tiles(rows, columns)]


class CubemapCrop:
    """The faces of a cube: front, right, back, left, and with ``poles`` up and down, which are in no ring."""

    effective_overlap = 0.0

    def __init__(self, *, poles: bool = False) -> None:
        self.poles = poles

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        angles_deg = [(0.0, 0.0), (90.0, 0.0), (180.0, 0.0), (270.0, 0.0)]
        if self.poles:
            angles_deg += [(0.0, 90.0), (0.0, -90.0)]
        angles = [(math.radians(yaw), math.radians(pitch)) for yaw, pitch in angles_deg]
        quarter = math.pi / 2  # whatever the shape of the view, so that the faces fill the sphere
        return [Camera(PERSPECTIVE, yaw, pitch, 0.0, quarter, quarter) for yaw, pitch in angles]


class ResizeCrop:
    """The whole panorama squeezed into one view."""

    effective_overlap = 0.0

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        return [global_camera("resize", view_size)]


class AdaptiveCrop:
    """One global view, then ``views`` tiles where the panorama has most detail; see ``panollava.crop.adaptive``.

    Tiles have 45 to 90 degrees and stand at any yaw and pitch, from yaw 0 to the right. ``cameras`` are those of a
    panorama without detail: a ring of tiles of 90 degrees, which is that of ``anyres_e2p`` for 8 views. Every panorama
    has as many views.
    """

    effective_overlap = 0.0  # none is sure

    def __init__(
        self, *, views: Annotated[int, Interval(ge=1, le=40)] = 8, global_view: GlobalView = "letterbox"
    ) -> None:
        if not 1 <= views <= MAX_CHOSEN:
            raise ValueError(
                f"crop.views={views} is out of range: 1 <= views <= {MAX_CHOSEN}. It counts the tiles that are chosen "
                "for each panorama; the global view comes on top."
            )
        self.views = int(views)
        self.global_view = _checked_global_view(global_view)

    def cameras(self, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        return [global_camera(self.global_view, view_size), *self._ring(0.0, self.views, view_size)]

    def choose(self, panorama: np.ndarray, view_size: tuple[int, int] = SQUARE) -> list[Camera]:
        """The views of a panorama ``(H, W, 3)`` uint8 of the whole sphere, as many as ``cameras`` has."""
        detail = detail_map(panorama)
        if not detail.any():
            return self.cameras(view_size)
        tiles = choose_tiles(detail, self.views, view_size[0] / view_size[1])
        chosen = [_tile(yaw_rad(column), PITCHES_DEG[pitch], FOVS_DEG[fov], view_size) for fov, pitch, column in tiles]
        # Where all is shown as sharply as it can be, tiles of a ring fill the number. It begins half a column beside
        # the first tile, where no candidate stands.
        fill = self._ring(chosen[0].yaw_rad + math.pi / COLUMNS, self.views - len(chosen), view_size)
        return [global_camera(self.global_view, view_size), *chosen, *fill]

    def finest(self, view_size: tuple[int, int] = SQUARE) -> Camera:
        """The candidate that needs the finest panorama."""
        return _tile(0.0, 0.0, FOVS_DEG[-1], view_size)

    @staticmethod
    def _ring(start_rad: float, count: int, view_size: tuple[int, int]) -> list[Camera]:
        yaws = [(start_rad + 2 * math.pi * index / count) % (2 * math.pi) for index in range(count)]
        return [_tile(yaw, 0.0, FOVS_DEG[0], view_size) for yaw in yaws]


def global_camera(global_view: GlobalView, view_size: tuple[int, int]) -> Camera:
    """The camera of the whole panorama in a view of (h, w) pixels."""
    height, width = view_size
    # The largest 2:1 box in the middle of the view, or all of it.
    share_x, share_y = min(1.0, 2 * height / width), min(1.0, width / (2 * height))
    if global_view == "resize":
        share_x = share_y = 1.0
    box = (1 - share_x) / 2, (1 - share_y) / 2, (1 + share_x) / 2, (1 + share_y) / 2
    return Camera(EQUIRECTANGULAR, 0.0, 0.0, 0.0, 2 * math.pi, math.pi, box=box, is_global=True)


def _tile(yaw: float, pitch_deg: float, fov_deg: float, view_size: tuple[int, int]) -> Camera:
    """A perspective view with square pixels, at a yaw in radians."""
    v_extent = v_extent_rad(fov_deg, view_size[0] / view_size[1])
    return Camera(PERSPECTIVE, yaw, math.radians(pitch_deg), 0.0, math.radians(fov_deg), v_extent)


def tile_count(fov_deg: float, overlap: float) -> int:
    """Views of a closed ring whose neighbours share at least ``overlap`` of their angle."""
    # Without the tolerance a rounding error makes 21 tiles of the 20 that 90 degrees at 0.8 need.
    return math.ceil(360 / (fov_deg * (1 - overlap)) - 1e-6)


def ring_overlap(fov_deg: float, overlap: float) -> float:
    """The overlap that a whole number of views gives: at least the requested one."""
    return max(0.0, 1 - 360 / (tile_count(fov_deg, overlap) * fov_deg))


def grid_tiles(rows: int, columns: int) -> list[Camera]:
    """The panorama cut into equal rectangles, row by row from its top left corner. Each row closes a ring."""
    yaws = [((column + 0.5) / columns - 0.5) * 2 * math.pi for column in range(columns)]
    pitches = [(0.5 - (row + 0.5) / rows) * math.pi for row in range(rows)]
    extents = 2 * math.pi / columns, math.pi / rows
    return [Camera(EQUIRECTANGULAR, yaw, pitch, 0.0, *extents) for pitch in pitches for yaw in yaws]


def grids_within(max_tiles: int) -> list[tuple[int, int]]:
    """All grids (rows, columns) of at most ``max_tiles`` tiles."""
    return [(rows, columns) for rows in range(1, max_tiles + 1) for columns in range(1, max_tiles // rows + 1)]


def least_wasteful_grid(grids: Iterable[tuple[int, int]], view_size: tuple[int, int]) -> tuple[int, int]:
    """The grid (rows, columns) of (h, w) tiles that shows a 2:1 picture largest, with the fewest pixels left over.

    The picture is assumed to be finer than any grid, and is fitted into the grid's canvas in its own shape. Its
    area there is the effective resolution, the rest of the canvas is waste. Of equals the first is taken.

    Source: LLaVA-NeXT, ``select_best_resolution`` in haotian-liu/LLaVA, llava/mm_utils.py.
    """
    height, width = view_size
    # The fitted picture is min(2 H, W) wide, and with its area given the smallest canvas wastes least.
    return max(grids, key=lambda grid: (min(2 * grid[0] * height, grid[1] * width), -grid[0] * grid[1]))


def largest_grid(max_tiles: int, view_size: tuple[int, int]) -> tuple[int, int]:
    """The grid (rows, columns) of (h, w) tiles with the most tiles that stretches pixels by ``MAX_STRETCH`` at most.

    The stretch is the ratio of the longer to the shorter side of a pixel's angle when the tiles fill their views.
    Of grids with as many tiles the least stretched is taken, then the one with more columns. If the budget has no
    grid within the limit, it is the least stretched one.
    """
    height, width = view_size

    def rank(grid: tuple[int, int]) -> tuple[Fraction, int, Fraction, int]:
        rows, columns = grid
        shape = Fraction(columns * width, 2 * rows * height)
        stretch = max(shape, 1 / shape)
        return -max(stretch, Fraction(MAX_STRETCH)), rows * columns, -stretch, columns

    return max(grids_within(max_tiles), key=rank)


def _yaws(fov_deg: float, overlap: float) -> list[float]:
    count = tile_count(fov_deg, overlap)
    return [2 * math.pi * index / count for index in range(count)]


def _check_rows(pitch_rows_deg: Sequence[float]) -> None:
    shown = f"crop.pitch_rows_deg=[{', '.join(f'{pitch:g}' for pitch in pitch_rows_deg)}]"
    if not pitch_rows_deg:
        raise ValueError(f"{shown} leaves no tiles. Use [0] for one ring at the horizon.")
    if not all(-90 < pitch < 90 for pitch in pitch_rows_deg):
        raise ValueError(f"{shown}: each row lies between -90 and 90. For the poles use crop=cubemap.")
    if len(set(pitch_rows_deg)) < len(pitch_rows_deg):
        raise ValueError(f"{shown} names a row twice. Name each once.")
    if missing := [f"{-pitch:g}" for pitch in pitch_rows_deg if -pitch not in pitch_rows_deg]:
        raise ValueError(f"{shown} is not symmetric about the horizon. Add {', '.join(missing)}.")
    if any(upper - lower < _MIN_ROW_STEP_DEG for lower, upper in pairwise(sorted(pitch_rows_deg))):
        same = f"has rows less than {_MIN_ROW_STEP_DEG:g} degrees apart, which show the same"
        raise ValueError(f"{shown} {same}. Leave one out.")


def _check_count(fov_deg: float, overlap: float, rows: int) -> None:
    if not 0 <= overlap <= MAX_OVERLAP:
        if overlap < 0:
            result = f"here {-overlap * fov_deg:g} degrees between two views would be seen by none"
        elif overlap < 1:
            counts = f"{tile_count(fov_deg, overlap):,} views a ring, against {tile_count(fov_deg, MAX_OVERLAP):,}"
            result = f"crop.fov_deg={fov_deg:g} would need {counts} at {MAX_OVERLAP}"
        else:
            result = "no number of views would close the ring"
        raise ValueError(
            f"crop.overlap={overlap:g} is out of range: 0 <= overlap <= {MAX_OVERLAP}. "
            f"It is the share of its angle that a view has in common with the next one; {result}."
        )
    needed = 360 / fov_deg / (1 - overlap)
    if rows * (needed - 1e-6) > MAX_TILES:
        each = f" in each of {rows} pitch rows" if rows > 1 else ""
        raise ValueError(
            f"crop.fov_deg={fov_deg:g} at crop.overlap={overlap:g} would need {needed:,.0f} views{each}, and a crop "
            f"has at most {MAX_TILES}. Use a wider fov_deg or less overlap."
        )


def _check_budget(max_tiles: int) -> None:
    if not 1 <= max_tiles <= MAX_TILES:
        raise ValueError(
            f"crop.max_tiles={max_tiles} is out of range: 1 <= max_tiles <= {MAX_TILES}. Each tile is a view of its "
            "own with its share of image tokens; for the whole panorama alone use crop=resize."
        )


def _checked_global_view(global_view: GlobalView) -> GlobalView:
    if global_view not in ("letterbox", "resize"):
        raise ValueError(f"crop.global_view={global_view}: choose letterbox (keeps the shape) or resize (fills).")
    return global_view
