"""Which views close a ring around the viewer, and in which order."""

from __future__ import annotations

from torch import Tensor

from panollava.crop.overlap import neighbour_pairs


def closed_rings(cameras: Tensor, view_mask: Tensor) -> list[tuple[int, list[int]]]:
    """Rings in which each view's right neighbour is the next, and the last one's is the first.

    Global views, views that only pad a batch, and rows of views with a gap are in none.

    Args:
        cameras: ``(B, V, C)``.
        view_mask: ``(B, V)``.

    Returns:
        (sample, its views to the right from the lowest on), in order of sample and that view.
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
