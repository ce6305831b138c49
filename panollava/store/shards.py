"""Shards: the features of one panorama in a safetensors file, which appears whole and is used only if it is whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from panollava.disk import writing

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
