"""Panorama files as RGB arrays, decoded no finer than the views need; one clear message for a bad file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from panollava.crop.cameras import Camera, needed_panorama_size
from panollava.crop.header import PictureHeader, parse_header

MAX_PIXELS = 300_000_000
"""A larger picture (24,500 x 12,250) is refused before it is decoded: it may be a decompression bomb."""

ASPECT_TOLERANCE = 0.02
"""How far from 2:1 a panorama may be: stitchers leave a row too many or too few."""

_JPEG_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def read_panorama(path: str | Path, cameras: Sequence[Camera], view_size: tuple[int, int]) -> np.ndarray:
    """A panorama, upright, 8 bits a channel, alpha dropped; JPEGs no finer than the views need.

    Args:
        path: a JPEG or PNG file.
        cameras: the views that will be cut from it.
        view_size: their (h, w).

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, cut short, not a picture, too large or not a whole panorama.
    """
    path = Path(path)
    data = _bytes(path)
    header = _checked_header(path, data)
    scale = _reduction(header, cameras, view_size) if header.format == "JPEG" else 1
    picture = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), _JPEG_FLAGS[scale])
    if picture is None:
        raise ValueError(f"{path}: the {header.format} cannot be decoded: its data is damaged. Replace the file.")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def check_panorama(path: str | Path) -> tuple[int, int]:
    """Check a file without decoding it: kind, end marker, size and shape.

    Returns:
        (H, W) of the picture, upright.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as for ``read_panorama``, damage inside the data excepted.
    """
    path = Path(path)
    header = _checked_header(path, _bytes(path))
    return header.height, header.width


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. Check the path and the folder it is relative to.")
    data = path.read_bytes()
    if not data:
        raise ValueError(f"{path}: the file is empty (0 bytes). Fetch or copy it again.")
    return data


def _checked_header(path: Path, data: bytes) -> PictureHeader:
    header = parse_header(data)
    if header is None:
        raise ValueError(f"{path}: neither a JPEG nor a PNG picture. Convert it to one of them.")
    if not header.is_complete:
        raise ValueError(f"{path}: the {header.format} is cut short: its end is missing. Fetch or copy it again.")
    size = f"{header.width} x {header.height} pixels"
    if header.width * header.height > MAX_PIXELS:
        raise ValueError(f"{path}: {size} are more than the {MAX_PIXELS:,} that are read. Scale it down first.")
    if header.height == 0 or abs(header.width / header.height / 2 - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"{path}: {size} is not a whole panorama, which is twice as wide as high (within "
            f"{ASPECT_TOLERANCE:.0%}). Pad or cut it to 2:1, or leave it out."
        )
    return header


def _reduction(header: PictureHeader, cameras: Sequence[Camera], view_size: tuple[int, int]) -> int:
    """The largest divisor whose result is still as fine as every view needs, both ways."""
    sizes = [needed_panorama_size(camera, view_size) for camera in cameras]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    return next(
        scale
        for scale in (8, 4, 2, 1)
        if scale == 1 or (header.height >= height * scale and header.width >= width * scale)
    )
