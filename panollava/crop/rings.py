"""Which views of a batch are neighbours, how far they overlap, and which of them close a ring around the viewer.

A ring is the tiles of one projection and pitch. Shapes: ``cameras`` are ``(B, V, C)``, ``view_mask`` is ``(B, V)``,
``pairs`` are the ``(P, 3)`` rows (sample, view, its right neighbour) of ``neighbour_pairs``.
"""

import math

import torch
from torch import Tensor

from panollava.crop.cameras import PERSPECTIVE, Column

_ANGLE_TOLERANCE_RAD = 1e-4  # angles closer than this are the same: camera rows are float32


def neighbour_pairs(cameras: Tensor, view_mask: Tensor) -> Tensor:
    """Every tile with its right neighbour in the same ring.

    ``(P, 3)`` int64 rows, ordered by sample and view. The right neighbour is the tile at the smallest step of yaw to
    the right, and it counts if the two touch or overlap. Global views and padding views have no neighbour.
    """
    is_tile = view_mask & (cameras[..., Column.IS_GLOBAL] == 0)
    projection, pitch = cameras[..., Column.PROJECTION], cameras[..., Column.PITCH]
    h_extent, yaw = cameras[..., Column.H_EXTENT], cameras[..., Column.YAW]
    # (B, V, V): from the view of the row to that of the column.
    step = _step_right(yaw[:, :, None], yaw[:, None, :])
    reach = (h_extent[:, :, None] + h_extent[:, None, :]) / 2
    allowed = (
        (is_tile[:, :, None] & is_tile[:, None, :])
        & (projection[:, :, None] == projection[:, None, :])
        & ((pitch[:, :, None] - pitch[:, None, :]).abs() < _ANGLE_TOLERANCE_RAD)
        & (step <= reach + _ANGLE_TOLERANCE_RAD)
    )
    allowed &= ~torch.eye(cameras.shape[1], dtype=torch.bool, device=cameras.device)
    nearest_step, nearest = step.masked_fill(~allowed, math.inf).min(dim=2)
    sample, view = torch.nonzero(nearest_step.isfinite(), as_tuple=True)
    return torch.stack((sample, view, nearest[sample, view]), dim=1)


def pair_overlap(cameras: Tensor, pairs: Tensor) -> Tensor:
    """``(P)`` in [0, 1): share of its angle that a view has in common with its right neighbour; 0 if they touch."""
    sample, view, neighbour = pairs.unbind(1)
    left, right = cameras[sample, view], cameras[sample, neighbour]
    step = _step_right(left[:, Column.YAW], right[:, Column.YAW])
    return (1 - step / left[:, Column.H_EXTENT]).clamp(min=0)


def columns_line_up(cameras: Tensor, pairs: Tensor) -> bool:
    """Whether columns of neighbours can have the same directions.

    Perspective tiles that look up or down cannot: they are rolled against each other about their common edge.
    """
    tiles = cameras[pairs[:, 0], pairs[:, 1]]
    is_steep = tiles[:, Column.PITCH].abs() > _ANGLE_TOLERANCE_RAD
    return not bool((is_steep & (tiles[:, Column.PROJECTION] == PERSPECTIVE)).any())


def overlap_columns(grid_width: int, overlap: float) -> int:
    """How many of a grid's columns a view pairs with its neighbour's: at least the column that touches it."""
    # The tolerance is that of overlaps computed from float32 cameras: half of 16 columns is 8 and not 7.
    return max(1, math.floor(grid_width * overlap + _ANGLE_TOLERANCE_RAD))


def closed_rings(cameras: Tensor, view_mask: Tensor) -> list[tuple[int, list[int]]]:
    """Rings in which each view's right neighbour is the next, and the last one's is the first.

    Global views, padding views, and rows of views with a gap are in none. Each is (sample, its views to the right
    from the lowest index on), ordered by sample and that index.
    """
    to_the_right = {(sample, view): right for sample, view, right in neighbour_pairs(cameras, view_mask).tolist()}
    rings: list[tuple[int, list[int]]] = []
    walked: set[tuple[int, int]] = set()
    for sample, first in to_the_right:
        views, view = [], first
        while (sample, view) in to_the_right and (sample, view) not in walked:
            walked.add((sample, view))
            views.append(view)
            view = to_the_right[sample, view]
        if views and view == first:
            rings.append((sample, views))
    return rings


def _step_right(from_rad: Tensor, to_rad: Tensor) -> Tensor:
    """Yaw from one direction to another, to the right: in (0, 2 pi], a full circle between equal directions."""
    step = torch.remainder(to_rad - from_rad, 2 * math.pi)
    return torch.where(step < _ANGLE_TOLERANCE_RAD, step + 2 * math.pi, step)
