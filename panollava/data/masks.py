"""The class of each pixel in files: index pictures, and the segmentations of COCO's JSON.

In an index picture 0 is no class, k the k-th class, counted from 1, and 255 a pixel that is not annotated.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from panollava.crop.boxes import IGNORED, NOTHING

UNKNOWN = 255
"""Index of a pixel that is not annotated."""

Segment = tuple[str, int, Any]
"""Place of an annotation in its file, its class, or K more where its pixels do not count, and its ``segmentation``."""
Shape = list[np.ndarray] | np.ndarray
"""Polygons, (P, 2) x and y each; or run lengths (R,)."""


def read_index_mask(path: Path, of_class: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Classes ``(H, W)`` int16 of the pixels of an index picture.

    Args:
        path: PNG with one channel of 8 bits, grey levels or a palette.
        of_class: (K,) the class of each index from 1 on, or NOTHING for one that is left out.
        size: (H, W) that it must have.

    Raises ValueError, naming the file, for another file or size, and for an index above K.
    """
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            height, width, mode = picture.height, picture.width, picture.mode
            if (height, width) == size and mode in ("L", "P"):
                indices = np.asarray(picture)
    except FileNotFoundError:
        raise ValueError(f"there is no mask {path}. Add it, or leave data.masks out") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the mask {path} is no readable PNG ({error})") from None
    if mode not in ("L", "P"):
        raise ValueError(f"the mask {path} has the pixels {mode}: allowed is one channel of 8 bits, or a palette")
    if (height, width) != size:
        raise ValueError(f"the mask {path} has {width}x{height} pixels, and its picture {size[1]}x{size[0]}")
    table = np.full(256, NOTHING, np.int16)
    table[1 : len(of_class) + 1], table[UNKNOWN] = of_class[: UNKNOWN - 1], IGNORED
    used = np.flatnonzero(np.bincount(indices.reshape(-1), minlength=256))
    if unknown := [index for index in used.tolist() if len(of_class) < index < UNKNOWN]:
        raise ValueError(
            f"the mask {path} has the index {unknown[0]}: allowed are 0 (no class), 1 to {len(of_class)} (the classes "
            f"in their order) and {UNKNOWN} (not annotated)"
        )
    return table[indices]


def segments_mask(segments: Sequence[Segment], of_class: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Classes ``(H, W)`` int16 of the pixels that segmentations cover; the smaller one lies over the larger one.

    Args:
        segments: of one picture; polygons or run lengths, see ``segment_shape``.
        of_class: (K,) see ``read_index_mask``.
        size: (H, W) of the picture.

    Raises ValueError as ``segment_shapes`` does.
    """
    table = np.concatenate([of_class, np.where(of_class == NOTHING, NOTHING, IGNORED)])
    kinds = [table[kind] for _, kind, _ in segments]
    shapes = zip(kinds, segment_shapes(segments, size), strict=True)
    parts = [(kind, *shape_pixels(shape, size)) for kind, shape in shapes if kind != NOTHING]
    found = np.full(size, NOTHING, np.int16)
    for kind, top, left, pixels in sorted(parts, key=lambda part: -np.count_nonzero(part[-1])):
        found[top : top + pixels.shape[0], left : left + pixels.shape[1]][pixels] = kind
    return found


def segment_shapes(segments: Sequence[Segment], size: tuple[int, int]) -> list[Shape]:
    """Shapes of one picture's segmentations; ValueError, naming the annotation, for what ``segment_shape`` refuses."""
    found = []
    for place, _, value in segments:
        try:
            found.append(segment_shape(value, size))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return found


def segment_shape(value: Any, size: tuple[int, int]) -> Shape:
    """The polygons or run lengths of COCO's ``segmentation``.

    A list of polygons [x1, y1, x2, y2, …] in pixels, each with the pixels whose centres it surrounds; or run lengths,
    column by column and first of pixels outside, as ``{"size": [H, W], "counts": …}`` with a list of numbers or COCO's
    text. Null, or an empty list, is no pixel.

    Raises ValueError for anything else, and for another size than (H, W).
    """
    if isinstance(value, dict):
        return _runs(value, size)
    if value is not None and not isinstance(value, list):
        raise ValueError("segmentation is neither a list of polygons nor an object with size and counts")
    polygons = []
    for polygon in value or []:
        is_numbers = isinstance(polygon, list) and all(type(one) in (int, float) for one in polygon)
        if not is_numbers or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("segmentation has a polygon that is not a list of three or more pairs x, y")
        points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
        if not (np.isfinite(points).all() and np.abs(points).max() <= 4 * max(size)):
            raise ValueError(f"segmentation has a point far outside of its picture of {size[1]}x{size[0]} pixels")
        polygons.append(points)
    return polygons


def shape_pixels(shape: Shape, size: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """First row and column of a rectangle of a picture of (H, W), and its pixels ``(h, w)`` bool, that hold a shape.

    Nothing has the size of the picture: it may have hundreds of shapes, most of them small.
    """
    if isinstance(shape, np.ndarray):
        return _within_runs(shape, size[0])
    parts = [_inside(points, size) for points in shape]
    parts = [part for part in parts if part[2].size] or [(0, 0, np.zeros((0, 0), bool))]
    top, left = min(row for row, _, _ in parts), min(column for _, column, _ in parts)
    bottom = max(row + pixels.shape[0] for row, _, pixels in parts)
    right = max(column + pixels.shape[1] for _, column, pixels in parts)
    found = np.zeros((bottom - top, right - left), bool)
    for row, column, pixels in parts:
        found[row - top :, column - left :][: pixels.shape[0], : pixels.shape[1]] |= pixels
    return top, left, found


def _inside(points: np.ndarray, size: tuple[int, int]) -> tuple[int, int, np.ndarray]:
    """Pixels whose centres lie within a polygon ``(P, 2)``, by the even-odd rule in each row; see ``shape_pixels``."""
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    ends = (np.clip(y, 0, size[0]) for y in (np.minimum(y0, y1), np.maximum(y0, y1)))
    first, last = (np.ceil(end - 0.5).astype(int) for end in ends)
    count = last - first  # of rows whose centres an edge crosses
    edge = np.repeat(np.arange(len(points)), count)
    rows = np.arange(len(edge)) + (first - np.cumsum(count) + count)[edge]
    x = x0[edge] + (rows + 0.5 - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    columns = np.ceil(np.clip(x, 0, size[1] + 0.5) - 0.5).astype(int)
    if not len(edge):
        return 0, 0, np.zeros((0, 0), bool)
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max()
    turns = np.sort((rows - top) * (right - left) + columns - left)  # each row has an even number of them
    return int(top), int(left), _between(turns, (bottom - top, right - left))


def _between(turns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Elements ``shape`` bool between the first and second, third and fourth, … of sorted places in row-major order."""
    bounds = np.concatenate([[0], turns, [shape[0] * shape[1]]])
    return np.repeat(np.arange(len(bounds) - 1) % 2 == 1, np.diff(bounds)).reshape(shape)


def _runs(value: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    counts, stated = value.get("counts"), value.get("size")
    if stated != list(size):
        raise ValueError(f"segmentation has the size {stated}, and its picture has [{size[0]}, {size[1]}] (H, W)")
    if isinstance(counts, str):
        counts = _decoded(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("segmentation has counts that are neither whole numbers from 0 on nor COCO's text of them")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(
            f"segmentation has counts of {sum(counts):,} pixels, and its picture has {size[0] * size[1]:,}"
        )
    return np.array(counts, dtype=np.int64)


def _within_runs(counts: np.ndarray, height: int) -> tuple[int, int, np.ndarray]:
    """The columns that run lengths cover; see ``shape_pixels``."""
    turns = np.cumsum(counts)
    inside = np.flatnonzero(counts[1::2]) * 2  # the turns that begin runs of some pixels
    if not len(inside):
        return 0, 0, np.zeros((0, 0), bool)
    left, right = turns[inside[0]] // height, -(-turns[inside[-1] + 1] // height)
    turns = np.clip(turns, left * height, right * height) - left * height
    return 0, int(left), _between(turns, (right - left, height)).T


def _decoded(text: str) -> list[int] | None:
    """Run lengths of COCO's text: five bits a character, the low ones first, from the third on less those two before.

    None if the text is no such one. Source: ``rleFrString`` of the COCO API, in ``maskApi.c``.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 40:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return None if shift else counts
