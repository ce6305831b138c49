"""Where the sphere lies in a picture: pictures of a part of it, and spheres that end within the last pixel.

A picture of a part of the sphere is padded with black to the whole sphere, so that all later steps handle
one kind of panorama.
"""

import math
from typing import Annotated, NamedTuple

import cv2
import numpy as np
from annotated_types import Interval

MAX_PIXELS = 300_000_000  # 24,500 x 12,250; a larger picture is not decoded: it may be a decompression bomb
ASPECT_TOLERANCE = 0.02  # relative error of the aspect ratio: stitchers leave a row too many or too few

Size = tuple[int, int]  # height and width in pixels
Extent = tuple[float, float]  # rows and columns
Covered = tuple[Annotated[float, Interval(gt=0.0, le=360.0)], Annotated[float, Interval(gt=0.0, le=180.0)]]
"""Degrees that a panorama covers, from left to right and from top to bottom, around the centre of the sphere."""

_ADVICE = "Give the degrees that the pictures cover, [horizontal, vertical], or null if they show the whole sphere."
TAG_ADVICE = (
    "Correct the tags, remove them (exiftool -XMP-GPano:all= FILE), or give the degrees that all pictures cover around "
    "the centre with crop.panorama_fov_deg ([360,180] for the whole sphere), which goes before the tags."
)
"""Ways out where the tags of a file are wrong."""


class ExtentArray(np.ndarray):
    """A panorama ``(H, W, 3)`` whose last row and column may lie in part beyond the sphere."""

    extent: Extent  # the rows and columns that the sphere takes, each less than one short of all


def with_extent(panorama: np.ndarray, extent: Extent) -> ExtentArray:
    """A view of a panorama ``(H, W, 3)`` that records the rows and columns that the sphere takes.

    A JPEG decoder that divides 3003 rows by two returns 1502, and the last one is half beyond the lower pole. Taking
    them for the whole sphere would move the content by up to half a pixel.
    """
    if tuple(map(math.ceil, extent)) != panorama.shape[:2]:
        raise ValueError(f"A sphere of {extent[0]:g} x {extent[1]:g} pixels does not end in {panorama.shape[:2]}.")
    result = panorama.view(ExtentArray)
    result.extent = extent
    return result


def extent_of(panorama: np.ndarray) -> Extent:
    """The rows and columns that the sphere takes: all of them, unless the panorama has an ``extent``."""
    height, width = panorama.shape[:2]
    return getattr(panorama, "extent", (float(height), float(width)))


class Part(NamedTuple):
    """The part of the sphere that a picture shows."""

    across_deg: float  # the degrees that it covers from left to right
    down_deg: float
    before: float = 0.5  # the share of the missing degrees that lies on its left
    above: float = 0.5
    from_tags: bool = False  # it comes from the tags of the file, not from crop.panorama_fov_deg

    def __str__(self) -> str:
        degrees = f"[{self.across_deg:g}, {self.down_deg:g}]"
        return f"the {degrees} degrees of its GPano tags" if self.from_tags else f"crop.panorama_fov_deg={degrees}"


def check_covered(covered: Covered | None) -> None:
    if covered is None:
        return
    across, down = covered
    shown = f"crop.panorama_fov_deg=[{across:g}, {down:g}]"
    for degrees, name, limit, why in (
        (across, "horizontal", 360, "Beyond 360 degrees a picture shows the same twice, and at 0 it shows nothing."),
        (down, "vertical", 180, "From pole to pole there are 180 degrees, and at 0 a picture shows nothing."),
    ):
        if not 0 < degrees <= limit:
            raise ValueError(f"{shown} is out of range: 0 < {name} <= {limit}. {why} {_ADVICE}")


def check_shape(name: str, size: Size, part: Part | None) -> None:
    """Raise ValueError if a picture (H, W) has not the aspect ratio of its part of the sphere, None for the whole.

    The message begins with the picture's ``name``.
    """
    height, width = size
    shape = 2.0 if part is None else part.across_deg / part.down_deg
    if height > 0 and abs(width / height / shape - 1) <= ASPECT_TOLERANCE:
        return
    pixels, tolerance = f"{width} x {height} pixels", f"within {ASPECT_TOLERANCE:.0%}"
    if part is None:
        raise ValueError(
            f"{name}: {pixels} is not a whole panorama, which is twice as wide as high ({tolerance}). Pad or cut it "
            "to 2:1, leave it out, or, if it is an equirectangular picture of a part of the sphere, say how many "
            "degrees it covers with crop.panorama_fov_deg=[horizontal,vertical]."
        )
    raise ValueError(
        f"{name}: {pixels} do not cover {part}, which is {shape:.3g} times as wide as high ({tolerance}); this is "
        f"{width / height if height else math.inf:.3g} times. "
        + (
            f"It was cut or stretched after they were written. {TAG_ADVICE}"
            if part.from_tags
            else "Set crop.panorama_fov_deg to the degrees that the pictures cover (null: what the tags of each file "
            "say, and the whole sphere without any), or leave it out."
        )
    )


def sphere_size(size: Extent, part: Part | None) -> Extent:
    """Rows and columns of the whole sphere where a part of it takes ``size``."""
    return size if part is None else (size[0] * 180 / part.down_deg, size[1] * 360 / part.across_deg)


def pad_to_sphere(picture: np.ndarray, part: Part | None, needed: Size) -> np.ndarray:
    """The whole sphere, black outside a picture of a part of it.

    The picture keeps its pixels. Its borders are rounded to whole pixels, which moves its edges by half a pixel at
    most and leaves a centred picture exactly in the centre. A picture at least twice as fine as needed is averaged
    down first: the sphere around it may be many times as large. A ValueError says that it would be larger than
    ``MAX_PIXELS`` however small the picture ``(H, W, 3)`` is made. ``needed`` is (H, W) of the coarsest sphere that is
    fine enough. The result ``(H', W', 3)`` has an ``extent`` unless ``part`` is None.
    """
    if part is None:
        return picture
    picture = _averaged(picture, part, needed)
    rows, columns = extent_of(picture)
    whole_rows, whole_columns = sphere_size((rows, columns), part)
    top, bottom = (max(0, round((whole_rows - rows) * share)) for share in (part.above, 1 - part.above))
    left, right = (max(0, round((whole_columns - columns) * share)) for share in (part.before, 1 - part.before))
    padded = cv2.copyMakeBorder(np.asarray(picture), top, bottom, left, right, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    return with_extent(padded, (rows + top + bottom, columns + left + right))


def _averaged(picture: np.ndarray, part: Part, needed: Size) -> np.ndarray:
    height, width = picture.shape[:2]
    rows, columns = extent_of(picture)
    whole = sphere_size((rows, columns), part)
    finer = min(have // want for have, want in zip(whole, needed, strict=True))
    divisor = max(1.0, finer, math.sqrt(math.prod(whole) / MAX_PIXELS))
    size = max(1, int(height / divisor)), max(1, int(width / divisor))
    if math.prod(whole) > MAX_PIXELS * height / size[0] * width / size[1]:
        raise ValueError(
            f"{part} {'are' if part.from_tags else 'is'} so little that the sphere around a single pixel would have "
            f"more than {MAX_PIXELS:,}. {TAG_ADVICE if part.from_tags else _ADVICE}"
        )
    if size == (height, width):
        return picture
    small = cv2.resize(np.asarray(picture), size[::-1], interpolation=cv2.INTER_AREA)
    return with_extent(small, (rows * size[0] / height, columns * size[1] / width))


def rotate_yaw(panorama: np.ndarray, columns: int) -> np.ndarray:
    """A panorama ``(H, W, 3)`` of the whole sphere, rotated to the right by ``columns`` modulo W.

    Content that leaves the picture on the right enters on the left. Nothing is resampled, unless the sphere ends
    within the last column: then the columns that enter on the left lie between two of the panorama's.
    """
    width = panorama.shape[1]
    columns %= width
    pixels, (_, across) = np.asarray(panorama), extent_of(panorama)
    share = across - math.floor(across)
    if columns == 0:
        return panorama
    if share == 0:
        result = np.roll(pixels, columns, axis=1)
    else:
        # Column c < columns is at c - columns + across, and the whole part of across is width - 1.
        low, high = pixels[:, width - 1 - columns : width - 1], pixels[:, width - columns :]
        result = np.concatenate([cv2.addWeighted(low, 1 - share, high, share, 0), pixels[:, : width - columns]], axis=1)
    return with_extent(result, panorama.extent) if isinstance(panorama, ExtentArray) else result
