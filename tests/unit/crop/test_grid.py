"""Which grid of tiles is chosen, against rules worked out pixel by pixel."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from panollava.crop.strategies import global_camera, grid_tiles, grids_within, largest_grid, least_wasteful_grid

SIDES = st.integers(1, 40)
GRIDS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8)


@given(grids=GRIDS, height=SIDES, width=SIDES)
def test_no_other_grid_shows_the_picture_larger_or_as_large_with_less_waste(
    grids: list[tuple[int, int]], height: int, width: int
) -> None:
    """The picture is 2:1; its size in a canvas is found by trying heights, in quarters of a pixel and up."""

    def effective(grid: tuple[int, int]) -> int:
        canvas_height, canvas_width = 4 * grid[0] * height, 4 * grid[1] * width
        fitting = max(h for h in range(canvas_height + 1) if 2 * h <= canvas_width)
        return 2 * fitting * fitting

    def waste(grid: tuple[int, int]) -> int:
        return 16 * grid[0] * height * grid[1] * width - effective(grid)

    chosen = least_wasteful_grid(grids, (height, width))
    assert effective(chosen) == max(map(effective, grids))
    equals = [grid for grid in grids if effective(grid) == effective(chosen)]
    assert waste(chosen) == min(map(waste, equals))
    assert chosen == next(grid for grid in equals if waste(grid) == waste(chosen))


@pytest.mark.parametrize(
    ("budget", "view_size", "grid"),
    [
        (1, (64, 64), (1, 1)),
        (2, (64, 64), (1, 2)),
        (5, (64, 64), (1, 2)),
        (7, (64, 64), (2, 3)),
        (8, (64, 64), (2, 4)),
        (9, (64, 64), (2, 4)),
        (18, (224, 224), (3, 6)),
        (4, (32, 64), (2, 2)),
        (8, (64, 32), (1, 4)),
    ],
)
def test_the_least_wasteful_grid_of_a_budget(budget: int, view_size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert least_wasteful_grid(grids_within(budget), view_size) == grid


@pytest.mark.parametrize(
    ("budget", "view_size", "grid"),
    [
        (1, (64, 64), (1, 1)),
        (2, (64, 64), (1, 2)),
        (6, (64, 64), (2, 3)),
        (7, (64, 64), (2, 3)),
        (8, (64, 64), (2, 4)),
        (9, (64, 64), (3, 3)),
        (12, (64, 64), (2, 6)),  # as far from 2:1 as 3x4, with more columns
        (18, (64, 64), (3, 6)),
        (9, (32, 64), (3, 3)),
        (3, (320, 64), (1, 3)),  # stretched by more than 2 whatever the grid
    ],
)
def test_the_largest_grid_of_a_budget(budget: int, view_size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert largest_grid(budget, view_size) == grid


@given(budget=st.integers(1, 60), height=SIDES, width=SIDES)
def test_no_other_grid_has_more_tiles_within_the_stretch(budget: int, height: int, width: int) -> None:
    def sides(grid: tuple[int, int]) -> tuple[int, int]:
        """Short and long side of a pixel's angle, up to a common factor."""
        short, long = sorted((2 * grid[0] * height, grid[1] * width))
        return short, long

    within = [grid for grid in grids_within(budget) if sides(grid)[1] <= 2 * sides(grid)[0]]
    assume(within)
    rows, columns = largest_grid(budget, (height, width))
    assert (rows, columns) in within
    assert rows * columns == max(r * c for r, c in within)
    rivals = [grid for grid in within if grid[0] * grid[1] == rows * columns]
    short, long = sides((rows, columns))
    assert all(long * rival_short <= rival_long * short for rival_short, rival_long in map(sides, rivals))


@given(budget=st.integers(1, 60))
def test_every_grid_of_a_budget_is_listed_once(budget: int) -> None:
    grids = grids_within(budget)
    everything = {(r, c) for r in range(1, budget + 1) for c in range(1, budget + 1) if r * c <= budget}
    assert len(grids) == len(set(grids))
    assert set(grids) == everything


def test_tiles_go_row_by_row_from_the_top_left_corner_of_the_panorama() -> None:
    degrees = [(round(math.degrees(c.yaw_rad), 6), round(math.degrees(c.pitch_rad), 6)) for c in grid_tiles(2, 3)]
    assert degrees == [(-120, 45), (0, 45), (120, 45), (-120, -45), (0, -45), (120, -45)]
    assert {(c.h_extent_rad, c.v_extent_rad) for c in grid_tiles(2, 3)} == {(2 * math.pi / 3, math.pi / 2)}


@pytest.mark.parametrize(
    ("view_size", "box"),
    [
        ((64, 64), (0.0, 0.25, 1.0, 0.75)),
        ((32, 64), (0.0, 0.0, 1.0, 1.0)),
        ((64, 32), (0.0, 0.375, 1.0, 0.625)),
        ((32, 128), (0.25, 0.0, 0.75, 1.0)),
    ],
)
def test_the_letterbox_keeps_the_panorama_twice_as_wide_as_high(
    view_size: tuple[int, int], box: tuple[float, float, float, float]
) -> None:
    assert global_camera("letterbox", view_size).box == pytest.approx(box)
    assert global_camera("resize", view_size).box == (0.0, 0.0, 1.0, 1.0)
