"""A panorama turned about the vertical axis by whole columns, so that nothing is sampled anew."""

from __future__ import annotations

import math

import cv2
import numpy as np

from panollava.crop.extent import Spanned, extent_of, spanning


def turned(panorama: np.ndarray, columns: int) -> np.ndarray:
    """What was seen ahead is seen `columns` to the right, and what leaves the picture there comes in on the left.

    Args:
        panorama: ``(H, W, 3)`` of the whole sphere, with an ``extent`` or without.
        columns: how far, counted modulo W.

    Returns:
        The same, turned. Every column is one of the panorama's; only where the sphere ends within the last column
        does what comes in on the left lie between two of them.
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
    return spanning(result, panorama.extent) if isinstance(panorama, Spanned) else result
