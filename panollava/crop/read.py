"""Panorama files as RGB arrays, decoded no finer than the views need; one clear message for a bad file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from panollava.crop.cameras import Camera, needed_panorama_size
from panollava.crop.decode import DIVISORS, decode
from panollava.crop.extent import spanning
from panollava.crop.header import PictureHeader, parse_header
from panollava.crop.partial import MAX_PIXELS, Covered, check_shape, made_whole, whole_size


def read_panorama(
    path: str | Path, cameras: Sequence[Camera], view_size: tuple[int, int], covered: Covered | None = None
) -> np.ndarray:
    """A panorama, upright, 8 bits a channel, alpha dropped; JPEGs no finer than the views need.

    Args:
        path: a JPEG or PNG file.
        cameras: the views that will be cut from it.
        view_size: their (h, w).
        covered: degrees that the picture covers, horizontally and vertically; None for the whole sphere.

    Returns:
        ``(H, W, 3)`` uint8 RGB of the whole sphere, black where the picture does not reach, with an ``extent`` where
        the sphere may end within the last row or column.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, cut short, damaged, not a picture, too large or of another shape.
    """
    path = _found(path)
    with path.open("rb", buffering=0) as file:
        header = _checked_header(path, file, covered)
        file.seek(0)
        data = file.read()
    needed = needed_size(cameras, view_size)
    divisor = _divisor(header, needed, covered) if header.format == "JPEG" else 1
    picture = decode(data, header, divisor)
    if picture is None:
        raise ValueError(f"{path}: the {header.format} cannot be decoded: its data is damaged. Replace the file.")
    if divisor > 1:
        picture = spanning(picture, (header.height / divisor, header.width / divisor))
    return made_whole(picture, covered, needed)


def check_panorama(path: str | Path, covered: Covered | None = None) -> tuple[int, int]:
    """Check a file without decoding it: kind, end marker, size and shape. No more of it is read than that takes.

    Returns:
        (H, W) of the picture, upright.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as for ``read_panorama``, damage inside the data excepted.
    """
    path = _found(path)
    with path.open("rb", buffering=0) as file:
        header = _checked_header(path, file, covered)
    return header.height, header.width


def needed_size(cameras: Sequence[Camera], view_size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of the coarsest panorama that is as fine as every view needs, both ways."""
    sizes = [needed_panorama_size(camera, view_size) for camera in cameras]
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def _found(path: str | Path) -> Path:
    if os.path.isdir(path):
        raise FileNotFoundError(f"{path}: there is no such file, only a folder. Name a picture in it.")
    if not os.path.isfile(path):  # unlike that of a Path, it takes names that are too long
        raise FileNotFoundError(f"{path}: there is no such file. Check the path and the folder it is relative to.")
    return Path(path)


def _checked_header(path: Path, file: BinaryIO, covered: Covered | None) -> PictureHeader:
    header = parse_header(file)
    if file.seek(0, 2) == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes). Fetch or copy it again.")
    if header is None:
        raise ValueError(f"{path}: neither a JPEG nor a PNG picture. Convert it to one of them.")
    if not header.is_complete:
        raise ValueError(f"{path}: the {header.format} is cut short: its end is missing. Fetch or copy it again.")
    if header.width * header.height > MAX_PIXELS:
        size = f"{header.width} x {header.height} pixels"
        raise ValueError(f"{path}: {size} are more than the {MAX_PIXELS:,} that are read. Scale it down first.")
    if header.channels not in (0, 1, 3):
        raise ValueError(
            f"{path}: a JPEG of {header.channels} colours, such as the inks of a printer (CMYK), which look different "
            "on each. Convert it to RGB."
        )
    check_shape(str(path), (header.height, header.width), covered)
    return header


def _divisor(header: PictureHeader, needed: tuple[int, int], covered: Covered | None) -> int:
    """The largest divisor whose result is still as fine as needed.

    The last row and column of a side that it does not divide lie in part beyond the picture, and turned upright they
    might be the first, which an extent cannot say.
    """
    whole = whole_size((header.height, header.width), covered)
    return next(
        divisor
        for divisor in DIVISORS
        if divisor == 1
        or (
            all(have >= want * divisor for have, want in zip(whole, needed, strict=True))
            and (header.orientation == 1 or header.height % divisor == header.width % divisor == 0)
        )
    )
