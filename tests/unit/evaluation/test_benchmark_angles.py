"""Directions and boxes of benchmarks: to pixels and to this package's convention, and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from panollava.crop.sphere import angles_to_pixel
from panollava.evaluation.benchmarks import direction360, panospace
from panollava.evaluation.benchmarks.angles import Convention, angle_between, unit

CONVENTIONS = [panospace.CONVENTION, direction360.CONVENTION, Convention(180.0, 0.0), Convention(-90.0, -180.0)]
SIZES = [(1, 2), (512, 1024), (1000, 3001)]
conventions = st.sampled_from(CONVENTIONS)
sizes = st.sampled_from(SIZES)
yaws = st.floats(-720, 720)
pitches = st.floats(-90, 90)


@given(conventions, sizes, yaws, pitches)
@example(CONVENTIONS[0], SIZES[1], 180.0, 0.0)
@example(CONVENTIONS[0], SIZES[1], -180.0, 90.0)
@example(CONVENTIONS[1], SIZES[1], 0.0, -90.0)
@example(CONVENTIONS[1], SIZES[1], 360.0, 90.0)
@example(CONVENTIONS[1], SIZES[0], -1e-15, 0.0)
def test_a_direction_returns_from_its_pixel(
    convention: Convention, size: tuple[int, int], yaw: float, pitch: float
) -> None:
    column, row = convention.pixel(yaw, pitch, size)
    assert -0.5 <= column <= size[1] - 0.5
    assert -0.5 <= row <= size[0] - 0.5
    again = convention.direction(column, row, size)
    assert convention.least_deg <= again[0] < convention.least_deg + 360
    assert angle_between(unit(*again), unit(yaw, pitch)) < 1e-8


@given(conventions, sizes, st.floats(0, 1, exclude_max=True), st.floats(0, 1))
@example(CONVENTIONS[1], SIZES[1], 0.0, 0.0)
@example(CONVENTIONS[1], SIZES[1], 0.0, 1.0)
def test_a_pixel_returns_from_its_direction(
    convention: Convention, size: tuple[int, int], across: float, down: float
) -> None:
    column, row = across * size[1] - 0.5, down * size[0] - 0.5
    again = convention.pixel(*convention.direction(column, row, size), size)
    turn = abs(again[0] - column)
    assert min(turn, size[1] - turn) < 1e-8
    assert again[1] == pytest.approx(row, abs=1e-8)


@given(conventions, yaws, pitches, st.floats(0.1, 180), st.floats(0.1, 180))
@example(CONVENTIONS[1], 359.9999, 90.0, 12.0, 9.0)
@example(CONVENTIONS[1], -1e-15, -90.0, 12.0, 9.0)
def test_a_box_returns_from_ours(
    convention: Convention, yaw: float, pitch: float, horizontal: float, vertical: float
) -> None:
    ours = convention.ours((yaw, pitch, horizontal, vertical))
    assert -180 <= ours[0] < 180
    again = convention.theirs(ours)
    assert convention.least_deg <= again[0] < convention.least_deg + 360
    assert again[1:] == (pitch, horizontal, vertical)
    assert angle_between(unit(again[0], 0), unit(yaw, 0)) < 1e-8


@given(st.floats(-180, 179.999), pitches, sizes)
def test_pixels_are_those_of_the_package(yaw: float, pitch: float, size: tuple[int, int]) -> None:
    angles = (torch.tensor(math.radians(one), dtype=torch.float64) for one in (yaw, pitch))
    column, row = angles_to_pixel(*angles, size)
    ours = panospace.CONVENTION.pixel(yaw, pitch, size)
    assert ours == (pytest.approx(float(column), abs=1e-6), pytest.approx(float(row), abs=1e-6))


def test_angles_are_exact_when_small_and_when_opposite() -> None:
    assert angle_between(unit(0, 0), unit(1e-7, 0)) == pytest.approx(1e-7, rel=1e-6)
    assert angle_between(unit(0, 90), unit(77, -90)) == pytest.approx(180)
    assert np.allclose(unit(30, 100), unit(210, 80))
