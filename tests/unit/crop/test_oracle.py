"""Views against what they should hold, worked out here from the conventions alone."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from panollava.component import component_names, find_component
from panollava.crop.cameras import EQUIRECTANGULAR, PERSPECTIVE, Camera
from panollava.crop.maps import view_groups
from panollava.crop.render import Renderer, render_views

STRATEGIES = component_names("crop.strategies", "Crop")
OTHER_OPTIONS = {
    "e2p": {"fov_deg": 60, "overlap": 0.1, "pitch_rows_deg": (-70, 0, 70)},
    "anyres_e2p": {"fov_deg": 120, "overlap": 0.2, "pitch_rows_deg": (-30, 30), "global_view": "resize"},
    "cubemap": {"poles": True},
    "sliding_window": {"fov_deg": 200, "overlap": 0.6},
    "anyres": {"max_tiles": 5, "global_view": "resize"},
    "anyres_max": {"max_tiles": 4},
}


def default(name: str, view_size: tuple[int, int]) -> list[Camera]:
    return find_component("crop.strategies", name, "Crop")().cameras(view_size)


def varied(name: str, view_size: tuple[int, int]) -> list[Camera]:
    return find_component("crop.strategies", name, "Crop")(**OTHER_OPTIONS.get(name, {})).cameras(view_size)


def random_cameras(seed: int, count: int) -> list[Camera]:
    """Tiles of every width anywhere, their centres up to 30 degrees beyond a pole."""
    draw = np.random.default_rng(seed)
    low, high = np.radians((-360, -120, -180, 20)), np.radians((720, 120, 180, 150))
    drawn = draw.uniform(low, high, size=(count, 4))
    return [Camera(PERSPECTIVE, yaw, pitch, roll, extent, extent) for yaw, pitch, roll, extent in drawn]


def worst(views: np.ndarray, expected: np.ndarray) -> float:
    """Largest error outside padding, which is exactly black and no direction."""
    is_content = (views != 0).any(-1)
    assert is_content.any((1, 2)).all()
    return float(np.abs(views - expected)[is_content].max())


@pytest.mark.parametrize("renderer", ["cv2", "torch"])
@pytest.mark.parametrize("seed", range(10))
def test_every_pixel_of_200_random_cameras_holds_its_direction(
    seed: int, renderer: Renderer, panorama: np.ndarray, oracle
) -> None:
    """Twenty cameras a seed, across the seam and the poles, from 20 to 150 degrees wide."""
    cameras = random_cameras(seed, 20)
    views = render_views(panorama, cameras, (96, 96), renderer)
    assert np.abs(views - oracle(cameras, (96, 96))).max() < 1e-3


@pytest.mark.parametrize("renderer", ["cv2", "torch"])
@pytest.mark.parametrize("options", [default, varied])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_pixel_of_every_strategy_holds_its_direction(
    name: str, options, renderer: Renderer, panorama: np.ndarray, oracle
) -> None:
    cameras = options(name, (96, 96))
    views = render_views(panorama, cameras, (96, 96), renderer)
    assert views.dtype == np.float32
    assert worst(views, oracle(cameras, (96, 96))) < 1e-3


@pytest.mark.parametrize("view_size", [(16, 16), (12, 20)])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_pixel_of_a_coarse_view_holds_the_mean_of_what_it_covers(
    name: str, view_size: tuple[int, int], panorama: np.ndarray, oracle
) -> None:
    """The panorama is many times finer than the view, so it is halved first and sampled several times a pixel."""
    cameras = default(name, view_size)
    assert any(group.samples > 1 for group in view_groups(panorama.shape[:2], tuple(cameras), view_size))
    finer = oracle(cameras, (view_size[0] * 16, view_size[1] * 16))
    mean = finer.reshape(len(cameras), view_size[0], 16, view_size[1], 16, 3).mean((2, 4))
    # A view of 16 pixels is cut from a panorama of 128, between whose pixels lines are straight: 3e-4 off.
    assert worst(render_views(panorama, cameras, view_size), mean) < 2e-3


@pytest.mark.parametrize("pitch_deg", [90, -90])
def test_a_view_of_a_pole_is_whole(pitch_deg: float, panorama: np.ndarray, oracle) -> None:
    """Pixels closer to the pole than the centre of the outermost row are sampled across it."""
    camera = Camera(PERSPECTIVE, 0.4, math.radians(pitch_deg), 0.2, math.radians(1.5), math.radians(1.5))
    views = render_views(panorama, [camera], (65, 65))
    # Plain wrapping of the border would be off by the width of a row, 3e-3.
    assert np.abs(views - oracle([camera], (65, 65))).max() < 1e-4


def test_sizes_a_little_off_two_to_one_keep_directions(odd_panorama: np.ndarray, oracle) -> None:
    for name in STRATEGIES:
        cameras = varied(name, (64, 64))
        assert worst(render_views(odd_panorama, cameras, (64, 64)), oracle(cameras, (64, 64))) < 1e-3


def bilinear(panorama: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """A panorama (H, W, 3) at directions (..., 3), pixel by pixel around the seam and over the poles."""
    height, width = panorama.shape[:2]
    x, y, z = np.moveaxis(directions, -1, 0)
    column = (np.arctan2(x, z) / (2 * np.pi) + 0.5) * width - 0.5
    row = (0.5 - np.arcsin(y) / np.pi) * height - 0.5
    result = np.zeros_like(directions)
    for r in (np.floor(row), np.floor(row) + 1):
        for c in (np.floor(column), np.floor(column) + 1):
            beyond = (r < 0) | (r >= height)
            inside = np.where(r < 0, -1 - r, np.where(r >= height, 2 * height - 1 - r, r)).astype(int)
            across = (c + np.where(beyond, width // 2, 0)).astype(int) % width
            weight = (1 - np.abs(row - r)) * (1 - np.abs(column - c))
            result += weight[..., None] * panorama[inside, across]
    return result


@pytest.mark.parametrize(("renderer", "tolerance"), [("cv2", 0.07), ("torch", 1e-4)])
@pytest.mark.parametrize("size", [(8, 16), (3, 6), (2, 4), (1, 2)])
def test_a_tiny_panorama_of_noise_goes_on_around_the_seam_and_over_the_poles(
    size: tuple[int, int], renderer: Renderer, tolerance: float, oracle
) -> None:
    """Neighbouring pixels have nothing in common here, so one that is taken from the wrong place shows."""
    noise = np.random.default_rng(0).random((*size, 3), dtype=np.float32)
    poles = [Camera(PERSPECTIVE, 0.3, math.radians(pitch), 0.0, 1.0, 1.0) for pitch in (90, -90, 60)]
    for cameras in (random_cameras(5, 6), poles, [camera for name in STRATEGIES for camera in default(name, (64, 64))]):
        views = render_views(noise, cameras, (64, 64), renderer)
        expected = bilinear(noise, oracle(cameras, (64, 64)))
        is_content = (views != 0).any(-1)
        # cv2 may know 32 places between two pixels only.
        assert np.abs(views - expected)[is_content].max() < tolerance


@pytest.mark.parametrize("renderer", ["cv2", "torch", "equilib"])
@pytest.mark.parametrize("view_size", [(1, 1), (2, 1), (1, 2), (1, 3), (5, 3)])
@pytest.mark.parametrize("size", [(1, 2), (8, 16), (31, 63)])
def test_views_of_a_few_pixels_of_a_plain_panorama_are_plain(
    size: tuple[int, int], view_size: tuple[int, int], renderer: Renderer
) -> None:
    plain = np.full((*size, 3), (7, 200, 90), dtype=np.uint8)
    for name in STRATEGIES:
        if renderer == "equilib" and name == "cubemap" and view_size[0] != view_size[1]:
            continue
        cameras = default(name, view_size)
        views = render_views(plain, cameras, view_size, renderer)
        is_padding = (views == 0).all(-1)
        assert (views[~is_padding] == (7, 200, 90)).all()
        assert not is_padding.all((1, 2)).any()
        assert not is_padding[[camera.box == (0, 0, 1, 1) for camera in cameras]].any()


@pytest.mark.parametrize("renderer", ["cv2", "torch"])
@pytest.mark.parametrize("size", [(16, 33_000), (33_000, 64), (16, 70_001)])
def test_sides_that_cv2_cannot_remap_are_shrunk_first(size: tuple[int, int], renderer: Renderer) -> None:
    """A thin panorama, light ahead and dark behind: where a view looks is still right."""
    ahead = np.abs(np.arange(size[1]) / size[1] - 0.5) < 0.25
    thin = np.broadcast_to(np.where(ahead, 200, 10).astype(np.uint8)[None, :, None], (*size, 3))
    whole = Camera(EQUIRECTANGULAR, 0.0, 0.0, 0.0, 2 * math.pi, math.pi, is_global=True)
    tiles = [Camera(PERSPECTIVE, yaw, 0.0, 0.0, 0.01, 0.01) for yaw in (0.0, 3.1)]
    views = render_views(thin, [whole, *tiles], (32, 32), renderer)
    assert [int(view.mean()) for view in views[1:]] == [200, 10]
    assert (views[0, 12:20, 10:22] == 200).all()
    assert (views[0, 12:20][:, [*range(7), *range(25, 32)]] == 10).all()


@pytest.mark.parametrize("period", [2, 3, 5])
@pytest.mark.parametrize("view_side", [32, 48, 100])
@pytest.mark.parametrize("name", STRATEGIES)
def test_stripes_finer_than_a_view_fade_instead_of_flickering(name: str, view_side: int, period: int) -> None:
    """Upright stripes a few pixels wide, of which every pixel of a view covers several."""
    stripes = np.sin(2 * np.pi * np.arange(6000) / period + 0.7)
    picture = np.repeat(np.broadcast_to(127.5 + 100 * stripes, (64, 6000))[..., None], 3, axis=2).astype(np.uint8)
    picture = cv2.resize(picture, (6000, 3000), interpolation=cv2.INTER_NEAREST)
    cameras = default(name, (view_side, view_side))
    for group in view_groups((3000, 6000), tuple(cameras), (view_side, view_side)):
        top, left, bottom, right = group.content
        views = render_views(picture, [cameras[view] for view in group.views], (view_side, view_side))
        assert views[:, top:bottom, left:right].std() < 12  # 71 in the panorama


def test_the_padding_of_a_letterbox_is_black_and_the_rest_is_not() -> None:
    white = np.full((64, 128, 3), 255, dtype=np.uint8)
    (camera,) = default("anyres_e2p", (32, 32))[:1]
    for renderer in ("cv2", "torch", "equilib"):
        (view,) = render_views(white, [camera], (32, 32), renderer)
        assert (view[:8] == 0).all()
        assert (view[8:24] == 255).all()
        assert (view[24:] == 0).all()
    # Of seven rows three have their centre in the middle half.
    assert np.flatnonzero(render_views(white, [camera], (7, 7))[0].any((1, 2))).tolist() == [2, 3, 4]
