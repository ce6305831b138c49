"""Rectangles of the panorama: the whole of it in one view, and grids of tiles chosen by the shape of a view."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Literal

from panollava.crop.cameras import EQUIRECTANGULAR, Camera

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
