"""The feature stores of a folder: opens the one of an encoder, lists them, removes them."""

import contextlib
import glob
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt

from panollava.disk import read_document, writing
from panollava.logs import LOG, in_words
from panollava.store.features import SUFFIX, FeatureStore
from panollava.store.identity import FileIdentity
from panollava.store.quota import MARK, Quota, folder_bytes, last_used, remove, stores

FORMAT = 1
FEATURES, PICTURES = "features", "pictures"  # folders in store.dir: of the stores, and of the records of FileIdentity
GIB = 2**30
_STALE_S = 3600.0
_OF_MACHINE = (("encoder", "device"), ("encoder", "libraries"), ("crop", "device"))
"""Parts and keys of what features depend on that say where they were made."""


@dataclass(frozen=True)
class StoreOptions:
    """Settings of the store of a frozen encoder's features."""

    enabled: bool = True  # keep features wherever the encoder is frozen and images are not augmented
    dir: str = "cache"  # folder of the stores and of the records of files
    max_gib: Annotated[float, Gt(0)] = 50.0  # of all stores together
    verify: bool = False  # read the whole of every image to identify it, not only its size and times

    @property
    def root(self) -> Path:
        return Path(self.dir).expanduser().absolute() / FEATURES

    @property
    def quota(self) -> Quota:
        return Quota(self.root, int(self.max_gib * GIB))

    def file_identity(self) -> FileIdentity:
        """Identifies images and other files, with what was recorded of them in ``dir``."""
        return FileIdentity(self.root.with_name(PICTURES), verify=self.verify)


@dataclass(frozen=True)
class Kept:
    """A store on disk."""

    folder: Path
    panoramas: int
    bytes: int  # of all its files
    used: float  # when it was last used, in seconds since the epoch

    def line(self) -> str:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used))
        return f"{self.folder.name}: {self.panoramas:,} panoramas, {in_words(self.bytes)}, last used {used}"


def open_store(
    options: StoreOptions,
    name: str,
    features_of: Mapping[str, Any],
    *,
    shape: Sequence[int],
    dtype: torch.dtype,
    camera_shape: Sequence[int] | None = None,
) -> FeatureStore:
    """The store of one encoder and crop for features ``(V, N, Dv)``, made if missing; an OSError if it cannot be."""
    # ``features_of`` is all that features depend on beside the image: another value is another store.
    whole = {"format": FORMAT, "shape": list(shape), "dtype": str(dtype).removeprefix("torch."), **features_of}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
    folder, files = options.root / f"{name}_{whole['dtype']}_{digest}", options.file_identity()
    store = FeatureStore(
        folder,
        features_of=whole,
        files=files,
        quota=options.quota,
        shape=shape,
        dtype=dtype,
        camera_shape=camera_shape,
    )
    if not (store.folder / MARK).is_file():
        if (other := _of_another_machine(options.root, name, whole)) is not None:
            LOG.info(
                "Panoramas are encoded again for %s: the features in %s, of the same encoder and crop, were made with "
                "another device or other libraries (%s), whose rounding differs.",
                folder, other[0], other[1],
            )  # fmt: skip
        store.make()
    store.touch()
    try:
        for leftover in store.folder.glob("*/.tmp-*"):  # of killed writers
            with contextlib.suppress(FileNotFoundError):  # another process removes them too
                if time.time() - leftover.stat().st_mtime > _STALE_S:
                    leftover.unlink()
        store.quota.recount()
    except OSError as error:  # another user's store, which this user may read
        store.stop(f"{error}")
    return store


def _of_another_machine(root: Path, name: str, features_of: Mapping[str, Any]) -> tuple[Path, str] | None:
    """The last used store that differs in the device and the libraries alone, and in what; None where there is none."""
    rest, machine = _parted(features_of)
    for folder in sorted(root.glob(f"{glob.escape(name)}_*"), key=last_used, reverse=True):
        with contextlib.suppress(OSError, ValueError):  # a damaged one
            there, other = _parted(read_document(folder / MARK))
            if there == rest:
                differ = [key for key in machine if other.get(key) != machine[key]]
                return folder, "; ".join(f"{key}: {other.get(key)} there, {machine[key]} here" for key in differ)
    return None


def _parted(features_of: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What features depend on, as JSON keeps it, without what is of the machine; and that by itself."""
    rest = json.loads(json.dumps(features_of))
    parts = [(part, key) for part, key in _OF_MACHINE if isinstance(rest.get(part), dict)]
    return rest, {f"{part}.{key}": rest[part].pop(key, None) for part, key in parts}


def kept_stores(folder: str) -> list[Kept]:
    """The stores of a ``store.dir``, the most recently used first."""
    found = [
        Kept(store, sum(1 for _ in store.glob(f"*/*{SUFFIX}")), folder_bytes(store), last_used(store))
        for store in stores(Path(folder).expanduser() / FEATURES)
    ]
    return sorted(found, key=lambda kept: -kept.used)


def clear_stores(options: StoreOptions, chosen: Sequence[Kept]) -> None:
    """Removes stores, or raises an OSError; processes that read them encode again what they have not read."""
    for kept in chosen:
        remove(kept.folder)
    if options.root.is_dir():
        with writing(options.root):
            options.quota.recount()
    if left := [str(kept.folder) for kept in chosen if kept.folder.exists()]:
        raise OSError(
            f"{', '.join(left)} could not be removed completely: some files are in use or belong to somebody else. End "
            "the processes that use them, or remove the rest yourself."
        )
