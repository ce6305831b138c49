"""Views kept in memory between epochs and stages, so that a small data set is drawn or decoded once."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

GIB = 2**30


class ViewMemory:
    """Remembers the views of a split's panoramas until it is full; what comes later is made each time.

    Useful in the process that trains: loader workers would each keep a copy of their own.

    Args:
        limit_gib: most memory it takes; 0 remembers nothing.
    """

    def __init__(self, limit_gib: float) -> None:
        self.limit = int(limit_gib * GIB)
        self.used = 0
        self._views: dict[str, Tensor] = {}

    def get(self, image_id: str, make: Callable[[], Tensor]) -> Tensor:
        """Views ``(V, 3, h, w)`` of a picture: remembered, or made now."""
        known = self._views.get(image_id)
        if known is not None:
            return known
        views = make()
        if self.used + views.nbytes <= self.limit:
            self._views[image_id] = views
            self.used += views.nbytes
        return views
