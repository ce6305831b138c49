"""Borders, looked at from the view: every point of a curve lies on its edge, and no curve jumps."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from panollava.crop.cameras import EQUIRECTANGULAR, PERSPECTIVE, Camera
from panollava.crop.sphere import pixel_to_direction, rotation_matrix
from panollava.crop.strategies import AnyresMaxCrop, CubemapCrop, E2pCrop, SlidingWindowCrop
from panollava.evaluation.gallery import border_curves, narrowed

HEIGHT, WIDTH = 512, 1024
SIZE = (HEIGHT, WIDTH)
TOP, BOTTOM, LEFT, RIGHT = -0.5, HEIGHT - 0.5, -0.5, WIDTH - 0.5
STEP = WIDTH / 256


def tile(yaw: float = 0.0, pitch: float = 0.0, fov: float = 90.0, roll: float = 0.0) -> Camera:
    angles = (math.radians(angle) for angle in (yaw, pitch, roll, fov, fov))
    return Camera(PERSPECTIVE, *angles)


def rectangle(yaw: float, pitch: float, width: float, height: float) -> Camera:
    yaw_rad, pitch_rad, h_rad, v_rad = (math.radians(angle) for angle in (yaw, pitch, width, height))
    return Camera(EQUIRECTANGULAR, yaw_rad, pitch_rad, 0.0, h_rad, v_rad)


def in_view(camera: Camera, points: np.ndarray) -> np.ndarray:
    """Points (P, 2) of the panorama as a view sees them: x and y, -1 and 1 at its edges."""
    column, row = torch.from_numpy(points).T
    if camera.projection == EQUIRECTANGULAR:
        longitude = ((column + 0.5) / WIDTH - 0.5) * 2 * math.pi - camera.yaw_rad
        x = torch.remainder(longitude + math.pi, 2 * math.pi) - math.pi
        y = (0.5 - (row + 0.5) / HEIGHT) * math.pi - camera.pitch_rad
        return torch.stack((2 * x / camera.h_extent_rad, 2 * y / camera.v_extent_rad), dim=-1).numpy()
    angles = torch.tensor((camera.yaw_rad, camera.pitch_rad, camera.roll_rad), dtype=torch.float64)
    seen = pixel_to_direction(column, row, SIZE) @ rotation_matrix(*angles)
    assert (seen[:, 2] > 0).all()
    half = torch.tensor((math.tan(camera.h_extent_rad / 2), math.tan(camera.v_extent_rad / 2)))
    return (seen[:, :2] / seen[:, 2:] / half).numpy()


yaws = st.floats(-360, 360) | st.sampled_from([-180.0, -135.0, 0.0, 45.0, 90.0, 135.0, 180.0])
tiles = st.builds(
    tile,
    yaw=yaws,
    pitch=st.floats(-90, 90) | st.sampled_from([-90.0, -45.0, 0.0, 45.0, 90.0]),
    fov=st.floats(5, 150) | st.sampled_from([60.0, 90.0]),
    roll=st.floats(-180, 180) | st.just(0.0),
)
rectangles = st.integers(1, 6).flatmap(
    lambda rows: st.builds(
        rectangle,
        yaw=yaws,
        pitch=st.integers(0, rows - 1).map(lambda row: 90 - (row + 0.5) * 180 / rows),
        width=st.floats(5, 360) | st.sampled_from([90.0, 180.0, 360.0]),
        height=st.just(180 / rows),
    )
)


@settings(max_examples=150, deadline=None)
@given(camera=tiles | rectangles)
@example(camera=tile(pitch=45))  # the upper edge runs through the pole
@example(camera=tile(yaw=135))  # the right edge runs along the seam
@example(camera=rectangle(180, 0, 360, 180))
def test_every_point_lies_on_the_edge_and_no_curve_jumps(camera: Camera) -> None:
    curves = border_curves(camera, SIZE)
    points = np.concatenate(curves)
    assert points[:, 0].min() >= LEFT - 1e-6
    assert points[:, 0].max() <= RIGHT + 1e-6
    assert points[:, 1].min() >= TOP - 1e-6
    assert points[:, 1].max() <= BOTTOM + 1e-6
    seen = in_view(camera, points)
    np.testing.assert_allclose(np.abs(seen).max(axis=1), 1, atol=5e-3)
    for corner in ((-1, -1), (-1, 1), (1, 1), (1, -1)):  # it goes once around, and the corners are not cut
        apart = np.abs(seen - corner)
        if camera.projection == EQUIRECTANGULAR and camera.h_extent_rad > 6.28:  # left and right edge are the same
            apart = np.minimum(apart, np.abs(seen * (-1, 1) - corner))
        assert apart.max(axis=1).min() < 1e-6
    for curve in curves:
        assert np.abs(np.diff(curve, axis=0)).max() <= STEP + 1e-6
    for one, other in pairwise([*curves, curves[0]]):
        assert _goes_on(one[-1], other[0]), (one[-1], other[0])


def _goes_on(end: np.ndarray, start: np.ndarray) -> bool:
    """Whether two places of the panorama are one on the sphere: across the seam, on a pole, or simply the same."""
    same_row = abs(end[1] - start[1]) < 1e-6
    on_pole = min(abs(end[1] - TOP), abs(end[1] - BOTTOM)) < 1e-3
    apart = abs(end[0] - start[0])
    return bool(same_row and (min(apart, abs(apart - WIDTH)) < 1e-6 or on_pole))


def test_an_edge_through_the_pole_comes_down_on_the_other_side() -> None:
    curves = border_curves(tile(pitch=45), SIZE)
    ends = sorted(curve[index].round(3).tolist() for curve in curves for index in (0, -1))
    on_pole = [column for column, row in ends if row == TOP]
    assert on_pole == [WIDTH / 4 - 0.5, WIDTH * 3 / 4 - 0.5]
    assert all(row in (TOP, curves[0][0, 1].round(3)) for _, row in ends)


def test_a_view_of_the_pole_goes_around_the_panorama() -> None:
    curves = border_curves(tile(pitch=-90), SIZE)
    points = np.concatenate(curves)
    assert np.diff(np.sort(points[:, 0])).max() <= STEP
    # The middles of its edges are 45 degrees from the pole, its corners atan(sqrt(2)).
    latitudes = (0.5 - (points[:, 1] + 0.5) / HEIGHT) * 180
    assert latitudes.min() == pytest.approx(-45)
    assert latitudes.max() == pytest.approx(-90 + math.degrees(math.atan(math.sqrt(2))))


def test_a_tile_in_the_middle_is_one_closed_curve() -> None:
    (curve,) = border_curves(tile(), SIZE)
    assert curve[0] == pytest.approx(curve[-1])
    assert (curve[:, 0].min(), curve[:, 0].max()) == pytest.approx((WIDTH * 3 / 8 - 0.5, WIDTH * 5 / 8 - 0.5))
    assert (curve[:, 1].min(), curve[:, 1].max()) == pytest.approx((HEIGHT / 4 - 0.5, HEIGHT * 3 / 4 - 0.5))


def test_a_strip_over_the_seam_keeps_its_straight_edges() -> None:
    curves = border_curves(SlidingWindowCrop(overlap=0.5).cameras()[4], SIZE)  # 90 degrees around yaw 180
    points = np.concatenate(curves)
    inner = points[(points[:, 0] > WIDTH / 8) & (points[:, 0] < WIDTH * 7 / 8 - 1)]
    assert len(inner) == 0
    for column in (WIDTH / 8 - 0.5, WIDTH * 7 / 8 - 0.5):
        rows = points[np.abs(points[:, 0] - column) < 1e-6, 1]
        assert (rows.min(), rows.max()) == pytest.approx((TOP, BOTTOM))
    for row in (TOP, BOTTOM):
        columns = points[np.abs(points[:, 1] - row) < 1e-6, 0]
        assert (columns.min(), columns.max()) == pytest.approx((LEFT, RIGHT))


@pytest.mark.parametrize(
    "strategy", [CubemapCrop(poles=True), E2pCrop(pitch_rows_deg=(-45, 0, 45)), AnyresMaxCrop(max_tiles=9)]
)
def test_padding_has_no_part_in_a_border(strategy) -> None:
    for camera in strategy.cameras():
        boxed = replace(camera, box=(0.0, 0.25, 1.0, 0.75))
        for one, other in zip(border_curves(camera, SIZE), border_curves(boxed, SIZE), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_narrowed_view_is_narrower_by_both_edges_and_never_vanishes() -> None:
    inner = narrowed(tile(), 0.1, 0.2)
    assert (inner.h_extent_rad, inner.v_extent_rad) == pytest.approx((math.pi / 2 - 0.2, math.pi / 2 - 0.4))
    small = narrowed(tile(fov=4), 0.1, 0.2)
    assert math.degrees(small.h_extent_rad) == math.degrees(small.v_extent_rad) == pytest.approx(2)
