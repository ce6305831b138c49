"""Where the pictures that a data file names lie on this machine; none outside the folders of the data set.

Those that it names by addresses are fetched first, where that is allowed.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from panollava.data.remote.fetch import Fetched, Fetcher
from panollava.data.remote.rules import RemoteOptions

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
"""How an address begins; a drive of Windows has one letter."""
_LONGEST = 1000
"""Characters of a name; no system takes many more."""
_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
"""How Unicode writes one letter: whole, or taken apart, as macOS does with accents and Korean syllables."""
_SAMPLE = 1 << 16
"""Bytes that are read at the start, in the middle and at the end of a file to compare it with one of its size."""

Identity = tuple[int | str, ...]
"""What a file is known by: device, inode, size and time, whatever its path; the path of one that is not there."""


def identify(path: str) -> Identity:
    """What a file is known by: the same for every spelling of its path, by links and in letters of either case too."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return (os.path.normpath(os.path.abspath(path)),)
    # Size and time as well: some network disks make up inodes, and two pictures must never become one.
    return state.st_dev, state.st_ino or os.path.realpath(path), state.st_size, state.st_mtime_ns


def alike(path: str) -> str:
    """Digest of a file's size and of samples of it; copies of a file share it."""
    digest, size = hashlib.sha256(), os.path.getsize(path)
    with open(path, "rb") as file:
        for start in sorted({0, max(0, size // 2 - _SAMPLE // 2), max(0, size - _SAMPLE)}):
            file.seek(start)
            digest.update(file.read(_SAMPLE))
    return f"{size} {digest.hexdigest()}"


class Pictures:
    """Finds pictures by the names that a data file gives them.

    Args:
        folder: to which relative names are relative.
        inside: further folders in which pictures may lie; one outside them and `folder` is refused.
        fetcher: fetches what is named by an address; None fetches nothing.
    """

    def __init__(self, folder: Path, *, inside: Sequence[Path] = (), fetcher: Fetcher | None = None) -> None:
        self.folder = folder
        self._fetcher = fetcher or Fetcher(RemoteOptions())
        self._fetched = Fetched()
        self._allowed = [os.path.abspath(each) for each in (folder, *inside)]

    def fetch(self, places: Iterable[tuple[str, str]], *, file: Path, name: str) -> None:
        """Fetches the pictures that are named by addresses, before their paths are asked for.

        Args:
            places: names of pictures and where they stand in the file, such as ``row 5``; in the file's order.
            file: the data file.
            name: of the split.

        Raises:
            ValueError: ``data.remote`` does not allow some of them.
            OSError: the folder of the fetched pictures cannot be written.
        """
        links: dict[str, list[str]] = {}
        for image, place in places:
            if _ADDRESS.match(image):
                links.setdefault(image, []).append(place)
        if links:
            # Here, as its reports are written by a module that brings in torch, and most data sets have no links.
            from panollava.data.remote.links import fetch_links

            self._fetched = fetch_links(self._fetcher, links, file, name)

    def path(self, image: str) -> str:
        """Path of a picture, which need not be there.

        Links are followed: whoever can make one in the folder can put a picture there as well.

        Raises:
            ValueError: the name is an address that gave no picture, or leads out of the folders of the data set.
        """
        if _ADDRESS.match(image):
            if image in self._fetched.paths:
                return str(self._fetched.paths[image])
            raise ValueError(f"{image}: {self._fetched.dead.get(image, 'not fetched')}")
        if image.startswith("data:"):
            raise ValueError("a picture inside of the text (data:…) is not read. Save it as a file and give its name")
        if len(image) > _LONGEST:
            raise ValueError(f"{image[:60]}…: a name of {len(image):,} characters, which no file has")
        path = os.path.join(self.folder, image)
        if ("\\" in image or not image.isascii()) and not os.path.isfile(path):
            others = self._other_spellings(image)
            path = next(filter(os.path.isfile, others), others[0])
        whole = os.path.abspath(path)
        if not any(_is_inside(whole, folder) for folder in self._allowed):
            raise ValueError(
                f"{image} leads out of the data set's folder {self._allowed[0]}. Name the folder of the pictures with "
                "data.image_dir, or give a name inside it"
            )
        return path

    def _other_spellings(self, image: str) -> list[str]:
        """Paths that a name from another system may mean: with other separators, or other forms of its letters."""
        image = image.replace("\\", "/")
        names = [image, *(unicodedata.normalize(form, image) for form in _FORMS)]
        return [os.path.join(self.folder, name) for name in names]


def _is_inside(path: str, folder: str) -> bool:
    try:
        return os.path.commonpath([path, folder]) == folder
    except ValueError:  # on another drive
        return False
