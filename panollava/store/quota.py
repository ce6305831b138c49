"""The limit of the feature stores of a folder together; the one unused for longest is removed first."""

import contextlib
import os
import shutil
import time
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock

MARK = "store.json"  # file that makes a folder a store; its time is when the store was last used
IDLE_S = 3600.0  # a store that was not used for so long may be removed: no run uses it
SPARE_BYTES = 2**30  # left free on the disk, at any limit
_GONE = ".gone-"  # prefix of the names of stores that are being removed


class Quota:
    """The limit in bytes of all stores below a folder, counted across processes."""

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit = root, limit
        self._count = root / ".used"

    def recount(self) -> int:
        """Counts the bytes of every file, which frees what a killed process had reserved and not written."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self._lock():
            for leftover in self.root.glob(f"{_GONE}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            return self._recounted()

    def reserve(self, size: int, keep: Path) -> str:
        """Reserves bytes, and removes idle stores other than ``keep`` for them; else returns why it cannot."""
        with self._lock():
            used = self._counted()
            while reason := self._obstacle(used, size):
                idle = [s for s in stores(self.root) if s != keep and time.time() - last_used(s) > IDLE_S]
                if not idle:
                    return reason
                remove(min(idle, key=last_used))
                used = self._recounted()
            self._count.write_text(str(used + size))
            return ""

    def give_back(self, size: int) -> None:
        """Subtracts bytes that were not written, or were removed."""
        with self._lock():
            self._count.write_text(str(max(0, self._counted() - size)))

    def _obstacle(self, used: int, size: int) -> str:
        way_out = "python -m panollava.features lists the stores, and clears them"
        if used + size > self.limit:
            return f"all stores hold what store.max_gib={self.limit / 2**30:.3g} allows ({way_out})"
        if room(self.root) < size:
            return f"the disk has less than {SPARE_BYTES / 2**30:g} GiB left, which stay free ({way_out})"
        return ""

    def _counted(self) -> int:
        try:
            return int(self._count.read_text())
        except (FileNotFoundError, ValueError):
            return self._recounted()

    def _recounted(self) -> int:
        used = sum(folder_bytes(store) for store in stores(self.root))
        self._count.write_text(str(used))
        return used

    def _lock(self) -> AbstractContextManager[object]:
        return FileLock(self.root / ".lock").acquire(poll_interval=0.002)


def room(folder: Path) -> int:
    """Bytes that may still be written on the disk of a folder, which need not exist yet."""
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return max(0, shutil.disk_usage(place).free - SPARE_BYTES)


def stores(root: Path) -> list[Path]:
    """The stores below a folder."""
    return sorted(mark.parent for mark in root.glob(f"*/{MARK}"))


def last_used(store: Path) -> float:
    """When a store was last used, in seconds since the epoch; 0 if it was removed."""
    try:
        return (store / MARK).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder, while other processes may add and remove files."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def remove(store: Path) -> None:
    """Removes a store at once; readers keep the features that they have mapped."""
    gone = store.with_name(f"{_GONE}{store.name}-{os.getpid()}")
    shutil.rmtree(gone, ignore_errors=True)
    try:
        store.rename(gone)
    except OSError:  # Windows does not move files in use: remove the others
        gone = store
    shutil.rmtree(gone, ignore_errors=True)
