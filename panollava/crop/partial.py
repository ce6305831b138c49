"""Panoramas of a part of the sphere: their shape, and how they become whole ones with black around them."""

from __future__ import annotations

import math
from typing import Annotated

import cv2
import numpy as np
from annotated_types import Interval

from panollava.crop.extent import Extent, extent_of, spanning

MAX_PIXELS = 300_000_000
"""A larger picture (24,500 x 12,250) is refused before it is decoded: it may be a decompression bomb."""

ASPECT_TOLERANCE = 0.02
"""How far from its shape a panorama may be: stitchers leave a row too many or too few."""

Covered = tuple[
    Annotated[float, Interval(gt=0.0, le=360.0)],
    Annotated[float, Interval(gt=0.0, le=180.0)],
]
"""Degrees that a panorama covers, from left to right and from top to bottom, around the centre of the sphere."""

_ADVICE = "Give the degrees that the pictures cover, [horizontal, vertical], or null if they show the whole sphere."


def check_covered(covered: Covered | None) -> None:
    """Check ``crop.panorama_fov_deg``.

    Raises:
        ValueError: it is out of range.
    """
    if covered is None:
        return
    across, down = covered
    shown = f"crop.panorama_fov_deg=[{across:g}, {down:g}]"
    if not 0 < across <= 360:
        raise ValueError(
            f"{shown} is out of range: 0 < horizontal <= 360. Beyond 360 degrees a picture shows the same twice, and "
            f"at 0 it shows nothing. {_ADVICE}"
        )
    if not 0 < down <= 180:
        raise ValueError(
            f"{shown} is out of range: 0 < vertical <= 180. From pole to pole there are no more than 180 degrees, and "
            f"at 0 a picture shows nothing. {_ADVICE}"
        )


def check_shape(name: str, size: tuple[int, int], covered: Covered | None) -> None:
    """Check that a picture has the shape of what it covers.

    Args:
        name: of the picture, for the message.
        size: its (H, W).
        covered: degrees that it covers; None for the whole sphere.

    Raises:
        ValueError: it has another shape.
    """
    height, width = size
    across, down = covered or (360.0, 180.0)
    if height > 0 and abs(width / height / (across / down) - 1) <= ASPECT_TOLERANCE:
        return
    pixels, tolerance = f"{width} x {height} pixels", f"within {ASPECT_TOLERANCE:.0%}"
    if covered is None:
        raise ValueError(
            f"{name}: {pixels} is not a whole panorama, which is twice as wide as high ({tolerance}). Pad or cut it "
            "to 2:1, leave it out, or, if it is an equirectangular picture of a part of the sphere, say how many "
            "degrees it covers with crop.panorama_fov_deg=[horizontal,vertical]."
        )
    raise ValueError(
        f"{name}: {pixels} do not cover crop.panorama_fov_deg=[{across:g}, {down:g}], which is {across / down:.3g} "
        f"times as wide as high ({tolerance}); this is {width / height if height else math.inf:.3g} times. Set "
        "crop.panorama_fov_deg to the degrees that the pictures cover (null for the whole sphere), or leave it out."
    )


def whole_size(size: Extent, covered: Covered | None) -> Extent:
    """Rows and columns that the whole sphere takes where a part of it takes ``size``."""
    across, down = covered or (360.0, 180.0)
    return size[0] * 180 / down, size[1] * 360 / across


def made_whole(picture: np.ndarray, covered: Covered | None, needed: tuple[int, int]) -> np.ndarray:
    """The whole sphere, black where a picture of a part of it does not reach.

    The picture keeps its pixels and lies exactly in the centre; for that the sphere gets up to one row and column
    more or fewer than its angles ask for, which moves the picture's edges by half a pixel at most. A picture that is
    at least twice as fine as needed is averaged down first: the sphere around it may be many times as large.

    Args:
        picture: ``(H, W, 3)``, with an ``extent`` or without.
        covered: degrees that it covers; None for the whole sphere.
        needed: (H, W) of the coarsest sphere that will do.

    Returns:
        ``(H', W', 3)``, of ``MAX_PIXELS`` pixels or little more, with an ``extent`` unless all is as it was.

    Raises:
        ValueError: the sphere would be larger however small the picture is made.
    """
    if covered is None:
        return picture
    picture = _averaged(picture, covered, needed)
    rows, columns = extent_of(picture)
    whole_rows, whole_columns = whole_size((rows, columns), covered)
    top, left = round((whole_rows - rows) / 2), round((whole_columns - columns) / 2)
    padded = cv2.copyMakeBorder(np.asarray(picture), top, top, left, left, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    return spanning(padded, (rows + 2 * top, columns + 2 * left))


def _averaged(picture: np.ndarray, covered: Covered, needed: tuple[int, int]) -> np.ndarray:
    height, width = picture.shape[:2]
    rows, columns = extent_of(picture)
    whole = whole_size((rows, columns), covered)
    finer = min(have // want for have, want in zip(whole, needed, strict=True))
    divisor = max(1.0, finer, math.sqrt(math.prod(whole) / MAX_PIXELS))
    size = max(1, int(height / divisor)), max(1, int(width / divisor))
    if math.prod(whole) > MAX_PIXELS * height / size[0] * width / size[1]:
        raise ValueError(
            f"crop.panorama_fov_deg=[{covered[0]:g}, {covered[1]:g}] is so little that the sphere around a single "
            f"pixel would have more than {MAX_PIXELS:,}. {_ADVICE}"
        )
    if size == (height, width):
        return picture
    small = cv2.resize(np.asarray(picture), size[::-1], interpolation=cv2.INTER_AREA)
    return spanning(small, (rows * size[0] / height, columns * size[1] / width))
