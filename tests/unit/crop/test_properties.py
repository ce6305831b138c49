"""What holds for every crop at any setting, measured by projecting directions into its views."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from panollava.crop.cameras import EQUIRECTANGULAR, Camera, camera_tensor, point_directions
from panollava.crop.maps import view_groups
from panollava.crop.rings import neighbour_pairs, pair_overlap
from panollava.crop.strategies import (
    AnyresCrop,
    AnyresE2pCrop,
    AnyresMaxCrop,
    CropStrategy,
    CubemapCrop,
    E2pCrop,
    ResizeCrop,
    SlidingWindowCrop,
    tile_count,
)

Ring = E2pCrop | AnyresE2pCrop | SlidingWindowCrop
OVERLAPS = st.one_of(st.floats(0, 0.9), st.integers(0, 90).map(lambda hundredths: hundredths / 100))
GLOBAL_VIEWS = st.sampled_from(["letterbox", "resize"])
BUDGETS = st.integers(1, 40)
SIZES = st.tuples(st.integers(16, 48), st.integers(16, 48))


@st.composite
def rows(draw: st.DrawFn) -> tuple[float, ...]:
    """Up to five pitch rows, symmetric about the horizon, at least a degree apart."""
    above = draw(st.lists(st.floats(1, 85), max_size=2))
    middle = [0.0] if draw(st.booleans()) or not above else []
    assume(len(above) < 2 or abs(above[0] - above[1]) > 1)
    return (*above, *middle, *(-pitch for pitch in above))


def fovs(most: float) -> st.SearchStrategy[float]:
    return st.one_of(st.floats(20, most), st.integers(20, math.floor(most)).map(float))


TILES = {"fov_deg": fovs(179), "overlap": OVERLAPS, "pitch_rows_deg": rows()}
STRIPS = st.builds(SlidingWindowCrop, fov_deg=fovs(360), overlap=OVERLAPS)
RINGS: st.SearchStrategy[Ring] = st.one_of(
    st.builds(E2pCrop, **TILES), st.builds(AnyresE2pCrop, **TILES, global_view=GLOBAL_VIEWS), STRIPS
)
GRIDS: st.SearchStrategy[CropStrategy] = st.one_of(
    st.builds(AnyresCrop, max_tiles=BUDGETS, global_view=GLOBAL_VIEWS),
    st.builds(AnyresMaxCrop, max_tiles=BUDGETS, global_view=GLOBAL_VIEWS),
)
ALL: st.SearchStrategy[CropStrategy] = st.one_of(
    RINGS, GRIDS, st.builds(CubemapCrop, poles=st.booleans()), st.builds(ResizeCrop)
)


def directions_at(yaw_rad: np.ndarray, pitch_rad: np.ndarray) -> np.ndarray:
    """Unit vectors (P, 3)."""
    return np.stack(
        (np.cos(pitch_rad) * np.sin(yaw_rad), np.sin(pitch_rad), np.cos(pitch_rad) * np.cos(yaw_rad)), axis=-1
    )


def seen(camera: Camera, directions: np.ndarray, margin_rad: float = 1e-5) -> np.ndarray:
    """Which directions (P, 3) fall into a view's content, its edges included with so much around them."""
    x, y, z = directions.T
    half_width, half_height = camera.h_extent_rad / 2 + margin_rad, camera.v_extent_rad / 2 + margin_rad
    if camera.projection == EQUIRECTANGULAR:
        across = np.remainder(np.arctan2(x, z) - camera.yaw_rad + math.pi, 2 * math.pi) - math.pi
        down = np.arctan2(y, np.hypot(x, z)) - camera.pitch_rad
        return (np.abs(across) <= half_width) & (np.abs(down) <= half_height)
    sin, cos = math.sin(camera.yaw_rad), math.cos(camera.yaw_rad)
    x, z = cos * x - sin * z, sin * x + cos * z
    sin, cos = math.sin(camera.pitch_rad), math.cos(camera.pitch_rad)
    y, z = cos * y - sin * z, sin * y + cos * z
    return (z > 0) & (np.abs(np.arctan2(x, z)) <= half_width) & (np.abs(np.arctan2(y, z)) <= half_height)


def tiles_of(strategy: CropStrategy, view_size: tuple[int, int] = (16, 16)) -> list[Camera]:
    return [camera for camera in strategy.cameras(view_size) if not camera.is_global]


def rings_of(cameras: Sequence[Camera]) -> list[list[Camera]]:
    """Tiles by their pitch, rings in the order of their first tile."""
    rings: dict[float, list[Camera]] = {}
    for camera in cameras:
        rings.setdefault(camera.pitch_rad, []).append(camera)
    return list(rings.values())


def measured_overlap(left: Camera, right: Camera, samples: int = 2000) -> float:
    """How far from a tile's right edge its neighbour sees all along the horizon, as a share of the tile."""
    yaw = left.yaw_rad + left.h_extent_rad * ((np.arange(samples) + 0.5) / samples - 0.5)
    unseen = np.flatnonzero(~seen(right, directions_at(yaw, np.zeros(samples))))
    return 1 - (unseen[-1] + 1) / samples if len(unseen) else 1.0


@settings(deadline=None)
@given(strategy=ALL, view_size=SIZES, across=st.floats(0.001, 0.999), down=st.floats(0.001, 0.999))
def test_the_measure_agrees_with_the_cameras(
    strategy: CropStrategy, view_size: tuple[int, int], across: float, down: float
) -> None:
    """A point of a view's content is seen there; in a tile, one as far beyond its right edge is not."""
    views = strategy.cameras(view_size)
    x0, y0, x1, y1 = torch.tensor([camera.box for camera in views]).double().unsqueeze(-1).unbind(1)
    rows = camera_tensor(views, torch.float64)
    x, y = x0 + across * (x1 - x0), y0 + down * (y1 - y0)
    inside, outside = (point_directions(rows, at, y)[:, 0].numpy() for at in (x, x + (x1 - x0)))
    assert all(seen(camera, points).all() for camera, points in zip(views, inside, strict=True))
    for camera, points in zip(views, outside, strict=True):
        assert camera.projection == EQUIRECTANGULAR or not seen(camera, points, margin_rad=0).any()


@settings(deadline=None)
@given(strategy=RINGS, shape=st.sampled_from([(1, 1), (3, 2), (2, 3), (1, 3)]), offset=st.floats(0, 1))
def test_each_ring_sees_every_yaw_at_its_pitch(strategy: Ring, shape: tuple[int, int], offset: float) -> None:
    for ring in rings_of(tiles_of(strategy, shape)):
        edges = np.array([camera.yaw_rad + camera.h_extent_rad / 2 for camera in ring])
        yaw = np.concatenate(((np.arange(90) + offset) / 90 * 2 * math.pi, edges, edges + math.pi / len(ring)))
        directions = directions_at(yaw, np.full(len(yaw), ring[0].pitch_rad))
        assert np.any([seen(camera, directions) for camera in ring], axis=0).all()


@given(strategy=RINGS)
def test_counts_are_the_formula_and_rings_have_equal_steps_from_ahead(strategy: Ring) -> None:
    count = tile_count(strategy.fov_deg, strategy.overlap)
    rings = rings_of(tiles_of(strategy))
    pitches = strategy.pitch_rows_deg if not isinstance(strategy, SlidingWindowCrop) else (0.0,)
    assert [math.degrees(ring[0].pitch_rad) for ring in rings] == pytest.approx(list(pitches))
    for ring in rings:
        assert [camera.yaw_rad for camera in ring] == pytest.approx([2 * math.pi * i / count for i in range(count)])
    has_global = isinstance(strategy, AnyresE2pCrop)
    assert len(strategy.cameras()) == has_global + len(rings) * count


@settings(deadline=None)
@given(strategy=RINGS)
def test_the_effective_overlap_is_the_measured_one_and_no_less_than_asked(strategy: Ring) -> None:
    assume(strategy.fov_deg <= 350)  # of a strip all but as wide as the panorama the neighbour sees everything
    assert strategy.effective_overlap >= strategy.overlap - 1e-6
    cameras = camera_tensor(strategy.cameras())[None]
    pairs = neighbour_pairs(cameras, torch.ones(cameras.shape[:2], dtype=torch.bool))
    shares = pair_overlap(cameras, pairs)
    torch.testing.assert_close(shares, torch.full_like(shares, strategy.effective_overlap), atol=1e-5, rtol=0)
    for ring in rings_of(tiles_of(strategy)):
        if ring[0].pitch_rad == 0 and len(ring) > 1:
            assert measured_overlap(ring[-1], ring[0]) == pytest.approx(strategy.effective_overlap, abs=2e-3)


@settings(deadline=None)
@given(strategy=st.one_of(RINGS, GRIDS), view_size=SIZES)
def test_neighbours_go_round_each_ring_in_one_cycle(strategy: CropStrategy, view_size: tuple[int, int]) -> None:
    views = strategy.cameras(view_size)
    cameras = camera_tensor(views)[None]
    pairs = neighbour_pairs(cameras, torch.ones(cameras.shape[:2], dtype=torch.bool))
    right_of = {left: right for _, left, right in pairs.tolist()}
    assert len(right_of) == len(pairs)
    waiting = {view for view, camera in enumerate(views) if not camera.is_global}
    while waiting:
        first = min(waiting)
        size = sum(views[view].pitch_rad == views[first].pitch_rad for view in waiting)
        if size == 1:
            assert first not in right_of
            waiting.remove(first)
            continue
        view, turned = first, 0.0
        for _ in range(size):
            assert view in waiting
            waiting.remove(view)
            turned += (views[right_of[view]].yaw_rad - views[view].yaw_rad) % (2 * math.pi)
            view = right_of[view]
        assert view == first
        assert turned == pytest.approx(2 * math.pi)


@settings(deadline=None)
@given(strategy=GRIDS, view_size=SIZES, seed=st.integers(0, 2**16))
def test_the_tiles_of_a_grid_share_the_sphere_without_gap_or_overlap(
    strategy: CropStrategy, view_size: tuple[int, int], seed: int
) -> None:
    tiles = tiles_of(strategy, view_size)
    areas = [
        c.h_extent_rad * (math.sin(c.pitch_rad + c.v_extent_rad / 2) - math.sin(c.pitch_rad - c.v_extent_rad / 2))
        for c in tiles
    ]
    assert sum(areas) == pytest.approx(4 * math.pi)
    directions = np.random.default_rng(seed).normal(size=(300, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    # A border belongs to both tiles, or to neither.
    assert (np.sum([seen(tile, directions, 1e-9) for tile in tiles], axis=0) >= 1).all()
    assert (np.sum([seen(tile, directions, -1e-9) for tile in tiles], axis=0) <= 1).all()


def test_the_faces_of_a_cube_share_the_sphere_without_gap_or_overlap() -> None:
    directions = np.random.default_rng(0).normal(size=(5000, 3))
    faces = CubemapCrop(poles=True).cameras()
    assert (np.sum([seen(face, directions, 1e-9) for face in faces], axis=0) >= 1).all()
    assert (np.sum([seen(face, directions, -1e-9) for face in faces], axis=0) <= 1).all()
    assert all(np.sum(seen(face, directions)) > 700 for face in faces)


@settings(deadline=None)
@given(strategy=ALL, view_size=SIZES)
def test_cameras_are_valid_and_a_global_view_is_the_whole_and_first(
    strategy: CropStrategy, view_size: tuple[int, int]
) -> None:
    views = strategy.cameras(view_size)
    assert camera_tensor(views).isfinite().all()
    assert all(0 <= camera.box[edge] < camera.box[edge + 2] <= 1 for camera in views for edge in (0, 1))
    assert not any(camera.is_global for camera in views[1:])
    for camera in views:
        widest = (2 * math.pi, math.pi) if camera.projection == EQUIRECTANGULAR else (math.pi, math.pi)
        assert 0 < camera.h_extent_rad <= widest[0]
        assert 0 < camera.v_extent_rad <= widest[1]
        assert abs(camera.pitch_rad) <= math.pi / 2
        if camera.projection == EQUIRECTANGULAR:  # a rectangle of the panorama ends at the poles
            assert abs(camera.pitch_rad) + camera.v_extent_rad / 2 <= math.pi / 2 + 1e-9
        if camera.is_global:
            assert (camera.h_extent_rad, camera.v_extent_rad) == (2 * math.pi, math.pi)


@settings(deadline=None)
@given(strategy=ALL, view_size=SIZES)
def test_the_same_settings_give_the_same_cameras_so_that_maps_are_made_once(
    strategy: CropStrategy, view_size: tuple[int, int]
) -> None:
    cameras, again = tuple(strategy.cameras(view_size)), tuple(strategy.cameras(view_size))
    assert cameras == again
    assert hash(cameras) == hash(again)
    plan = view_groups((64, 128), cameras, view_size)
    assert view_groups((64, 128), again, view_size) is plan
