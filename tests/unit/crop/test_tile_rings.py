"""How many views a ring takes, and the rings that are refused."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from panollava.crop.strategies import MAX_TILES, E2pCrop, SlidingWindowCrop, ring_overlap, tile_count


@given(fov=st.integers(1, 3600), overlap=st.integers(0, 90))
@example(fov=900, overlap=80)
@example(fov=600, overlap=50)
@example(fov=3600, overlap=90)
def test_counts_of_decimal_settings_are_those_of_exact_arithmetic(fov: int, overlap: int) -> None:
    """Tenths of a degree and hundredths of overlap, as people write them; floats must neither add nor drop a tile."""
    exact = Fraction(360) / (Fraction(fov, 10) * (1 - Fraction(overlap, 100)))
    count = tile_count(fov / 10, overlap / 100)
    assert count == math.ceil(exact)
    effective = 1 - Fraction(3600, count * fov)
    assert effective >= Fraction(overlap, 100)
    assert ring_overlap(fov / 10, overlap / 100) == pytest.approx(float(effective), abs=1e-12)


@pytest.mark.parametrize(
    ("fov_deg", "overlap", "count"), [(90, 0.8, 20), (60, 0.5, 12), (360, 0, 1), (360, 0.5, 2), (36, 0.9, 100)]
)
def test_exact_divisions_of_the_circle_need_no_further_view(fov_deg: float, overlap: float, count: int) -> None:
    assert tile_count(fov_deg, overlap) == count
    assert len(SlidingWindowCrop(fov_deg=fov_deg, overlap=overlap).cameras()) == count


@given(fov_deg=st.floats(0.5, 360), overlap=st.floats(0, 0.9))
def test_one_view_fewer_would_share_less_than_asked(fov_deg: float, overlap: float) -> None:
    count = tile_count(fov_deg, overlap)
    assert ring_overlap(fov_deg, overlap) >= overlap - 1e-6
    assert count == 1 or 1 - 360 / ((count - 1) * fov_deg) < overlap


def test_square_pixels_whatever_the_shape_of_a_view() -> None:
    (tile, *_) = E2pCrop(fov_deg=90, overlap=0.0).cameras((32, 64))
    assert math.tan(tile.v_extent_rad / 2) == pytest.approx(0.5)


TILES = [
    (200, 0.5, (0,), r"crop\.fov_deg=200 is not a perspective view: 0 < fov_deg < 180.*crop=sliding_window"),
    (0, 0.5, (0,), r"crop\.fov_deg=0 .*0 < fov_deg < 180"),
    (math.nan, 0.5, (0,), r"crop\.fov_deg=nan"),
    (
        90,
        0.95,
        (0,),
        r"crop\.overlap=0\.95 is out of range: 0 <= overlap <= 0\.9\..* 80 views a ring, against 40 at 0\.9",
    ),
    (90, 1.0, (0,), r"crop\.overlap=1 .*no number of views"),
    (90, math.nan, (0,), r"crop\.overlap=nan .*no number of views"),
    (90, -0.1, (0,), r"crop\.overlap=-0\.1 .*9 degrees between two views would be seen by none"),
    (0.5, 0.5, (0,), rf"crop\.fov_deg=0\.5 at crop\.overlap=0\.5 would need 1,440 views, .*at most {MAX_TILES}"),
    (2, 0.5, (-1, 0, 1), r"would need 360 views in each of 3 pitch rows"),
    (5e-324, 0.5, (0,), r"would need inf views"),
    (90, 0.5, (0, 30), r"crop\.pitch_rows_deg=\[0, 30\] is not symmetric.* Add -30"),
    (90, 0.5, (), r"crop\.pitch_rows_deg=\[\] leaves no tiles"),
    (90, 0.5, (-90, 90), r"between -90 and 90"),
    (90, 0.5, (math.nan,), r"between -90 and 90"),
    (90, 0.5, (0, 0), r"names a row twice"),
    (90, 0.5, (-0.01, 0.01), r"rows less than 0\.1 degrees apart"),
]


@pytest.mark.parametrize(("fov_deg", "overlap", "rows", "message"), TILES)
def test_a_ring_of_tiles_that_cannot_be_is_refused_with_what_it_would_lead_to(
    fov_deg: float, overlap: float, rows: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        E2pCrop(fov_deg=fov_deg, overlap=overlap, pitch_rows_deg=rows)


@pytest.mark.parametrize(
    ("fov_deg", "overlap", "message"),
    [
        (361, 0.5, r"crop\.fov_deg=361 is not a strip of the panorama: 0 < fov_deg <= 360"),
        (0, 0.5, r"crop\.fov_deg=0"),
        (180, 0.95, r"crop\.overlap=0\.95 .* 40 views a ring, against 20 at 0\.9"),
        (0.1, 0.0, r"would need 3,600 views, and a crop has at most"),
    ],
)
def test_a_ring_of_strips_that_cannot_be_is_refused(fov_deg: float, overlap: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlidingWindowCrop(fov_deg=fov_deg, overlap=overlap)


def test_the_most_tiles_that_there_may_be_are_allowed() -> None:
    fov_deg = 360 / (MAX_TILES // 2)
    assert len(E2pCrop(fov_deg=fov_deg, overlap=0.0, pitch_rows_deg=(-30, 30)).cameras()) == MAX_TILES
