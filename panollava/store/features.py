"""The store of one encoder's features: a file per panorama, read and written by several processes at a time."""

import contextlib
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from panollava.disk import replace_file, write_json
from panollava.logs import LOG
from panollava.store.identity import FileIdentity
from panollava.store.quota import MARK, Quota

SUFFIX = ".safetensors"
_NAME, _CAMERAS = "features", "cameras"
LOCKS = 1024  # lock files that claim panoramas; two panoramas may share one, so that one of them waits
_SHARD_OVERHEAD = 512  # bytes of a shard beside its features, at most
_TOUCH_S = 60.0


class DamagedShardError(ValueError):
    """A file that is not the shard that was written there."""


class Shard(NamedTuple):
    """What is kept of a panorama, on the CPU and memory-mapped."""

    features: Tensor  # (V, N, Dv)
    cameras: Tensor | None  # (V, C) float32 of its views, where they differ from panorama to panorama


class FeatureStore:
    """Features ``(V, N, Dv)`` of panoramas, by the digest of the image. Loader workers get a copy, which only reads.

    With ``camera_shape``, the (V, C) of a crop that chooses the cameras of each panorama, they are kept with them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        features_of: Mapping[str, Any],  # all that features depend on beside the image
        files: FileIdentity,
        quota: Quota,
        shape: Sequence[int],
        dtype: torch.dtype,
        camera_shape: Sequence[int] | None = None,
    ) -> None:
        self.folder, self.features_of, self.files, self.quota = folder, features_of, files, quota
        self.shape, self.dtype = tuple(shape), dtype
        self.camera_shape = None if camera_shape is None else tuple(camera_shape)
        self.is_full = False  # nothing more is kept, since the limit was reached or the disk cannot be written
        self.damaged = 0  # shards that were found damaged
        self._checked: set[str] = set()
        self._touched = 0.0

    def identify(self, picture: Path | str, processing: str = "") -> str:
        """The digest of an image, which ``get``, ``claim`` and ``put`` take; see ``data.source.processing_of``."""
        digest = self.files.identify(picture)
        return self.files.identify(f"{digest}, {processing}") if processing else digest

    def get(self, picture: str) -> Tensor | None:
        """Features ``(V, N, Dv)`` as of ``load``."""
        found = self.load(picture)
        return None if found is None else found.features

    def load(self, picture: str) -> Shard | None:
        """What is kept of an image; None where there is nothing or the file is damaged."""
        try:
            found = self._read(picture)
        except FileNotFoundError:
            return None
        except DamagedShardError as error:
            if not self.damaged:
                LOG.warning("A damaged file in the feature store is not used; it is encoded again. %s", error)
            self.damaged += 1
            return None
        self._checked.add(picture)
        return found

    def claim(self, picture: str) -> FileLock | None:
        """The right to encode a panorama, until it is released or its process ends; None if another has it."""
        path = self.folder / "locks" / f"{int(picture[:8], 16) % LOCKS:04d}.lock"
        lock = FileLock(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except (Timeout, FileNotFoundError):  # the second: the store is being removed; the next attempt makes it again
            return None
        except OSError as error:
            self.stop(f"{error}")
            return None
        return lock

    def put(self, picture: str, features: Tensor, cameras: Tensor | None = None) -> bool:
        """Keeps features ``(V, N, Dv)`` on the CPU, with the claim, and returns whether there was room for them.

        ``cameras`` ``(V, C)`` are kept in a store that has a ``camera_shape``, and needed there.
        """
        if self.is_full:
            return False
        tensors = {_NAME: features.contiguous()}
        if self.camera_shape is not None:
            assert cameras is not None
            tensors[_CAMERAS] = cameras.float().contiguous()
        shard, size = self._shard(picture), sum(one.nbytes for one in tensors.values()) + _SHARD_OVERHEAD
        reserved = 0
        try:
            with contextlib.suppress(FileNotFoundError):  # a damaged one
                self.quota.give_back(shard.stat().st_size)
                shard.unlink()
            if reason := self.quota.reserve(size, keep=self.folder):
                self.stop(reason)
                return False
            reserved = size
            # Without waiting for the disk, which takes longer than encoding: the checksum finds what is damaged then.
            metadata = {"picture": picture, "crc32": str(_checksum(*tensors.values()))}
            replace_file(shard, lambda temporary: save_file(tensors, temporary, metadata=metadata), sync=False)
            self.quota.give_back(size - shard.stat().st_size)
        except OSError as error:
            with contextlib.suppress(OSError):
                self.quota.give_back(reserved)
            self.stop(f"{error}")
            return False
        self._checked.add(picture)
        return True

    def make(self) -> None:
        """Makes the store's folder; raises an OSError if it cannot be written."""
        write_json(self.folder / MARK, self.features_of)

    def touch(self) -> None:
        """Marks the store as used, at most once a minute; makes it if it is missing."""
        if not (mark := self.folder / MARK).is_file():
            with contextlib.suppress(OSError):  # the next ``put`` reports it
                self.make()
        elif time.monotonic() - self._touched > _TOUCH_S:
            self._touched = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(mark)

    def count(self) -> int:
        """Panoramas in the store."""
        return sum(1 for _ in self.folder.glob(f"*/*{SUFFIX}"))

    def stop(self, reason: str) -> None:
        """Stores nothing from now on, and logs why."""
        self.is_full = True
        LOG.warning(
            "The feature store %s keeps nothing more: %s. Its features are read; others are encoded each time.",
            self.folder, reason,
        )  # fmt: skip

    def _shard(self, picture: str) -> Path:
        return self.folder / picture[:2] / f"{picture}{SUFFIX}"

    def _read(self, picture: str) -> Shard:
        """What is kept of one image, memory-mapped; it stays valid when the file is removed.

        Of an image that was read before only the header is compared, which detects a truncated file, not the checksum.
        A file that is damaged, or of another image, shape or dtype, raises a DamagedShardError.
        """
        path, shape, dtype, camera_shape = self._shard(picture), self.shape, self.dtype, self.camera_shape
        if not path.is_file():
            raise FileNotFoundError(path)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                features = file.get_tensor(_NAME)
                cameras = None if camera_shape is None else file.get_tensor(_CAMERAS)
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise DamagedShardError(f"{path}: {error}") from error
        if metadata.get("picture") != picture or features.shape != torch.Size(shape) or features.dtype is not dtype:
            found = f"{metadata.get('picture')}, {tuple(features.shape)}, {features.dtype}"
            raise DamagedShardError(f"{path}: holds {found}; expected {picture}, {shape}, {dtype}")
        if cameras is not None and (cameras.shape, cameras.dtype) != (torch.Size(camera_shape or ()), torch.float32):
            raise DamagedShardError(f"{path}: holds cameras {tuple(cameras.shape)}; expected {camera_shape}")
        kept = (features,) if cameras is None else (features, cameras)
        if picture not in self._checked and metadata.get("crc32") != str(_checksum(*kept)):
            raise DamagedShardError(f"{path}: its checksum is wrong")
        return Shard(features, cameras)


def _checksum(*tensors: Tensor) -> int:
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy(), value)  # type: ignore[arg-type]
    return value
