"""Batches whose features are in part still to be made, and the one place where they are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from panollava.batch import Batch
from panollava.store.features import FeatureStore

_PATIENCE_S = 0.002


@dataclass
class PartBatch:
    """A batch without pixels, as loader workers make it: features of the pictures that are known, views of the others.

    Attributes:
        batch: all but pixels and features.
        pictures: digest of each sample's picture.
        known: whether each sample's features were in the store.
        features: ``(K, V, N, Dv)`` of those, None without any.
        views: ``(B - K, V, 3, h, w)`` uint8 of the others, None without any.
    """

    batch: Batch
    pictures: list[str]
    known: list[bool]
    features: Tensor | None
    views: Tensor | None

    def pin_memory(self) -> PartBatch:
        """The same in page-locked memory; the DataLoader calls this."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        pinned = {key: value.pin_memory() for key, value in values.items() if isinstance(value, Batch | Tensor)}
        return PartBatch(**(values | pinned))


class FeatureMaker:
    """Encodes what a store lacks, always in the same way: one panorama a call, whoever is beside it in a batch.

    So features are the same bits whether they were made now, a week ago, or by another job of a sweep. Processes that
    lack the same panorama at the same time share the work: one encodes it, the others turn to what nobody has begun,
    then wait. If the one is killed, the next takes its place.

    Args:
        store: where features are kept.
        encode: ``(V, 3, h, w)`` uint8 views of one panorama -> ``(V, N, Dv)``; see ``panollava.model.vision``.
        device: where features are needed.

    Attributes:
        made: panoramas encoded.
        read: samples whose features were there.
    """

    def __init__(self, store: FeatureStore, encode: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self.store, self.encode, self.device = store, encode, device
        self.made = self.read = 0

    def complete(self, part: PartBatch) -> Batch:
        """The batch with ``vision_features`` ``(B, V, N, Dv)``, on the CPU if it read all of them."""
        self.store.touch()
        self.read += sum(part.known)
        if part.views is None:
            part.batch.vision_features = part.features
            return part.batch
        missing = [row for row, known in enumerate(part.known) if not known]
        views = {part.pictures[row]: one for row, one in zip(missing, part.views, strict=True)}
        found = dict(self._obtain(views))
        rows = torch.empty((len(part.known), *self.store.shape), dtype=self.store.dtype, device=self.device)
        for row in missing:
            rows[row] = found[part.pictures[row]]
        if part.features is not None:
            places = torch.tensor([row for row, known in enumerate(part.known) if known], device=self.device)
            rows[places] = part.features.to(self.device, non_blocking=True)
        part.batch.vision_features = rows
        return part.batch

    def _obtain(self, views: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Features of each picture, in the order in which they become available."""
        waiting = list(views)
        while waiting:
            busy = []
            for picture in waiting:
                features = self._made(picture, views[picture])
                if features is None:
                    busy.append(picture)
                else:
                    yield picture, features
            if len(busy) == len(waiting):
                time.sleep(_PATIENCE_S)
            waiting = busy

    def _made(self, picture: str, views: Tensor) -> Tensor | None:
        """Features read or made now; None while another process makes them."""
        if self.store.is_full:
            features = self.store.get(picture)
            return self._encoded(views) if features is None else features
        claim = self.store.claim(picture)
        if claim is None:
            return None
        try:
            features = self.store.get(picture)  # since the worker looked another process may have made them
            if features is None:
                features = self._encoded(views)
                self.store.put(picture, features.cpu())
            else:
                self.read += 1
            return features
        finally:
            claim.release()

    def _encoded(self, views: Tensor) -> Tensor:
        self.made += 1
        features = self.encode(views)
        if (tuple(features.shape), features.dtype) != (self.store.shape, self.store.dtype):
            raise ValueError(
                f"The encoder gave features {tuple(features.shape)} of {features.dtype}; its store is for "
                f"{self.store.shape} of {self.store.dtype}."
            )
        return features
