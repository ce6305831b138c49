"""Panorama files as RGB arrays, decoded no finer than the views need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from panollava.crop.cameras import Camera, needed_panorama_size
from panollava.crop.decode import DIVISORS
from panollava.crop.extent import spanning
from panollava.crop.file import Panorama, decode_panorama
from panollava.crop.partial import Covered, made_whole, whole_size


def read_panorama(
    source: str | Path | BinaryIO, cameras: Sequence[Camera], view_size: tuple[int, int], covered: Covered | None = None
) -> np.ndarray:
    """A panorama, upright, 8 bits a channel, alpha dropped; JPEGs no finer than the views need.

    Args:
        source: a JPEG or PNG file, or one that is open.
        cameras: the views that will be cut from it.
        view_size: their (h, w).
        covered: degrees that the picture covers, horizontally and vertically; None for what the tags of its
            file say, and the whole sphere without any.

    Returns:
        ``(H, W, 3)`` uint8 RGB of the whole sphere, black where the picture does not reach, with an ``extent`` where
        the sphere may end within the last row or column.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, cut short, damaged, not a picture, too large or of another shape.
    """
    needed = needed_size(cameras, view_size)
    picture, panorama, divisor = decode_panorama(source, covered, lambda panorama: _divisor(panorama, needed))
    if divisor > 1:
        height, width = panorama.size
        picture = spanning(picture, (height / divisor, width / divisor))
    return made_whole(picture, panorama.part, needed)


def needed_size(cameras: Sequence[Camera], view_size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of the coarsest panorama that is as fine as every view needs, both ways."""
    sizes = [needed_panorama_size(camera, view_size) for camera in cameras]
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def _divisor(panorama: Panorama, needed: tuple[int, int]) -> int:
    """The largest divisor whose result is still as fine as needed.

    The last row and column of a side that it does not divide lie in part beyond the picture, and turned upright they
    might be the first, which an extent cannot say.
    """
    header, whole = panorama.header, whole_size(panorama.size, panorama.part)
    return next(
        divisor
        for divisor in DIVISORS
        if divisor == 1
        or (
            all(have >= want * divisor for have, want in zip(whole, needed, strict=True))
            and (header.orientation == 1 or header.height % divisor == header.width % divisor == 0)
        )
    )
