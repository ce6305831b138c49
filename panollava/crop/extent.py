"""How many rows and columns of pixels the sphere takes in a decoded picture: not always a whole number."""

from __future__ import annotations

import math

import numpy as np

_DIVISORS = (1, 2, 4, 8)
"""By which JPEGs are scaled down while they are decoded."""

Extent = tuple[float, float]
"""Rows and columns."""


class Spanned(np.ndarray):
    """A panorama ``(H, W, 3)`` whose last row and column lie in part beyond the sphere.

    Attributes:
        extent: the rows and columns that the sphere takes, each less than one short of all.
    """

    extent: Extent


def spanning(panorama: np.ndarray, full_size: tuple[int, int]) -> np.ndarray:
    """A panorama that knows where the sphere ends in it, after its JPEG may have been scaled down in decoding.

    Of 3003 rows at half their size there are 1502, and the last is half beyond the lower pole. Taking them for the
    whole sphere would move what is seen by up to half a pixel.

    Args:
        panorama: ``(H, W, 3)``, as it was decoded.
        full_size: height and width of the picture in its file.
    """
    for divisor in _DIVISORS:
        extent = full_size[0] / divisor, full_size[1] / divisor
        if tuple(map(math.ceil, extent)) == panorama.shape[:2] and extent != panorama.shape[:2]:
            spanned = panorama.view(Spanned)
            spanned.extent = extent
            return spanned
    return panorama


def extent_of(panorama: np.ndarray) -> Extent:
    """The rows and columns that the sphere takes: all of them, unless the panorama knows better."""
    height, width = panorama.shape[:2]
    return getattr(panorama, "extent", (float(height), float(width)))
