"""Fetched pictures on disk, each under the hash of its bytes, and the manifest that says which address gave which.

::

    <folder>/manifest.jsonl          one line an address and outcome; the last one of an address holds
    <folder>/<ab>/<sha256>.jpg       a picture, whole; it appears by a rename
    <folder>/locks/<cd>              held while an address is fetched, so that side by side it is fetched once
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from filelock import FileLock

from panollava.crop.image_file import parse_header
from panollava.data.remote.rules import Failed
from panollava.data.remote.transfer import Received
from panollava.logs import LOG

MANIFEST = "manifest.jsonl"
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png"}
_HASH = re.compile(r"[0-9a-f]{64}")
_LEFTOVER_S = 86_400.0
"""Age at which a temporary file belongs to a process that was killed."""


@dataclass(frozen=True)
class Kept:
    """A picture that is there.

    Attributes:
        path: of its file.
    """

    path: Path


@dataclass(frozen=True)
class Dead:
    """A link that gave no picture.

    Attributes:
        reason: why.
        time: when it was last tried, seconds since 1970.
        under: the option that kept it from coming, with its value; empty where no option did.
    """

    reason: str
    time: float
    under: str = ""


class PictureCache:
    """Pictures by address; safe for several threads, processes and jobs side by side.

    Args:
        folder: made if missing.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[str, dict[str, Any]] = {}
        self._read_bytes = 0
        self._reading = Lock()
        (folder / "locks").mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".tmp-*"):
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_S:
                leftover.unlink(missing_ok=True)
        self.refresh()

    def lock(self, address: str) -> FileLock:
        """The lock under which an address is fetched; some addresses share one."""
        return FileLock(self.folder / "locks" / hashlib.sha256(address.encode()).hexdigest()[:2])

    def refresh(self) -> None:
        """Learns what other processes have added to the manifest."""
        path = self.folder / MANIFEST
        with self._reading:
            if not path.exists():
                return
            with path.open("rb") as file:
                file.seek(self._read_bytes)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]  # another process may be writing the line after
            self._read_bytes += len(whole)
            damaged = sum(not self._learn(line) for line in whole.splitlines() if line.strip())
        if damaged:
            LOG.warning("%s: %d lines are damaged; what they told of is fetched again.", path, damaged)

    def find(self, address: str) -> Kept | Dead | None:
        """What is known of an address; None where there is nothing, or the file is not as it was."""
        entry = self._entries.get(address)
        if entry is None:
            return None
        if "dead" in entry:
            return Dead(entry["dead"], entry["time"], str(entry.get("under", "")))
        path = self._path(entry["sha256"], entry["suffix"])
        return Kept(path) if _has_size(path, entry["bytes"]) else None

    def keep(self, address: str, fill: Callable[[BinaryIO], Received]) -> Kept:
        """Fills a file and takes it in as the picture of an address.

        Args:
            address: what it is known by.
            fill: writes the file.

        Raises:
            Failed: from `fill`, or what came is no whole picture.
            OSError: the file cannot be written.
        """
        handle, name = tempfile.mkstemp(prefix=".tmp-", dir=self.folder)
        try:
            with os.fdopen(handle, "w+b") as file:
                received = fill(file)
                suffix = _checked_suffix(file)
                file.flush()
                os.fsync(file.fileno())
            path = self._path(received.sha256, suffix)
            if not _has_size(path, received.size):  # else another address gave the same picture
                path.parent.mkdir(exist_ok=True)
                os.chmod(name, 0o644)
                os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
        before = self._entries.get(address, {}).get("sha256", received.sha256)
        if before != received.sha256:
            LOG.warning("%s is another picture than the one fetched before, whose file was lost.", address)
        self._add(address, sha256=received.sha256, bytes=received.size, suffix=suffix, source=received.source)
        return Kept(path)

    def bury(self, address: str, reason: str, under: str = "") -> Dead:
        """Notes that a link is dead, for good or under an option."""
        entry = self._add(address, dead=reason, **({"under": under} if under else {}))
        return Dead(reason, entry["time"], under)

    def _path(self, sha256: str, suffix: str) -> Path:
        return self.folder / sha256[:2] / f"{sha256}{suffix}"

    def _add(self, address: str, **values: Any) -> dict[str, Any]:
        entry = {"address": address, **values, "time": round(time.time(), 3)}
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        with FileLock(self.folder / "locks" / "manifest"), (self.folder / MANIFEST).open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # of a process that was killed in the midst of a line
                    line = b"\n" + line
            file.write(line)
        self.refresh()
        return entry

    def _learn(self, line: bytes) -> bool:
        try:
            entry = json.loads(line)
            is_sound = isinstance(entry["address"], str) and isinstance(entry["time"], int | float)
            if "dead" in entry:
                is_sound = is_sound and isinstance(entry["dead"], str)
            else:  # what names a file is checked to the letter, so that none outside the folder can be named
                is_sound = is_sound and bool(_HASH.fullmatch(entry["sha256"])) and isinstance(entry["bytes"], int)
                is_sound = is_sound and entry["suffix"] in _SUFFIXES.values()
        except (ValueError, KeyError, TypeError):  # counted, and told by whoever asked
            return False
        if is_sound:
            self._entries[entry["address"]] = entry
        return is_sound


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _checked_suffix(file: BinaryIO) -> str:
    """Suffix of a picture's kind.

    Raises:
        Failed: it is no picture that is read, or not whole.
    """
    header = parse_header(file)
    if header is None:
        raise Failed("what the server sends is neither a JPEG nor a PNG picture, whatever it says")
    if not header.is_complete:
        raise Failed(f"the {header.format} is cut short: its end is missing", passing=True)
    return _SUFFIXES[header.format]
