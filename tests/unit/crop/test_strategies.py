"""Which views each strategy takes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from panollava.component import component_names, find_component
from panollava.crop.cameras import EQUIRECTANGULAR, PERSPECTIVE, Camera
from panollava.crop.render import Renderer, render_views
from panollava.crop.strategies import (
    AnyresCrop,
    AnyresE2pCrop,
    AnyresMaxCrop,
    CropStrategy,
    CubemapCrop,
    E2pCrop,
    ResizeCrop,
    SlidingWindowCrop,
)


def yaws_deg(cameras: list[Camera]) -> list[float]:
    return [round(math.degrees(camera.yaw_rad), 6) for camera in cameras]


def pitches_deg(cameras: list[Camera]) -> list[float]:
    return [round(math.degrees(camera.pitch_rad), 6) for camera in cameras]


@pytest.mark.parametrize(
    ("fov_deg", "overlap", "tiles", "effective"),
    [
        (90, 0.5, 8, 0.5),
        (90, 0.25, 6, 1 / 3),
        (90, 0.2, 5, 0.2),
        (90, 0.0, 4, 0.0),
        (60, 0.5, 12, 0.5),
        (45, 0.0, 8, 0.0),
        (90, 0.8, 20, 0.8),
        (120, 0.0, 3, 0.0),
        (90, 0.9, 40, 0.9),
    ],
)
def test_tiles_and_effective_overlap(fov_deg: float, overlap: float, tiles: int, effective: float) -> None:
    for strategy, whole in ((E2pCrop, 0), (AnyresE2pCrop, 1), (SlidingWindowCrop, 0)):
        crop = strategy(fov_deg=fov_deg, overlap=overlap)
        assert len(crop.cameras()) == tiles + whole
        assert crop.effective_overlap == pytest.approx(effective, abs=1e-12)


def test_tiles_start_ahead_and_go_right_after_the_global_view() -> None:
    whole, *tiles = AnyresE2pCrop().cameras()
    assert whole.is_global
    assert (whole.projection, whole.h_extent_rad, whole.v_extent_rad) == (EQUIRECTANGULAR, 2 * math.pi, math.pi)
    assert yaws_deg(tiles) == [45 * index for index in range(8)]
    assert {camera.projection for camera in tiles} == {PERSPECTIVE}
    assert not any(camera.is_global for camera in tiles)
    assert E2pCrop().cameras() == tiles


@pytest.mark.parametrize("strategy", [E2pCrop, AnyresE2pCrop])
def test_each_pitch_row_is_a_whole_ring(strategy: type[E2pCrop | AnyresE2pCrop]) -> None:
    cameras = strategy(overlap=0.0, pitch_rows_deg=(45, 0, -45)).cameras()
    tiles = [camera for camera in cameras if not camera.is_global]
    assert pitches_deg(tiles) == [45] * 4 + [0] * 4 + [-45] * 4
    assert yaws_deg(tiles) == [0, 90, 180, 270] * 3


@pytest.mark.parametrize("strategy", [AnyresE2pCrop, AnyresCrop, AnyresMaxCrop])
def test_the_global_view_is_letterboxed_or_resized(
    strategy: type[AnyresE2pCrop | AnyresCrop | AnyresMaxCrop],
) -> None:
    letterboxed, *tiles = strategy().cameras((64, 64))
    resized, *same = strategy(global_view="resize").cameras((64, 64))
    assert (letterboxed.box, resized.box) == ((0.0, 0.25, 1.0, 0.75), (0.0, 0.0, 1.0, 1.0))
    assert letterboxed.is_global
    assert resized.is_global
    assert tiles == same
    with pytest.raises(ValueError, match=r"crop\.global_view=squash: choose letterbox"):
        strategy(global_view="squash")  # type: ignore[arg-type]


def test_strips_reach_from_pole_to_pole_whatever_the_shape_of_a_view() -> None:
    strips = SlidingWindowCrop(fov_deg=120, overlap=0.25).cameras((64, 16))
    assert yaws_deg(strips) == [0, 90, 180, 270]
    assert {(c.projection, c.pitch_rad, c.h_extent_rad, c.v_extent_rad) for c in strips} == {
        (EQUIRECTANGULAR, 0.0, math.radians(120), math.pi)
    }
    assert not any(camera.is_global for camera in strips)
    assert len({camera.box for camera in strips}) == 1


def test_strips_may_be_as_wide_as_the_panorama() -> None:
    assert yaws_deg(SlidingWindowCrop(fov_deg=360, overlap=0.0).cameras()) == [0]
    assert SlidingWindowCrop(fov_deg=360, overlap=0.0).effective_overlap == 0
    assert yaws_deg(SlidingWindowCrop(fov_deg=360, overlap=0.5).cameras()) == [0, 180]


@pytest.mark.parametrize(
    ("strategy", "rows", "columns"),
    [
        (AnyresCrop(), 2, 4),
        (AnyresCrop(max_tiles=7), 2, 3),
        (AnyresCrop(max_tiles=2), 1, 2),
        (AnyresCrop(grids=((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))), 1, 2),
        (AnyresCrop(max_tiles=18, grids=((2, 4), (3, 6), (4, 8))), 3, 6),
        (AnyresMaxCrop(), 3, 3),
        (AnyresMaxCrop(max_tiles=8), 2, 4),
        (AnyresMaxCrop(max_tiles=1), 1, 1),
    ],
)
def test_the_grids_of_square_views(strategy: AnyresCrop | AnyresMaxCrop, rows: int, columns: int) -> None:
    whole, *tiles = strategy.cameras()
    assert whole.is_global
    assert yaws_deg(tiles[:columns]) == pytest.approx([(2 * c + 1) * 180 / columns - 180 for c in range(columns)])
    assert pitches_deg(tiles[::columns]) == pytest.approx([90 - (2 * r + 1) * 90 / rows for r in range(rows)])
    assert len(tiles) == rows * columns
    assert strategy.effective_overlap == 0


def test_the_grid_follows_the_shape_of_a_view() -> None:
    """Views twice as wide as high fill a panorama two by two; the budget is spent the same way."""
    assert len(AnyresCrop(max_tiles=8).cameras((32, 64))) == 1 + 4
    assert len(AnyresMaxCrop(max_tiles=8).cameras((32, 64))) == 1 + 8
    assert pitches_deg(AnyresMaxCrop(max_tiles=8).cameras((32, 64))[1:]) == [45] * 4 + [-45] * 4


@pytest.mark.parametrize("renderer", ["cv2", "torch"])
@pytest.mark.parametrize(
    "strategy",
    [SlidingWindowCrop(overlap=0.25), SlidingWindowCrop(fov_deg=360), AnyresCrop(), AnyresMaxCrop()],
    ids=lambda strategy: type(strategy).__name__,
)
def test_rectangles_show_what_their_cameras_say(
    strategy: CropStrategy, renderer: Renderer, panorama: np.ndarray, oracle: Callable[..., np.ndarray]
) -> None:
    """Across the seam and up to the poles, to a hundredth of a pixel's angle."""
    tiles = [camera for camera in strategy.cameras((96, 96)) if not camera.is_global]
    views = render_views(panorama, tiles, (96, 96), renderer)
    widest = max(camera.h_extent_rad for camera in tiles) / 96
    assert np.abs(views - oracle(tiles, (96, 96))).max() < 0.01 * widest


def test_cubemap_faces() -> None:
    crop = CubemapCrop(poles=True)
    faces = list(zip(yaws_deg(crop.cameras()), pitches_deg(crop.cameras()), strict=True))
    assert faces == [(0, 0), (90, 0), (180, 0), (270, 0), (0, 90), (0, -90)]
    assert crop.effective_overlap == 0
    assert CubemapCrop().cameras() == crop.cameras()[:4]
    assert {c.h_extent_rad for c in crop.cameras((32, 64))} == {c.v_extent_rad for c in crop.cameras((32, 64))}


def test_resize_is_one_global_view() -> None:
    (whole,) = ResizeCrop().cameras()
    assert whole.is_global
    assert whole.box == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("strategy", [E2pCrop, AnyresE2pCrop])
def test_rings_that_cannot_be_are_refused(strategy: type[E2pCrop | AnyresE2pCrop]) -> None:
    for keywords, message in (
        ({"fov_deg": 180}, r"crop\.fov_deg=180 is not a perspective view"),
        ({"overlap": 0.95}, r"crop\.overlap=0\.95 is out of range.* would need 80 views"),
        ({"pitch_rows_deg": (0, 30)}, r"Add -30"),
    ):
        with pytest.raises(ValueError, match=message):
            strategy(**keywords)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"crop\.fov_deg=361 is not a strip"):
        SlidingWindowCrop(fov_deg=361)


@pytest.mark.parametrize("strategy", [AnyresCrop, AnyresMaxCrop])
@pytest.mark.parametrize("budget", [0, -1, 1001])
def test_budgets_out_of_range_are_refused(strategy: type[AnyresCrop | AnyresMaxCrop], budget: int) -> None:
    with pytest.raises(ValueError, match=rf"crop\.max_tiles={budget} .*1 <= max_tiles <= 1000.*crop=resize"):
        strategy(max_tiles=budget)


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        (((3, 6), (4, 8)), r"crop\.grids=\[\[3, 6\], \[4, 8\]\] holds no grid of at most crop\.max_tiles=8 tiles"),
        ((), r"crop\.grids=\[\] holds no grid.*crop\.grids=null"),
        (((1, 0),), r"crop\.grids=\[\[1, 0\]\]: rows and columns of each grid are at least 1"),
    ],
)
def test_grids_that_leave_no_choice_are_refused(grids: tuple[tuple[int, int], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnyresCrop(grids=grids)


def test_strategies_are_found_by_their_config_names() -> None:
    names = ["adaptive", "anyres", "anyres_e2p", "anyres_max", "cubemap", "e2p", "resize", "sliding_window"]
    assert component_names("crop.strategies", "Crop") == names
    assert find_component("crop.strategies", "anyres_e2p", "Crop") is AnyresE2pCrop
    assert find_component("crop.strategies", "sliding_window", "Crop") is SlidingWindowCrop
