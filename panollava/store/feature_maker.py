"""Completes batches with the features that the store lacks: the only place where they are encoded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from panollava.batch import Batch
from panollava.store.features import FeatureStore

_WAIT_S = 0.002


@dataclass
class PartBatch:
    """A batch without pixels from a loader worker: features of the images in the store, views of the others."""

    batch: Batch  # all but pixels and features
    pictures: list[str]  # digest of each sample's image
    known: list[bool]  # whether each sample's features were in the store
    features: Tensor | None  # (K, V, N, Dv) of the known ones, None if K is 0
    views: Tensor | None  # (B - K, V, 3, h, w) uint8 of the others, None if there are none

    def pin_memory(self) -> PartBatch:
        """The same in page-locked memory; the DataLoader calls this."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        pinned = {key: value.pin_memory() for key, value in values.items() if isinstance(value, Batch | Tensor)}
        return PartBatch(**(values | pinned))


class FeatureMaker:
    """Encodes the features that a store lacks, one panorama per call, independent of the rest of the batch.

    So features have the same bits whichever process encoded them, and when. Processes that lack the same panoramas at
    the same time share the work: one encodes a panorama, the others continue with the next that no process has begun,
    then wait. If a process is killed, another takes over. ``encode`` turns ``(V, 3, h, w)`` uint8 views of one panorama
    into ``(V, N, Dv)``; ``device`` is that of the completed features.
    """

    def __init__(self, store: FeatureStore, encode: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self.store, self.encode, self.device = store, encode, device
        self.made = self.read = 0  # panoramas encoded, and samples whose features were in the store

    def complete(self, part: PartBatch) -> Batch:
        """The batch with ``vision_features`` ``(B, V, N, Dv)``; on the CPU if the store had all of them."""
        self.store.touch()
        self.read += sum(part.known)
        if part.views is None:
            part.batch.vision_features = part.features
            return part.batch
        missing = [row for row, known in enumerate(part.known) if not known]
        cut = zip(part.views, part.batch.cameras[missing], strict=True)
        found = self._obtain({part.pictures[row]: one for row, one in zip(missing, cut, strict=True)})
        result = torch.empty((len(part.known), *self.store.shape), dtype=self.store.dtype, device=self.device)
        for row in missing:
            result[row] = found[part.pictures[row]]
        if part.features is not None:
            rows = torch.tensor([row for row, known in enumerate(part.known) if known], device=self.device)
            result[rows] = part.features.to(self.device, non_blocking=True)
        part.batch.vision_features = result
        return part.batch

    def _obtain(self, cut: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Features of each image, of its views and cameras, encoded or read once another process has written them."""
        found: dict[str, Tensor] = {}
        while waiting := [picture for picture in cut if picture not in found]:
            before = len(found)
            for picture in waiting:
                features = self._obtain_one(picture, *cut[picture])
                if features is not None:
                    found[picture] = features
            if len(found) == before:
                time.sleep(_WAIT_S)
        return found

    def _obtain_one(self, picture: str, views: Tensor, cameras: Tensor) -> Tensor | None:
        """Features of one image; None while another process encodes them."""
        if self.store.is_full:
            features = self.store.get(picture)
            return self._encoded(views) if features is None else features
        claim = self.store.claim(picture)
        if claim is None:
            return None
        try:
            features = self.store.get(picture)  # another process may have written them since the worker looked
            if features is None:
                features = self._encoded(views)
                self.store.put(picture, features.cpu(), cameras)
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
