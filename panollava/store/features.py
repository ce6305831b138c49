"""One store: the features of one way of seeing, a shard a panorama, shared by processes that read and write at once."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from panollava.checkpoint import write_json
from panollava.disk import writing
from panollava.logs import LOG
from panollava.store.identity import KnownPictures
from panollava.store.quota import MARK, Quota

SUFFIX = ".safetensors"
_NAME = "features"


class DamagedShardError(ValueError):
    """A file in the place of a shard that is not the shard that was written there."""


def write_shard(path: Path, features: Tensor, picture: str) -> None:
    """Writes features so that readers see all of them or none.

    What the disk loses of it in a power failure, the checksum tells; waiting for the disk would take longer than
    encoding.

    Args:
        path: of the shard; its folder is made if missing.
        features: on the CPU.
        picture: digest of what they are of.

    Raises:
        DiskError: the disk is full, or cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        os.close(handle)
        try:
            metadata = {"picture": picture, "crc32": str(_checksum(features))}
            save_file({_NAME: features.contiguous()}, temporary, metadata=metadata)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def read_shard(path: Path, picture: str, *, shape: Sequence[int], dtype: torch.dtype, check: bool = True) -> Tensor:
    """Features as they were written, mapped into memory; they outlive the removal of the file.

    Args:
        path: of the shard.
        picture: digest of what they must be of.
        shape: they must have.
        dtype: likewise.
        check: compare the checksum; else only the header, which tells a file that was cut short.

    Raises:
        FileNotFoundError: there is no such shard.
        DamagedShardError: something else is in its place; nothing of it is used.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            features = file.get_tensor(_NAME)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DamagedShardError(f"{path}: {error}") from error
    if metadata.get("picture") != picture or features.shape != torch.Size(shape) or features.dtype is not dtype:
        found = f"{metadata.get('picture')}, {tuple(features.shape)}, {features.dtype}"
        raise DamagedShardError(f"{path}: holds {found}; expected {picture}, {tuple(shape)}, {dtype}")
    if check and metadata.get("crc32") != str(_checksum(features)):
        raise DamagedShardError(f"{path}: its checksum is wrong")
    return features


def _checksum(features: Tensor) -> int:
    return zlib.crc32(features.contiguous().view(torch.uint8).numpy())  # type: ignore[arg-type]


LOCKS = 1024
"""Files that processes lock to claim a panorama; two panoramas may share one, which costs one of them a wait."""
_SHARD_OVERHEAD = 512
"""Bytes of a shard beside its features, at most."""
_TOUCH_S = 60.0


class FeatureStore:
    """Features by the picture that they are of; it travels to loader workers, which only read.

    Args:
        folder: of this store.
        features_of: what its features depend on beside the picture, for people to read.
        pictures: recognises pictures.
        quota: the limit of all stores.
        shape: ``(V, N, Dv)`` of a panorama's features.
        dtype: of the features.

    Attributes:
        is_full: the limit was reached, or the disk, or it cannot be written, so that nothing more is kept.
        damaged: shards that were found damaged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        features_of: Mapping[str, Any],
        pictures: KnownPictures,
        quota: Quota,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> None:
        self.folder, self.features_of = folder, features_of
        self.pictures, self.quota = pictures, quota
        self.shape, self.dtype = tuple(shape), dtype
        self.is_full = False
        self.damaged = 0
        self._checked: set[str] = set()
        self._touched = 0.0

    @property
    def panorama_bytes(self) -> int:
        """What a panorama takes on disk, at most."""
        return math.prod(self.shape) * self.dtype.itemsize + _SHARD_OVERHEAD

    def identify(self, picture: Path | str) -> str:
        """Digest by which ``get``, ``claim`` and ``put`` know a picture."""
        return self.pictures.identify(picture)

    def get(self, picture: str) -> Tensor | None:
        """Features ``(V, N, Dv)`` on the CPU, mapped; None where there are none, or none that can be trusted."""
        try:
            is_new = picture not in self._checked
            found = read_shard(self._shard(picture), picture, shape=self.shape, dtype=self.dtype, check=is_new)
        except FileNotFoundError:
            return None
        except DamagedShardError as error:
            if not self.damaged:
                LOG.warning("A damaged file in the feature store is not used, it is made again. %s", error)
            self.damaged += 1
            return None
        self._checked.add(picture)
        return found

    def claim(self, picture: str) -> FileLock | None:
        """The right to make a picture's features, until it is released or its process ends; None if another has it."""
        path = self.folder / "locks" / f"{int(picture[:8], 16) % LOCKS:04d}.lock"
        lock = FileLock(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except Timeout:
            return None
        except FileNotFoundError:  # the store is being removed: it is made again with the next attempt
            return None
        except OSError as error:
            self.stop(f"{error}")
            return None
        return lock

    def put(self, picture: str, features: Tensor) -> bool:
        """Keeps features, if there is room; whoever calls has the claim.

        Args:
            picture: digest.
            features: ``(V, N, Dv)`` on the CPU.

        Returns:
            Whether they are kept; where they are not, the log says why, once.
        """
        if self.is_full:
            return False
        shard, size = self._shard(picture), self.panorama_bytes
        reserved = 0
        try:
            with contextlib.suppress(FileNotFoundError):  # a damaged one
                self.quota.give_back(shard.stat().st_size)
                shard.unlink()
            if reason := self.quota.reserve(size, keep=self.folder):
                self.stop(reason)
                return False
            reserved = size
            write_shard(shard, features, picture)
            self.quota.give_back(size - shard.stat().st_size)
        except OSError as error:
            with contextlib.suppress(OSError):
                self.quota.give_back(reserved)
            self.stop(f"{error}")
            return False
        self._checked.add(picture)
        return True

    def make(self) -> None:
        """Makes the store's folder, with what it is the store of.

        Raises:
            OSError: it cannot be written.
        """
        write_json(self.folder / MARK, self.features_of)

    def touch(self) -> None:
        """Says that the store is in use, at most once a minute; makes it, where there is none or it was removed."""
        if not (mark := self.folder / MARK).is_file():
            with contextlib.suppress(OSError):  # what is put next tells of it
                self.make()
        elif time.monotonic() - self._touched > _TOUCH_S:
            self._touched = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(mark)

    def count(self) -> int:
        """Panoramas in the store."""
        return sum(1 for _ in self.folder.glob(f"*/*{SUFFIX}"))

    def stop(self, reason: str) -> None:
        """Keeps nothing from now on, and says so."""
        self.is_full = True
        LOG.warning(
            "The feature store %s keeps nothing more: %s. What it has is read, the rest is encoded each time.",
            self.folder, reason,
        )  # fmt: skip

    def _shard(self, picture: str) -> Path:
        return self.folder / picture[:2] / f"{picture}{SUFFIX}"
