"""Pictures that were decoded in full: what was found is remembered as long as their files stay as they were."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from panollava.crop.decode import DECODERS, DIVISORS
from panollava.crop.file import decode_panorama
from panollava.crop.partial import Covered
from panollava.store.pictures import file_state

MEMORY = Path("cache/decoded.json")
"""Where it is kept: in the folder that commands are started in, like the other caches. Deleting it forgets."""


class Decoded:
    """The verdicts of full decodes, by file.

    A file is known by its path, size, times and inode, and a verdict is that of certain decoders.

    Args:
        path: where they are kept; a file that cannot be read, or is another version's, counts as empty.
    """

    def __init__(self, path: Path = MEMORY) -> None:
        self._path = path
        self._verdicts: dict[str, list[Any]] = _read(path)

    def verdict(self, picture: str) -> str | None:
        """What is wrong with a picture's data, empty if nothing; None where that is not known."""
        known = self._verdicts.get(os.path.abspath(picture))
        if known is None or known[:-1] != _identity(picture):
            return None
        return str(known[-1])

    def learn(self, picture: str, identity: list[int], reason: str) -> None:
        """Remembers what ``examined`` found."""
        self._verdicts[os.path.abspath(picture)] = [*identity, reason]

    def save(self) -> None:
        """Writes all verdicts, with those that another process has written in the meantime."""
        from panollava.checkpoint import write_file  # here, as it brings in torch

        document = {"decoders": DECODERS, "pictures": _read(self._path) | self._verdicts}
        write_file(self._path, json.dumps(document, ensure_ascii=False))

    def checked(self, check: Callable[[str], object]) -> Callable[[str], object]:
        """A check of pictures that also refuses those whose data is known to be damaged."""
        return partial(_check, self, check) if self._verdicts else check


def examined(picture: str, covered: Covered | None = None) -> tuple[str, list[int], str]:
    """Decodes a picture in full, at the smallest scale, which reads all of its data.

    Returns:
        The picture, the identity of its file, and what is wrong with its data, empty if nothing.
    """
    identity = _identity(picture)
    try:
        decode_panorama(picture, covered, lambda _: DIVISORS[0])
    except (OSError, ValueError) as error:  # collected, so that all damaged pictures are named at once
        return picture, identity, str(error)
    return picture, identity, ""


def _check(decoded: Decoded, check: Callable[[str], object], picture: str) -> object:
    checked = check(picture)
    if reason := decoded.verdict(picture):
        raise ValueError(reason)
    return checked


def _identity(picture: str) -> list[int]:
    try:
        return file_state(picture)
    except OSError:
        return []


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        document = json.loads(path.read_text("utf-8"))
        pictures = document["pictures"] if document["decoders"] == DECODERS else {}
        return {name: known for name, known in pictures.items() if isinstance(known, list) and len(known) == 5}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a memory, not a record: it can be made again
        return {}
