"""Views against the panorama whose pixels are their own direction."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panollava.crop.cameras import EQUIRECTANGULAR, PERSPECTIVE, Camera
from panollava.crop.render import bordered, render_views
from panollava.crop.strategies import AnyresE2pCrop, CubemapCrop, E2pCrop, ResizeCrop

STRATEGIES = {
    "anyres_e2p": AnyresE2pCrop(),
    "anyres_e2p resize": AnyresE2pCrop(global_view="resize", fov_deg=110, overlap=0.1),
    "e2p pitched": E2pCrop(pitch_rows_deg=(-70, 0, 70)),
    "cubemap": CubemapCrop(poles=True),
    "resize": ResizeCrop(),
}


def random_cameras(seed: int, count: int = 4) -> list[Camera]:
    draw = np.random.default_rng(seed)
    cameras = []
    for _ in range(count):
        yaw, pitch, roll, extent = draw.uniform((-4, -1.6, -3, 0.5), (7, 1.6, 3, 2.3))
        cameras.append(Camera(PERSPECTIVE, yaw, pitch, roll, extent, extent))
    return cameras


def worst(views: np.ndarray, expected: np.ndarray) -> float:
    """Largest error outside padding, which is exactly black and no direction."""
    error = np.abs(views - expected).max(-1)
    return float(error[(views != 0).any(-1)].max())


@pytest.mark.parametrize("renderer", ["cv2", "torch"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_pixel_of_every_strategy_holds_its_direction(name, renderer, panorama, oracle):
    cameras = STRATEGIES[name].cameras()
    views = render_views(panorama, cameras, (96, 96), renderer)
    assert views.dtype == np.float32
    assert worst(views, oracle(cameras, (96, 96))) < 1e-3


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([(48, 48), (90, 90), (200, 200)]))
def test_random_cameras_across_seam_and_poles(seed, size, panorama, oracle):
    cameras = random_cameras(seed, 2)
    views = render_views(panorama, cameras, size)
    assert np.abs(views - oracle(cameras, size)).max() < 1e-3


@pytest.mark.parametrize("pitch_deg", [90, -90])
def test_a_view_of_a_pole_is_whole(pitch_deg, panorama, oracle):
    """Pixels closer to the pole than the centre of the outermost row are sampled across it."""
    camera = Camera(PERSPECTIVE, 0.4, math.radians(pitch_deg), 0.2, math.radians(1.5), math.radians(1.5))
    views = render_views(panorama, [camera], (65, 65))
    # Plain wrapping of the border would be off by the width of a row, 3e-3.
    assert np.abs(views - oracle([camera], (65, 65))).max() < 1e-4


@pytest.mark.parametrize("width", [8, 7])
def test_the_border_goes_on_around_the_seam_and_over_the_poles(width):
    rows = np.stack([np.arange(width), 10 + np.arange(width), 20 + np.arange(width)])
    result = bordered(np.repeat(rows[..., None], 3, axis=2).astype(np.float32))[..., 0]
    assert result[1:-1, 0].tolist() == rows[:, -1].tolist()
    assert result[1:-1, -1].tolist() == rows[:, 0].tolist()
    across = (np.arange(width) + width / 2) % width
    expected = np.interp(across, np.arange(width + 1), np.append(rows[0], rows[0, 0]))
    assert result[0, 1:-1].tolist() == pytest.approx(expected)
    assert result[-1, 1:-1].tolist() == pytest.approx(expected + 20)
    assert (result[0, 0], result[0, -1]) == (result[0, -2], result[0, 1])


def test_renderers_agree_on_uint8_pictures(panorama):
    picture = np.round((panorama + 1) * 127.5).astype(np.uint8)
    cameras = [*random_cameras(7), *AnyresE2pCrop().cameras()]
    by_cv2, by_torch, by_equilib = (
        render_views(picture, cameras, (96, 96), renderer).astype(int) for renderer in ("cv2", "torch", "equilib")
    )
    assert by_cv2.dtype == by_torch.dtype
    assert np.abs(by_cv2 - by_torch).max() <= 2
    # pyequilib's pixel centres are half a pixel off: 96 pixels over 90 degrees are about 2 levels a pixel.
    assert np.abs(by_cv2 - by_equilib).mean() < 0.7
    assert np.abs(by_cv2 - by_equilib).max() <= 4


def test_equilib_has_the_same_sense_of_yaw_pitch_and_roll(panorama, oracle):
    cameras = random_cameras(3)
    views = render_views(panorama, cameras, (128, 128), "equilib")
    assert np.abs(views - oracle(cameras, (128, 128))).max() < 0.03


def test_the_padding_of_a_letterbox_is_black_and_the_rest_is_not():
    white = np.full((64, 128, 3), 255, dtype=np.uint8)
    (view,) = render_views(white, AnyresE2pCrop().cameras()[:1], (32, 32))
    assert (view[:8] == 0).all()
    assert (view[8:24] == 255).all()
    assert (view[24:] == 0).all()


def test_a_picture_finer_than_the_view_fades_instead_of_flickering():
    """Stripes of one pixel are grey in every view, not black or white."""
    stripes = np.zeros((1024, 2048, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    tiles = render_views(stripes, AnyresE2pCrop().cameras(), (64, 64))[1:]
    assert np.abs(tiles.astype(float) - 127.5).max() < 8


def test_a_small_panorama_is_enlarged():
    small = np.zeros((16, 32, 3), dtype=np.float32)
    small[:, :, 1] = 0.5
    views = render_views(small, AnyresE2pCrop().cameras(), (64, 64))
    assert views[1:, :, :, 1].min() == pytest.approx(0.5)


def test_sizes_a_little_off_two_to_one_keep_directions(odd_panorama, oracle):
    cameras = CubemapCrop(poles=True).cameras()
    assert worst(render_views(odd_panorama, cameras, (64, 64)), oracle(cameras, (64, 64))) < 1e-3


def test_sides_that_cv2_cannot_remap_are_shrunk_first():
    wide = np.full((4, 33_000, 3), 7, dtype=np.uint8)
    strip = Camera(EQUIRECTANGULAR, 0.0, 0.0, 0.0, 2 * math.pi, math.pi, is_global=True)
    tile = Camera(PERSPECTIVE, 3.1, 0.0, 0.0, 0.01, 0.01)
    assert (render_views(wide, [strip, tile], (32, 32)) == 7).all()


def test_maps_are_kept_between_panoramas(monkeypatch):
    picture = np.zeros((128, 256, 3), dtype=np.uint8)
    cameras = AnyresE2pCrop(fov_deg=77).cameras()
    render_views(picture, cameras, (24, 24))
    monkeypatch.setattr(cv2, "convertMaps", None)
    render_views(picture, cameras, (24, 24))


@pytest.mark.parametrize(
    ("panorama_shape", "dtype", "keywords", "message"),
    [
        ((8, 16), np.uint8, {}, r"not \(8, 16\) of uint8"),
        ((8, 16, 4), np.uint8, {}, r"not \(8, 16, 4\)"),
        ((8, 16, 3), np.float64, {}, r"uint8 or float32, not .* of float64"),
        ((8, 16, 3), np.uint8, {"renderer": "opengl"}, r"crop\.renderer=opengl: choose cv2, torch or equilib"),
        ((8, 16, 3), np.uint8, {"device": "cuda"}, r"crop\.device=cuda needs crop\.renderer=torch"),
        ((8, 16, 3), np.uint8, {"view_size": (0, 4)}, r"crop\.view_size=\[0, 4\]"),
    ],
)
def test_wrong_input_is_named(panorama_shape, dtype, keywords, message):
    arguments = {"view_size": (4, 4), **keywords}
    with pytest.raises(ValueError, match=message):
        render_views(np.zeros(panorama_shape, dtype), ResizeCrop().cameras(), **arguments)


def test_equilib_refuses_pixels_that_are_not_square():
    with pytest.raises(ValueError, match=r"crop\.renderer=equilib cannot cut .* Use crop\.renderer=cv2"):
        render_views(np.zeros((32, 64, 3), np.uint8), CubemapCrop().cameras(), (16, 32), "equilib")
