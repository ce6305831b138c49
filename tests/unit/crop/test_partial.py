"""Panoramas of a part of the sphere, against pictures whose pixels are a function of where they look."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.picture_files import by_pillow, gradient, png, png_of_size, stored_as, with_orientation

from panollava.crop import partial
from panollava.crop.crop import Crop, needed_size, read_panorama
from panollava.crop.image_file import check_panorama
from panollava.crop.partial import Part, check_covered, check_shape, extent_of, pad_to_sphere, sphere_size
from panollava.crop.strategies import AnyresE2pCrop, CropStrategy, CubemapCrop, E2pCrop, ResizeCrop, SlidingWindowCrop

Covered = tuple[float, float]


def colours(longitude_deg: np.ndarray, latitude_deg: np.ndarray) -> np.ndarray:
    """What the world shows there: five levels a degree at the most, and nowhere black."""
    waves = np.stack(
        (
            np.sin(np.radians(3 * longitude_deg)) + 0 * latitude_deg,
            np.sin(np.radians(3 * latitude_deg)) + 0 * longitude_deg,
            np.sin(np.radians(2 * (longitude_deg + latitude_deg))),
        ),
        axis=-1,
    )
    return np.round(140 + 100 * waves).astype(np.uint8)


def angles(pixels: int, degrees: float, extent: float | None = None) -> np.ndarray:
    """Of pixel centres, from -degrees/2 to degrees/2 over ``extent`` pixels."""
    return ((np.arange(pixels) + 0.5) / (extent or pixels) - 0.5) * degrees


def photograph(height: int, width: int, covered: Covered) -> np.ndarray:
    return colours(angles(width, covered[0])[None, :], -angles(height, covered[1])[:, None])


def errors(whole: np.ndarray, covered: Covered) -> tuple[np.ndarray, np.ndarray]:
    """How far pixels are from the world, NaN where the picture does not reach, and how far from its edges they are."""
    rows, columns = extent_of(whole)
    longitude = angles(whole.shape[1], 360, columns)[None, :]
    latitude = -angles(whole.shape[0], 180, rows)[:, None]
    inside = np.minimum(
        (covered[0] / 2 - abs(longitude)) * columns / 360, (covered[1] / 2 - abs(latitude)) * rows / 180
    )
    found = np.abs(np.asarray(whole).astype(float) - colours(longitude, latitude)).max(-1)
    return np.where(inside > 1, found, np.nan), inside


def checked(whole: np.ndarray, covered: Covered, tolerance: float) -> None:
    """Every pixel shows what lies there, to half a pixel at the edges, and there is black around."""
    found, inside = errors(whole, covered)
    pixel_deg = 360 / extent_of(whole)[1]
    assert np.nanmax(found) <= tolerance + 5.3 * pixel_deg / 2 * math.sqrt(2)
    rows, columns = extent_of(whole)
    middle = found[int(rows * 0.48) : int(rows * 0.52) + 1, int(columns * 0.48) : int(columns * 0.52) + 1]
    assert np.nanmax(middle) <= tolerance + 0.1 * 5.3 * pixel_deg
    assert (np.asarray(whole)[inside < -1] == 0).all()


COVERED = [
    ((180.0, 90.0), (180, 360)),
    ((360.0, 90.0), (100, 400)),
    ((90.0, 180.0), (301, 151)),
    ((123.4, 77.7), (155, 247)),
    ((60.0, 40.0), (201, 301)),
    ((359.0, 179.0), (360, 721)),
    ((360.0, 180.0), (101, 201)),
]
"""Degrees, and the (H, W) of a picture that covers them."""


@pytest.mark.parametrize(("covered", "size"), COVERED)
def test_a_part_of_the_sphere_lies_where_it_belongs(tmp_path: Path, covered: Covered, size: tuple[int, int]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(photograph(*size, covered)))
    crop = Crop(E2pCrop(), view_size=(512, 512), panorama_fov_deg=covered)
    crop.check(path)
    whole = crop.read(path)
    checked(whole, covered, 1.0)
    rows, columns = extent_of(whole)
    assert abs(rows - size[0] * 180 / covered[1]) <= 1
    assert abs(columns - size[1] * 360 / covered[0]) <= 1


NEEDED = needed_size(E2pCrop().cameras(), (64, 64))[1]
"""Pixels around that views of 90 degrees and 64 pixels need."""


@pytest.mark.parametrize(
    ("covered", "size", "divisor"),
    [((180.0, 60.0), (667, 2001), 4), ((90.0, 60.0), (1334, 2003), 8), ((360.0, 120.0), (601, 1803), 2)],
)
def test_the_density_of_a_jpeg_decides_how_finely_it_is_decoded(
    tmp_path: Path, covered: Covered, size: tuple[int, int], divisor: int
) -> None:
    """Views of 90 degrees and 64 pixels need so many pixels around; the picture's own width says nothing of that."""
    path = tmp_path / "a.jpg"
    path.write_bytes(by_pillow(photograph(*size, covered), "JPEG", quality=97, subsampling=0))
    whole = read_panorama(path, E2pCrop().cameras(), (64, 64), covered)
    finer = size[1] * 360 / covered[0] / NEEDED
    assert divisor <= finer
    assert extent_of(whole)[1] == pytest.approx(NEEDED * finer / divisor / int(finer / divisor), abs=4)
    checked(whole, covered, 3.0)


def test_a_picture_without_reduced_decoding_is_averaged_down(tmp_path: Path) -> None:
    """Else 60 degrees of 1500 pixels would lie in a sphere of 9000."""
    path = tmp_path / "a.png"
    path.write_bytes(png(photograph(1000, 1500, (60.0, 40.0))))
    whole = read_panorama(path, E2pCrop().cameras(), (64, 64), (60.0, 40.0))
    assert whole.shape[1] == pytest.approx(9000 / (9000 // NEEDED), abs=4)
    checked(whole, (60.0, 40.0), 1.5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_lying_picture_is_turned_before_its_shape_is_looked_at(tmp_path: Path, orientation: int) -> None:
    upright, covered = photograph(400, 1200, (180.0, 60.0)), (180.0, 60.0)
    path = tmp_path / "a.jpg"
    path.write_bytes(with_orientation(by_pillow(stored_as(upright, orientation), "JPEG", quality=97), orientation))
    assert check_panorama(path, covered).size == (400, 1200)
    checked(read_panorama(path, E2pCrop().cameras(), (64, 64), covered), covered, 4.0)


@pytest.mark.parametrize("strategy", [AnyresE2pCrop(), CubemapCrop(poles=True), SlidingWindowCrop(), ResizeCrop()])
def test_views_are_those_of_the_whole_panorama_with_black_around(tmp_path: Path, strategy: CropStrategy) -> None:
    covered = (150.0, 90.0)
    path = tmp_path / "a.png"
    path.write_bytes(png(photograph(180, 300, covered)))
    crop = Crop(strategy, view_size=(32, 32), panorama_fov_deg=covered)
    whole = photograph(360, 720, (360.0, 180.0))
    whole[:90] = whole[270:] = whole[:, :210] = whole[:, 510:] = 0
    difference = (crop.views(crop.read(path)).int() - crop.views(whole).int()).abs().float()
    assert difference.max() <= 10  # where the picture ends
    assert difference.mean() < 0.5
    assert (crop.views(crop.whole(photograph(180, 300, covered))) == crop.views(crop.read(path))).all()


def test_the_whole_sphere_is_left_as_it_is() -> None:
    picture = gradient()
    assert pad_to_sphere(picture, None, (1, 2)) is picture
    assert Crop(ResizeCrop(), view_size=(8, 8)).whole(picture) is picture
    assert (np.asarray(pad_to_sphere(picture, Part(360.0, 180.0), (64, 128))) == picture).all()


def test_a_panorama_that_was_read_is_not_made_whole_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(photograph(60, 120, (180.0, 90.0))))
    crop = Crop(ResizeCrop(), view_size=(64, 64), panorama_fov_deg=(180, 90))
    whole = crop.read(path)
    assert crop.whole(whole) is whole
    assert whole.shape == (120, 240, 3)


@settings(deadline=None, max_examples=200)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    covered=st.tuples(st.floats(20, 360), st.floats(20, 180)),
    needed=st.tuples(st.integers(1, 300), st.integers(2, 600)),
)
def test_a_picture_lies_in_the_centre_at_its_scale(
    size: tuple[int, int], covered: Covered, needed: tuple[int, int]
) -> None:
    whole = pad_to_sphere(np.full((*size, 3), 200, np.uint8), Part(*covered), needed)
    rows, columns = extent_of(whole)
    assert whole.shape[:2] == (math.ceil(rows), math.ceil(columns))
    filled = np.asarray(whole)[..., 0] == 200
    for axis, extent in ((1, rows), (0, columns)):
        places = np.flatnonzero(filled.any(axis))
        before, after = places[0], extent - places[-1] - 1
        assert abs(before - after) < 1e-6
    assert filled.sum() == filled.any(1).sum() * filled.any(0).sum()
    kept = filled.any(1).sum(), filled.any(0).sum()
    for extent, exact in zip((rows, columns), sphere_size(kept, Part(*covered)), strict=True):
        assert abs(extent - exact) <= 1 + 1e-6
    if kept != size:  # it was finer than needed, and still is but for the pixel that rounding takes on each side
        fewest = [want * (1 - 1 / side) - 1 for want, side in zip(needed, kept, strict=True)]
        assert all(have >= want for have, want in zip((rows, columns), fewest, strict=True))


def test_a_sphere_is_never_larger_than_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "MAX_PIXELS", 100_000)
    needed = (10_000, 20_000)
    whole = pad_to_sphere(np.zeros((100, 200, 3), np.uint8), Part(36.0, 18.0), needed)
    assert 60_000 < whole.shape[0] * whole.shape[1] <= 105_000
    with pytest.raises(ValueError, match=r"crop\.panorama_fov_deg=\[0\.1, 0\.1\] is so little"):
        pad_to_sphere(np.zeros((100, 100, 3), np.uint8), Part(0.1, 0.1), needed)


@pytest.mark.parametrize(
    ("size", "covered", "said"),
    [
        ((64, 200), None, ["200 x 64 pixels is not a whole panorama", "twice as wide", "2:1", "panorama_fov_deg=["]),
        ((64, 128), (180.0, 60.0), ["128 x 64", "panorama_fov_deg=[180, 60]", "3 times", "this is 2 times", "null"]),
        ((100, 306), (180.0, 60.0), ["306 x 100", "3 times as wide as high (within 2%)", "this is 3.06"]),
    ],
)
def test_a_picture_of_another_shape_is_refused(
    tmp_path: Path, size: tuple[int, int], covered: Covered | None, said: list[str]
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_of_size(size[1], size[0]))
    crop = Crop(ResizeCrop(), view_size=(8, 8), panorama_fov_deg=covered)
    for action in (crop.check, crop.read):
        with pytest.raises(ValueError, match=r"a\.png: ") as error:
            action(path)
        assert all(part in str(error.value) for part in said)
    with pytest.raises(ValueError, match="The picture: "):
        crop.whole(np.zeros((*size, 3), np.uint8))


@pytest.mark.parametrize(("size", "covered"), [((100, 305), (180.0, 60.0)), ((100, 295), (180.0, 60.0))])
def test_two_percent_are_accepted(size: tuple[int, int], covered: Covered) -> None:
    check_shape("a", size, Part(*covered))


@pytest.mark.parametrize(
    ("covered", "said"),
    [
        ((0, 90), r"crop\.panorama_fov_deg=\[0, 90\] is out of range: 0 < horizontal <= 360.*shows nothing.*null"),
        ((361, 90), "0 < horizontal <= 360.*the same twice"),
        ((180, 0), "0 < vertical <= 180.*shows nothing"),
        ((180, 181), "0 < vertical <= 180.*From pole to pole"),
        ((math.nan, 90), "0 < horizontal"),
        ((180, math.inf), "0 < vertical"),
    ],
)
def test_angles_out_of_range_are_refused(covered: Covered, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_covered(covered)
    with pytest.raises(ValueError, match=said):
        Crop(ResizeCrop(), view_size=(8, 8), panorama_fov_deg=covered)
    check_covered((360, 180))
    check_covered(None)
