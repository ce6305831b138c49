"""The version of a piece of this package: a digest of what its code does, whatever its comments say."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import inspect
import json
import os
import pkgutil
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import ModuleType

SETTLED_NS = 2_000_000_000
"""How long a file must have lain still for its times to tell it from a later version: clocks of file systems tick."""


_READERS = 8
"""Threads that read files which are new; digests of several are taken at once."""


class KnownPictures:
    """Digests of pictures and of other files, remembered on disk for every process that uses the same folder.

    Args:
        folder: of the records, one small file a picture; None remembers in this process alone.
        verify: read every picture once in this process, whatever is remembered of it.
    """

    def __init__(self, folder: Path | None, *, verify: bool = False) -> None:
        self.folder = folder
        self.verify = verify
        self._known: dict[str, tuple[list[int], str]] = {}

    def identify(self, picture: Path | str) -> str:
        """Digest of what a picture is made from.

        Args:
            picture: a file, or a text that says all that a picture is drawn from.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if isinstance(picture, str):
            return _digest(picture.encode())
        path = os.path.abspath(picture)
        state = file_state(path)
        known = self._known.get(path)
        if known is None and not self.verify and self.folder is not None:
            known = self._recorded(self.folder, path)
        if known is None or known[0] != state:
            known = self._read(path)
        self._known[path] = known
        return known[1]

    def identify_all(self, pictures: Iterable[Path | str]) -> dict[Path | str, str]:
        """Digests of several pictures, each looked at once."""
        distinct = list(dict.fromkeys(pictures))
        with ThreadPoolExecutor(max_workers=_READERS) as pool:
            return dict(zip(distinct, pool.map(self.identify, distinct), strict=True))

    def _read(self, path: str) -> tuple[list[int], str]:
        while True:
            state = file_state(path)
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if file_state(path) == state:
                break  # else it was replaced in the meantime
        if time.time_ns() - max(state[1], state[2]) > SETTLED_NS:
            if self.folder is not None:
                self._write(self._record(self.folder, path), path, state, digest)
        else:
            state = [-1]  # a later version might look the same: look again next time
        return state, digest

    def _recorded(self, folder: Path, path: str) -> tuple[list[int], str] | None:
        try:
            record = json.loads(self._record(folder, path).read_bytes())
            if record["path"] == path and len(record["sha256"]) == 64:
                return list(record["state"]), str(record["sha256"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass  # none there, or cut short: the picture itself is read
        return None

    @staticmethod
    def _write(record: Path, path: str, state: list[int], digest: str) -> None:
        with contextlib.suppress(OSError):  # a disk that is full costs a look at the picture next time
            record.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=record.parent)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"path": path, "state": state, "sha256": digest}, file)
            os.replace(temporary, record)

    @staticmethod
    def _record(folder: Path, path: str) -> Path:
        name = _digest(path.encode("utf-8", "surrogateescape"))[:32]
        return folder / name[:2] / f"{name}.json"


def file_state(path: str) -> list[int]:
    """Size, time of the content, time of the entry, and inode: what a file keeps while nobody changes it."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file. Was it moved since the start?") from None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@cache
def code_digest(*names: str) -> str:
    """Digest of modules, and of all the modules of packages; comments, docstrings and layout do not change it.

    What is made by code and kept on disk carries it, so that nobody has to remember to raise a version number.

    Args:
        names: such as ``panollava.crop``.
    """
    digest = hashlib.sha256()
    for module in (module for name in names for module in _modules(name)):
        tree = ast.parse(inspect.getsource(module))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                node.body = [part for part in node.body if not _is_text(part)]
        digest.update(f"{module.__name__}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]


def _modules(name: str) -> list[ModuleType]:
    module = importlib.import_module(name)
    below = sorted(info.name for info in pkgutil.iter_modules(getattr(module, "__path__", [])))
    return [module] if not below else [each for part in below for each in _modules(f"{name}.{part}")]


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
