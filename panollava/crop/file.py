"""Picture files: there, whole, of a kind, size and shape that can be read, their data sound; and if not, why."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from panollava.crop.decode import decode
from panollava.crop.header import PictureHeader, parse_header
from panollava.crop.partial import MAX_PIXELS, Covered, check_shape


def check_panorama(path: str | Path, covered: Covered | None = None) -> tuple[int, int]:
    """Check a file without decoding it: kind, end marker, size and shape. No more of it is read than that takes.

    Returns:
        (H, W) of the picture, upright.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, cut short, not a picture, too large or of another shape. Damage
            inside its data is not seen.
    """
    path = found(path)
    with path.open("rb", buffering=0) as file:
        header = checked_header(path, file, covered)
    return header.height, header.width


def decode_panorama(
    path: str | Path, covered: Covered | None, divisor: Callable[[PictureHeader], int]
) -> tuple[np.ndarray, PictureHeader, int]:
    """A picture as its file has it, upright, 8 bits a channel, alpha dropped.

    Args:
        path: a JPEG or PNG file.
        covered: degrees that the picture covers; None for the whole sphere.
        divisor: by how much the sides of a JPEG with that header are divided, one of ``DIVISORS``.

    Returns:
        ``(H, W, 3)`` uint8 RGB, the header and the divisor, which is 1 for a PNG.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as for ``check_panorama``, or its data is damaged.
    """
    path = found(path)
    with path.open("rb", buffering=0) as file:
        header = checked_header(path, file, covered)
        file.seek(0)
        data = file.read()
    divided = divisor(header) if header.format == "JPEG" else 1
    picture = decode(data, header, divided)
    if picture is None:
        raise ValueError(f"{path}: the {header.format} cannot be decoded: its data is damaged. Replace the file.")
    return picture, header, divided


def found(path: str | Path) -> Path:
    """The path of a file that is there; raises FileNotFoundError where it is not."""
    if os.path.isdir(path):
        raise FileNotFoundError(f"{path}: there is no such file, only a folder. Name a picture in it.")
    if not os.path.isfile(path):  # unlike that of a Path, it takes names that are too long
        raise FileNotFoundError(f"{path}: there is no such file. Check the path and the folder it is relative to.")
    return Path(path)


def checked_header(path: Path, file: BinaryIO, covered: Covered | None) -> PictureHeader:
    """What an open file says of itself; raises ValueError where it cannot be read, as ``check_panorama`` does."""
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
