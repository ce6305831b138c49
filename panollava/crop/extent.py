"""How many rows and columns of pixels the sphere takes in a panorama: not always a whole number."""

from __future__ import annotations

import math

import numpy as np

Extent = tuple[float, float]
"""Rows and columns."""


class Spanned(np.ndarray):
    """A panorama ``(H, W, 3)`` whose last row and column may lie in part beyond the sphere.

    Attributes:
        extent: the rows and columns that the sphere takes, each less than one short of all.
    """

    extent: Extent


def spanning(panorama: np.ndarray, extent: Extent) -> Spanned:
    """The same panorama, which knows where the sphere ends in it.

    Of 3003 rows that a JPEG decoder divides by two there are 1502, and the last is half beyond the lower pole. Taking
    them for the whole sphere would move what is seen by up to half a pixel.

    Args:
        panorama: ``(H, W, 3)``.
        extent: the rows and columns that the sphere takes.
    """
    if tuple(map(math.ceil, extent)) != panorama.shape[:2]:
        raise ValueError(f"A sphere of {extent[0]:g} x {extent[1]:g} pixels does not end in {panorama.shape[:2]}.")
    spanned = panorama.view(Spanned)
    spanned.extent = extent
    return spanned


def extent_of(panorama: np.ndarray) -> Extent:
    """The rows and columns that the sphere takes: all of them, unless the panorama knows better."""
    height, width = panorama.shape[:2]
    return getattr(panorama, "extent", (float(height), float(width)))
