"""A turned panorama: what turned cameras see of the one that was not turned, exactly where columns allow it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panollava.crop.cameras import Camera
from panollava.crop.partial import extent_of, rotate_yaw, with_extent
from panollava.crop.render import Renderer, render_views
from panollava.crop.strategies import AnyresE2pCrop, AnyresMaxCrop, SlidingWindowCrop


def panorama(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("renderer", ["cv2", "torch", "equilib"])
def test_a_turn_by_a_tile_shifts_the_tiles(renderer: Renderer) -> None:
    picture = panorama(64, 128)
    cameras = AnyresE2pCrop(fov_deg=90.0, overlap=0.5).cameras((32, 32))[1:]
    before = render_views(picture, cameras, (32, 32), renderer)
    after = render_views(rotate_yaw(picture, 3 * 128 // 8), cameras, (32, 32), renderer)
    apart = np.abs(np.roll(before, 3, axis=0).astype(int) - after.astype(int))
    # One level where the maps of two tiles are rounded on either side of a half; bits at most one in a hundred.
    assert apart.max() <= (1 if renderer != "equilib" else 8)
    assert (apart > 0).mean() < 0.01


@pytest.mark.parametrize("strategy", [SlidingWindowCrop(fov_deg=90.0, overlap=0.0), AnyresMaxCrop(max_tiles=8)])
def test_strips_of_the_panorama_shift_to_the_bit(strategy: SlidingWindowCrop | AnyresMaxCrop) -> None:
    picture = panorama(64, 128)
    cameras = [camera for camera in strategy.cameras((32, 32)) if not camera.is_global and camera.pitch_rad >= 0]
    steps = len(cameras)
    before = render_views(picture, cameras, (32, 32))
    assert np.array_equal(
        np.roll(before, 1, axis=0), render_views(rotate_yaw(picture, 128 // steps), cameras, (32, 32))
    )


@given(columns=st.integers(-300, 300), width=st.sampled_from([128, 130, 256]))
def test_every_column_stays_whole(columns: int, width: int) -> None:
    picture = panorama(8, width)
    after = rotate_yaw(picture, columns)
    assert all(np.array_equal(after[:, (at + columns) % width], picture[:, at]) for at in (0, 1, width // 2, width - 1))
    assert np.array_equal(rotate_yaw(after, -columns), picture)


@pytest.mark.parametrize("columns", [0, 1, 100, 249])
def test_a_sphere_that_ends_within_the_last_column_is_turned_about_its_own_seam(columns: int) -> None:
    rows, across = 125.5, 250.25
    longitude = (np.arange(251) + 0.5) / across * 2 * math.pi
    wave = lambda angle: np.broadcast_to(127.5 + 100 * np.cos(angle)[None, :, None], (126, 251, 3))  # noqa: E731
    picture = with_extent(np.rint(wave(longitude)).astype(np.uint8), (rows, across))
    after = rotate_yaw(picture, columns)
    assert extent_of(after) == (rows, across)
    wanted = wave(longitude - columns / across * 2 * math.pi)
    # Half a level of rounding before and after, and the sagitta of the wave between two columns.
    assert np.abs(after.astype(float) - wanted).max() <= 1.1
    ahead = [Camera(0, yaw, 0.0, 0.0, 1.0, 1.0) for yaw in (0.3, 2.9)]
    aside = [replace(camera, yaw_rad=camera.yaw_rad - columns / across * 2 * math.pi) for camera in ahead]
    apart = render_views(after, ahead, (24, 24)).astype(int) - render_views(picture, aside, (24, 24))
    assert np.abs(apart).max() <= 2
