"""What a detection stage learns of a picture: its boxes, and the class that each part of a token shows.

Shapes use the legend of ``panollava.batch``; ``M`` boxes of a picture, ``k`` cells along each side of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panollava.crop.boxes import IGNORED, Places
from panollava.crop.cameras import Column, point_directions
from panollava.crop.sphere import direction_to_pixel


@dataclass(frozen=True)
class PlaceTargets:
    """The targets of one picture."""

    boxes: Tensor  # (M, 5) float32, as in ``panollava.crop.boxes``
    classes: Tensor  # (M,) int64
    cells: Tensor  # (V, H'k, W'k) int16: a class, ``NOTHING`` or ``IGNORED``


class PlaceEncoder:
    """Makes the targets of pictures; loader workers get a pickled copy.

    Args:
        cameras: ``(V, C)`` of the views of every picture.
        grid: (H', W') of a view's tokens.
        cells: ``k``, cells along each side of a token.
    """

    def __init__(self, cameras: Tensor, grid: tuple[int, int], cells: int) -> None:
        self.cameras, self.grid, self.cells = cameras, grid, cells

    def __call__(self, places: Places, cameras: Tensor | None = None) -> PlaceTargets:
        """The targets of a picture, with its own ``cameras`` where they are not those of every picture.

        Without masks no cell counts.
        """
        shape = (len(self.cameras), self.grid[0] * self.cells, self.grid[1] * self.cells)
        shown = np.full(shape, IGNORED, dtype=np.int16)
        if places.pixels is not None:
            if cameras is None:
                rows, columns, is_shown = _cell_pixels(self, places.pixels.shape)
            else:
                own = PlaceEncoder(cameras, self.grid, self.cells)
                rows, columns, is_shown = _cell_pixels.__wrapped__(own, places.pixels.shape)
            shown = np.where(is_shown, places.pixels[rows, columns], IGNORED).astype(np.int16)
        return PlaceTargets(
            torch.from_numpy(np.asarray(places.boxes.boxes, dtype=np.float32).reshape(-1, 5)),
            torch.from_numpy(np.asarray(places.boxes.classes, dtype=np.int64)),
            torch.from_numpy(shown),
        )


@lru_cache(maxsize=8)  # pictures of a data set have few sizes
def _cell_pixels(encoder: PlaceEncoder, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of the pixel at the centre of each cell ``(V, H'k, W'k)``, and whether the cell has content."""
    cameras, (height, width) = encoder.cameras.double(), encoder.grid
    x = (torch.arange(width * encoder.cells, dtype=torch.float64) + 0.5) / (width * encoder.cells)
    y = (torch.arange(height * encoder.cells, dtype=torch.float64) + 0.5) / (height * encoder.cells)
    columns, rows = direction_to_pixel(point_directions(cameras, x, y), size)
    left, top, right, bottom = cameras[:, Column.BOX_X0 : Column.BOX_Y1 + 1].unbind(1)
    across = (x >= left[:, None]) & (x <= right[:, None])
    down = (y >= top[:, None]) & (y <= bottom[:, None])
    return (
        rows.round().long().clamp(0, size[0] - 1).numpy(),
        columns.round().long().remainder(size[1]).numpy(),
        (down[:, :, None] & across[:, None, :]).numpy(),
    )


def turned(places: Places, columns: int, width: float) -> Places:
    """What is where after a panorama of `width` columns was rotated to the right by a number of them."""
    boxes = places.boxes.boxes.copy()
    boxes[:, 0] = (boxes[:, 0] + 360.0 * columns / width + 180) % 360 - 180
    pixels = places.pixels
    if pixels is not None:
        pixels = np.roll(pixels, round(columns * pixels.shape[1] / width), axis=1)
    return Places(replace(places.boxes, boxes=boxes, ignored=None), pixels)  # ignored boxes are no targets


def collate_places(samples: Sequence[PlaceTargets]) -> dict[str, Any]:
    """The fields of a batch of targets; a picture with fewer boxes than another one is filled with class -1."""
    most = max(1, *(len(one.classes) for one in samples))
    boxes = torch.zeros(len(samples), most, 5)
    classes = torch.full((len(samples), most), -1)
    for row, one in enumerate(samples):
        boxes[row, : len(one.classes)], classes[row, : len(one.classes)] = one.boxes, one.classes
    return {"boxes": boxes, "box_classes": classes, "cells": torch.stack([one.cells for one in samples])}
