"""Masks in files: index pictures, polygons and run lengths, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from panollava.crop.boxes import IGNORED, NOTHING
from panollava.data.masks import read_index_mask, segment_shape, segments_mask, shape_pixels

SIZE = (4, 8)
KINDS = np.array([1, NOTHING, 0], np.int16)  # the second class of the file is left out


def segment_pixels(value: Any, size: tuple[int, int]) -> np.ndarray:
    """Pixels ``(H, W)`` of a segmentation, in a picture of their size."""
    found = np.zeros(size, bool)
    top, left, pixels = shape_pixels(segment_shape(value, size), size)
    window = found[top : top + pixels.shape[0], left : left + pixels.shape[1]]
    assert window.shape == pixels.shape
    window[:] = pixels
    return found


def slow_pixels(polygons: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    """The same, each polygon in a mask of the whole picture and edge after edge."""
    height, width = size
    found = np.zeros(size, bool)
    for polygon in polygons:
        points = np.array(polygon, float).reshape(-1, 2)
        crossings = np.zeros((height, width + 1), np.uint8)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            first, last = np.ceil(np.clip(sorted((y0, y1)), 0, height) - 0.5).astype(int)
            rows = np.arange(first, last)
            if len(rows):
                x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
                crossings[rows, np.ceil(np.clip(x, 0, width + 0.5) - 0.5).astype(int)] ^= 1
        found |= np.bitwise_xor.accumulate(crossings[:, :width], axis=1).astype(bool)
    return found


def runs(pixels: np.ndarray) -> list[int]:
    """Run lengths of COCO: column by column, first of pixels outside."""
    flat = np.concatenate([[False], pixels.T.reshape(-1)])
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *starts, pixels.size]).tolist()


def as_text(counts: list[int]) -> str:
    """COCO's text of run lengths, after ``rleToString`` of the COCO API."""
    text = ""
    for at, count in enumerate(counts):
        value, more = count - (counts[at - 2] if at > 2 else 0), True
        while more:
            code = value & 31
            value >>= 5
            more = value != -1 if code & 16 else value != 0
            text += chr((code | 32 if more else code) + 48)
    return text


def test_an_index_picture_has_classes_from_one_on(tmp_path: Path) -> None:
    indices = np.array([[0, 1, 2, 3, 255, 0, 0, 0]] * 4, np.uint8)
    Image.fromarray(indices).save(tmp_path / "grey.png")
    coloured = Image.fromarray(indices, "P")
    coloured.putpalette([7, 9, 11] * 256)
    coloured.save(tmp_path / "palette.png")
    for name in ("grey.png", "palette.png"):
        found = read_index_mask(tmp_path / name, KINDS, SIZE)
        assert found.dtype == np.int16
        assert found[0].tolist() == [NOTHING, 1, NOTHING, 0, IGNORED, NOTHING, NOTHING, NOTHING]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.full(SIZE, 4, np.uint8), "has the index 4: allowed are 0 (no class), 1 to 3"),
        (np.zeros((4, 9), np.uint8), "has 9x4 pixels, and its picture 8x4"),
        (np.zeros((4, 8, 3), np.uint8), "has the pixels RGB: allowed is one channel"),
    ],
)
def test_a_wrong_index_picture_is_refused(picture: np.ndarray, message: str, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "m.png")
    with pytest.raises(ValueError) as error:
        read_index_mask(tmp_path / "m.png", KINDS, SIZE)
    assert message in str(error.value)
    assert str(tmp_path / "m.png") in str(error.value)


def test_a_missing_and_a_damaged_mask_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no mask .*m\.png"):
        read_index_mask(tmp_path / "m.png", KINDS, SIZE)
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "m.png")
    (tmp_path / "m.png").write_bytes((tmp_path / "m.png").read_bytes()[:45])
    with pytest.raises(ValueError, match="no readable PNG"):
        read_index_mask(tmp_path / "m.png", KINDS, SIZE)
    (tmp_path / "m.png").write_text("text")
    with pytest.raises(ValueError, match="no readable PNG"):
        read_index_mask(tmp_path / "m.png", KINDS, SIZE)


@given(arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 70))))
def test_run_lengths_round_trip(pixels: np.ndarray) -> None:
    for counts in (runs(pixels), as_text(runs(pixels))):
        assert (segment_pixels({"size": list(pixels.shape), "counts": counts}, pixels.shape) == pixels).all()


def test_the_text_of_the_coco_api() -> None:
    """``pycocotools.mask.encode`` of a 4 x 8 picture whose second and fifth columns are set."""
    pixels = np.zeros(SIZE, bool)
    pixels[:, [1, 4]] = True
    assert runs(pixels) == [4, 4, 8, 4, 12]
    assert (segment_pixels({"size": [4, 8], "counts": "44804"}, SIZE) == pixels).all()


def test_polygons_cover_their_pixels() -> None:
    found = segment_pixels([[1, 1, 4, 1, 4, 3, 1, 3], [6, 0, 8, 0, 8, 4, 6, 4]], SIZE)
    assert found[1:3, 1:4].all()
    assert found[:, 6:].all()
    assert not found[:, 5].any()
    assert not found[:, 0].any()
    assert not segment_pixels([], SIZE).any()
    assert not segment_pixels(None, SIZE).any()


@given(st.lists(st.tuples(st.floats(-3, 11), st.floats(-3, 7)), min_size=3, max_size=9))
def test_a_polygon_has_the_pixels_whose_centres_it_surrounds(points: list[tuple[float, float]]) -> None:
    """By the even-odd rule: an odd number of its edges crosses the ray to the left of the centre."""
    found = segment_pixels([[value for point in points for value in point]], SIZE)
    for row, column in np.ndindex(*SIZE):
        x, y, crossed = column + 0.5, row + 0.5, 0
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
            if (y0 <= y) != (y1 <= y):
                crossed += x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x
        assert found[row, column] == crossed % 2


COORDINATES = st.floats(-15, 35) | st.integers(-4, 30) | st.integers(-4, 30).map(lambda value: value + 0.5)
POLYGONS = st.lists(
    st.lists(COORDINATES, min_size=6, max_size=24).map(lambda values: values[: len(values) // 2 * 2]), max_size=4
)


@given(st.lists(POLYGONS, max_size=5), st.data())
def test_masks_are_those_of_the_whole_picture(segments: list[list[list[float]]], data: st.DataObject) -> None:
    """Also of polygons beyond the picture, along its edges and over each other, and of their run lengths."""
    size = data.draw(st.tuples(st.integers(10, 16), st.integers(10, 24)))
    expected, slow = np.full(size, NOTHING), [slow_pixels(polygons, size) for polygons in segments]
    for at in sorted(range(len(slow)), key=lambda at: -slow[at].sum()):
        expected[slow[at]] = at
    are_runs = [data.draw(st.booleans()) for _ in slow]
    values = [
        {"size": list(size), "counts": runs(pixels)} if is_run else polygons
        for is_run, pixels, polygons in zip(are_runs, slow, segments, strict=True)
    ]
    named = [(f"annotation {at}", at, value) for at, value in enumerate(values)]
    assert (segments_mask(named, np.arange(len(values), dtype=np.int16), size) == expected).all()


def test_a_small_polygon_takes_little_memory() -> None:
    _, _, pixels = shape_pixels([np.array([[5000.0, 2000], [5010, 2000], [5010, 2020]])], (3000, 6000))
    assert pixels.shape == (20, 10)
    counts = np.array([3000 * 7, 5, 2995, 10, 3000 * 6000 - 3000 * 8 - 10])
    assert shape_pixels(counts, (3000, 6000))[2].shape == (3000, 2)


def test_the_smaller_one_lies_over_the_larger_one() -> None:
    large, small = [[0, 0, 8, 0, 8, 4, 0, 4]], [[1, 1, 3, 1, 3, 3, 1, 3]]
    for segments in ([("a", 0, large), ("b", 2, small)], [("b", 2, small), ("a", 0, large)]):
        found = segments_mask(segments, KINDS, SIZE)
        assert found[0, 0] == 1
        assert found[1, 1] == 0
    assert (segments_mask([("a", 1, large)], KINDS, SIZE) == NOTHING).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("4480<", "neither a list of polygons nor"),
        ([[1, 2, 3, 4]], "three or more pairs"),
        ([[1, 2, 3, 4, 5, "6"]], "three or more pairs"),
        ([1, 2, 3, 4, 5, 6], "three or more pairs"),
        ([[1, 2, 3, 4, 5, 1e9]], "far outside of its picture of 8x4"),
        ([[1, 2, 3, 4, 5, float("nan")]], "far outside"),
        ({"size": [8, 4], "counts": [32]}, "has the size [8, 4], and its picture has [4, 8]"),
        ({"size": [4, 8], "counts": [31]}, "counts of 31 pixels, and its picture has 32"),
        ({"size": [4, 8], "counts": [-1, 33]}, "neither whole numbers"),
        ({"size": [4, 8], "counts": "4\u00e9"}, "neither whole numbers"),
        ({"size": [4, 8], "counts": "P"}, "neither whole numbers"),
        ({"size": [4, 8]}, "neither whole numbers"),
    ],
)
def test_what_is_no_segmentation_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        segments_mask([("annotation 7", 0, value)], KINDS, SIZE)
    assert message in str(error.value)
    assert str(error.value).startswith("annotation 7: ")
