"""Which views each strategy takes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panollava.component import component_names, find_component
from panollava.crop.cameras import EQUIRECTANGULAR, PERSPECTIVE
from panollava.crop.strategies import AnyresE2pCrop, CubemapCrop, E2pCrop, ResizeCrop, tile_count


def degrees(values):
    return pytest.approx([math.degrees(value) for value in values])


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
def test_tiles_and_effective_overlap(fov_deg, overlap, tiles, effective):
    crop = E2pCrop(fov_deg=fov_deg, overlap=overlap)
    assert len(crop.cameras()) == tiles
    assert crop.effective_overlap == pytest.approx(effective, abs=1e-12)
    assert len(AnyresE2pCrop(fov_deg=fov_deg, overlap=overlap).cameras()) == tiles + 1


def test_tiles_start_ahead_and_go_right_after_the_global_view():
    whole, *tiles = AnyresE2pCrop().cameras()
    assert whole.is_global
    assert (whole.projection, whole.h_extent_rad, whole.v_extent_rad) == (EQUIRECTANGULAR, 2 * math.pi, math.pi)
    assert [camera.yaw_rad for camera in tiles] == pytest.approx([math.radians(45 * index) for index in range(8)])
    assert {camera.projection for camera in tiles} == {PERSPECTIVE}
    assert not any(camera.is_global for camera in tiles)
    assert not any(camera.is_global for camera in E2pCrop().cameras())


def test_each_pitch_row_is_a_whole_ring():
    tiles = E2pCrop(overlap=0.0, pitch_rows_deg=(45, 0, -45)).cameras()
    assert [round(math.degrees(camera.pitch_rad)) for camera in tiles] == [45] * 4 + [0] * 4 + [-45] * 4
    assert [round(math.degrees(camera.yaw_rad)) for camera in tiles] == [0, 90, 180, 270] * 3


@pytest.mark.parametrize(
    ("view_size", "box"),
    [
        ((64, 64), (0.0, 0.25, 1.0, 0.75)),
        ((32, 64), (0.0, 0.0, 1.0, 1.0)),
        ((64, 32), (0.0, 0.375, 1.0, 0.625)),
        ((32, 128), (0.25, 0.0, 0.75, 1.0)),
    ],
)
def test_the_letterbox_keeps_the_panorama_twice_as_wide_as_high(view_size, box):
    assert AnyresE2pCrop().cameras(view_size)[0].box == pytest.approx(box)
    assert AnyresE2pCrop(global_view="resize").cameras(view_size)[0].box == (0.0, 0.0, 1.0, 1.0)


def test_tiles_of_other_shapes_keep_square_pixels():
    tile = E2pCrop(fov_deg=90).cameras((32, 64))[0]
    assert math.tan(tile.v_extent_rad / 2) == pytest.approx(0.5)


def test_cubemap_faces():
    crop = CubemapCrop(poles=True)
    faces = [(round(math.degrees(c.yaw_rad)), round(math.degrees(c.pitch_rad))) for c in crop.cameras()]
    assert faces == [(0, 0), (90, 0), (180, 0), (270, 0), (0, 90), (0, -90)]
    assert crop.effective_overlap == 0
    assert CubemapCrop().cameras() == crop.cameras()[:4]
    assert {c.h_extent_rad for c in crop.cameras((32, 64))} == {c.v_extent_rad for c in crop.cameras((32, 64))}


def test_resize_is_one_global_view():
    (whole,) = ResizeCrop().cameras()
    assert whole.is_global
    assert whole.box == (0.0, 0.0, 1.0, 1.0)


@given(fov_deg=st.floats(1, 179), overlap=st.floats(0, 0.9), pitch_deg=st.floats(1, 89))
def test_rings_close_with_at_least_the_overlap_asked_for(fov_deg, overlap, pitch_deg):
    crop = E2pCrop(fov_deg=fov_deg, overlap=overlap, pitch_rows_deg=(-pitch_deg, pitch_deg))
    count = tile_count(fov_deg, overlap)
    cameras = crop.cameras()
    assert len(cameras) == 2 * count
    assert crop.effective_overlap >= overlap - 1e-6
    # One tile fewer would share less than asked.
    assert 1 - 360 / ((count - 1) * fov_deg) < overlap
    step = 2 * math.pi / count
    for ring in (cameras[:count], cameras[count:]):
        assert [camera.yaw_rad for camera in ring] == pytest.approx([index * step for index in range(count)])
    assert crop.effective_overlap == pytest.approx(1 - step / cameras[0].h_extent_rad, abs=1e-6)


@given(tiles=st.integers(3, 60), tenths=st.integers(0, 9))
def test_an_exact_division_of_the_circle_needs_no_extra_tile(tiles, tenths):
    overlap = tenths / 10
    fov_deg = 360 / (tiles * (1 - overlap))
    if fov_deg < 180:
        assert tile_count(fov_deg, overlap) == tiles


@pytest.mark.parametrize("strategy", [E2pCrop, AnyresE2pCrop])
@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"fov_deg": 200}, r"crop\.fov_deg=200 is not a perspective view: 0 < fov_deg < 180"),
        ({"fov_deg": 0}, r"crop\.fov_deg=0 .*0 < fov_deg < 180"),
        ({"fov_deg": math.nan}, r"crop\.fov_deg=nan"),
        ({"overlap": 0.95}, r"crop\.overlap=0\.95 is out of range: 0 <= overlap <= 0\.9"),
        ({"overlap": -0.1}, r"crop\.overlap=-0\.1"),
        ({"pitch_rows_deg": (0, 30)}, r"crop\.pitch_rows_deg=\[0, 30\] is not symmetric.* Add -30"),
        ({"pitch_rows_deg": ()}, r"crop\.pitch_rows_deg=\[\] leaves no tiles"),
        ({"pitch_rows_deg": (-90, 90)}, r"between -90 and 90"),
        ({"pitch_rows_deg": (0, 0)}, r"names a row twice"),
    ],
)
def test_values_out_of_range_are_named_with_the_way_out(strategy, keywords, message):
    with pytest.raises(ValueError, match=message):
        strategy(**keywords)


def test_an_unknown_global_view_is_refused():
    with pytest.raises(ValueError, match=r"crop\.global_view=squash: choose letterbox"):
        AnyresE2pCrop(global_view="squash")


def test_strategies_are_found_by_their_config_names():
    assert component_names("crop.strategies", "Crop") == ["anyres_e2p", "cubemap", "e2p", "resize"]
    assert find_component("crop.strategies", "anyres_e2p", "Crop") is AnyresE2pCrop
