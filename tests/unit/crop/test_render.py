"""Views as arrays: random sizes against the oracle, the border, pyequilib as a second opinion, wrong input."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import REAL_DATA

from panollava.crop.cameras import PERSPECTIVE, Camera
from panollava.crop.crop import read_panorama
from panollava.crop.maps import view_groups
from panollava.crop.render import bordered, render_views
from panollava.crop.strategies import AnyresE2pCrop, CubemapCrop, E2pCrop, ResizeCrop

PHOTOGRAPHS = REAL_DATA / "quic360_mini" / "images"


def random_cameras(seed: int, count: int = 4) -> list[Camera]:
    draw = np.random.default_rng(seed)
    cameras = []
    for _ in range(count):
        yaw, pitch, roll, extent = draw.uniform((-4, -1.6, -3, 0.5), (7, 1.6, 3, 2.3))
        cameras.append(Camera(PERSPECTIVE, yaw, pitch, roll, extent, extent))
    return cameras


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([(48, 48), (90, 90), (200, 200)]))
def test_random_cameras_across_seam_and_poles(seed, size, panorama, oracle):
    cameras = random_cameras(seed, 2)
    views = render_views(panorama, cameras, size)
    assert np.abs(views - oracle(cameras, size)).max() < 1e-3


@pytest.mark.parametrize("width", [8, 7])
def test_the_border_goes_on_around_the_seam_and_over_the_poles(width):
    rows = np.stack([np.arange(width), 10 + np.arange(width), 20 + np.arange(width)])
    result = bordered(np.repeat(rows[..., None], 3, axis=2).astype(np.float32), (3.0, width))[..., 0]
    assert result[1:-1, 0].tolist() == rows[:, -1].tolist()
    assert result[1:-1, -1].tolist() == rows[:, 0].tolist()
    across = (np.arange(width) + width / 2) % width
    expected = np.interp(across, np.arange(width + 1), np.append(rows[0], rows[0, 0]))
    assert result[0, 1:-1].tolist() == pytest.approx(expected)
    assert result[-1, 1:-1].tolist() == pytest.approx(expected + 20)
    assert (result[0, 0], result[0, -1]) == (result[0, -2], result[0, 1])


def test_equilib_has_the_same_sense_of_yaw_pitch_and_roll(panorama, oracle):
    """Its directions are off by no more than a pixel of the panorama and a pixel of the view, corner to corner."""
    cameras = random_cameras(3)
    views = render_views(panorama, cameras, (128, 128), "equilib")
    expected = oracle(cameras, (128, 128))
    angles = np.arccos(np.clip((views * expected).sum(-1) / np.linalg.norm(views, axis=-1), -1, 1))
    for group in view_groups(panorama.shape[:2], tuple(cameras), (128, 128)):
        for view in group.views:
            view_step = 2 * math.tan(cameras[view].h_extent_rad / 2) / 128 / group.samples
            assert angles[view].max() < math.sqrt(2) * (2 * math.pi / group.source_size[1] + view_step)


def test_equilib_agrees_on_a_smooth_picture(panorama):
    picture = np.round((panorama + 1) * 127.5).astype(np.uint8)
    cameras = [*random_cameras(7), *AnyresE2pCrop().cameras()]
    by_cv2, by_equilib = (render_views(picture, cameras, (96, 96), name).astype(int) for name in ("cv2", "equilib"))
    # 96 pixels over 90 degrees are about 2 levels a pixel.
    assert np.abs(by_cv2 - by_equilib).mean() < 0.7
    assert np.abs(by_cv2 - by_equilib).max() <= 4
    assert (by_cv2[4] == by_equilib[4]).all()  # the letterboxed panorama, which is no perspective view


def test_equilib_agrees_on_photographs_within_a_fraction_of_a_pixel():
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"{PHOTOGRAPHS} is not there")
    cameras = [*E2pCrop().cameras(), *CubemapCrop(poles=True).cameras()]
    for path in sorted(PHOTOGRAPHS.glob("*.jpg")):
        panorama = read_panorama(path, cameras, (128, 128))
        views, others = (render_views(panorama, cameras, (128, 128), name).astype(float) for name in ("cv2", "equilib"))
        moved_by_a_pixel = [np.abs(np.diff(views, axis=axis)).mean((1, 2, 3)) for axis in (1, 2)]
        assert (np.abs(views - others).mean((1, 2, 3)) < 0.5 * sum(moved_by_a_pixel)).all()


def test_a_small_panorama_is_enlarged():
    small = np.zeros((16, 32, 3), dtype=np.float32)
    small[:, :, 1] = 0.5
    views = render_views(small, AnyresE2pCrop().cameras(), (64, 64))
    assert views[1:, :, :, 1].min() == pytest.approx(0.5)


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
