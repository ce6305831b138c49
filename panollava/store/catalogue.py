"""The stores of a folder: opening the one of a way of seeing, listing them, removing them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt

from panollava.disk import writing
from panollava.logs import in_words
from panollava.store.features import SUFFIX, FeatureStore
from panollava.store.identity import KnownPictures
from panollava.store.quota import MARK, Quota, folder_bytes, last_used, remove, stores


@dataclass(frozen=True)
class StoreOptions:
    """Settings of the store of a frozen encoder's features.

    Attributes:
        enabled: keep features wherever the encoder is frozen and pictures are not changed at random.
        dir: folder of the stores and of what is known of pictures.
        max_gib: most that all stores may hold.
        verify: read the whole of every picture to recognise it, not only its size and times.
    """

    enabled: bool = True
    dir: str = "cache"
    max_gib: Annotated[float, Gt(0)] = 50.0
    verify: bool = False


FORMAT = 1
FEATURES, PICTURES = "features", "pictures"
GIB = 2**30
_STALE_S = 3600.0


@dataclass(frozen=True)
class Kept:
    """A store as it lies on disk.

    Attributes:
        folder: of it.
        panoramas: how many it holds.
        bytes: all that it takes.
        used: when it was last used, in seconds since the epoch.
    """

    folder: Path
    panoramas: int
    bytes: int
    used: float

    def line(self) -> str:
        """The store in a line for people."""
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.used))
        return f"{self.folder.name}: {self.panoramas:,} panoramas, {in_words(self.bytes)}, last used {used}"


def open_store(
    options: StoreOptions, name: str, features_of: Mapping[str, Any], *, shape: Sequence[int], dtype: torch.dtype
) -> FeatureStore:
    """The store of one way of seeing, made if there is none.

    Args:
        options: where, and how large all stores may be.
        name: what its folder's name begins with.
        features_of: everything that features depend on beside the picture; another value is another store.
        shape: ``(V, N, Dv)`` of a panorama's features.
        dtype: of the features.

    Raises:
        OSError: there is no such store, and none can be made.
    """
    whole = {"format": FORMAT, "shape": list(shape), "dtype": str(dtype).removeprefix("torch."), **features_of}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
    root = Path(options.dir).expanduser().absolute()
    quota = Quota(root / FEATURES, int(options.max_gib * GIB))
    store = FeatureStore(
        root / FEATURES / f"{name}_{whole['dtype']}_{digest}",
        features_of=whole,
        pictures=known_pictures(options),
        quota=quota,
        shape=shape,
        dtype=dtype,
    )
    if not (store.folder / MARK).is_file():
        store.make()
    store.touch()
    try:
        _sweep(store.folder)
        quota.recount()
    except OSError as error:  # it is somebody else's, who lets others read
        store.stop(f"{error}")
    return store


def known_pictures(options: StoreOptions) -> KnownPictures:
    """What recognises pictures and other files, with all that was remembered of them in ``store.dir``."""
    return KnownPictures(Path(options.dir).expanduser().absolute() / PICTURES, verify=options.verify)


def kept_stores(folder: str) -> list[Kept]:
    """The stores of a ``store.dir``, the most recently used first."""
    found = [
        Kept(store, sum(1 for _ in store.glob(f"*/*{SUFFIX}")), folder_bytes(store), last_used(store))
        for store in stores(Path(folder).expanduser() / FEATURES)
    ]
    return sorted(found, key=lambda kept: -kept.used)


def clear_stores(options: StoreOptions, chosen: Sequence[Kept]) -> None:
    """Removes stores; processes that read them go on with what they have, and make the rest again.

    Raises:
        OSError: some of them cannot be removed.
    """
    for kept in chosen:
        remove(kept.folder)
    root = Path(options.dir).expanduser() / FEATURES
    if root.is_dir():
        with writing(root):
            Quota(root, int(options.max_gib * GIB)).recount()
    if left := [str(kept.folder) for kept in chosen if kept.folder.exists()]:
        raise OSError(
            f"{', '.join(left)} could not be removed in whole: some files are in use or belong to somebody else. End "
            "what uses them, or remove the rest yourself."
        )


def _sweep(store: Path) -> None:
    """Removes what writers that were killed have left behind."""
    for leftover in store.glob("*/.tmp-*"):
        try:
            if time.time() - leftover.stat().st_mtime > _STALE_S:
                leftover.unlink()
        except FileNotFoundError:  # another process sweeps too
            continue
