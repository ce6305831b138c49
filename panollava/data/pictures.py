"""Where the pictures that a data file names lie on this machine; none outside the folders of the data set."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
"""How an address begins; a drive of Windows has one letter."""


class Pictures:
    """Finds pictures by the names that a data file gives them.

    Args:
        folder: to which relative names are relative.
        inside: further folders in which pictures may lie; one outside them and `folder` is refused.
    """

    def __init__(self, folder: Path, *, inside: Sequence[Path] = ()) -> None:
        self.folder = folder
        self._allowed = [os.path.abspath(each) for each in (folder, *inside)]

    def path(self, image: str) -> str:
        """Path of a picture, which need not be there.

        Links are followed: whoever can make one in the folder can put a picture there as well.

        Raises:
            ValueError: the name is an address, or leads out of the folders of the data set.
        """
        if _ADDRESS.match(image):
            raise ValueError(f"{image} is remote, and pictures are not fetched: download it, give its path")
        path = os.path.join(self.folder, image)
        if "\\" in image and not os.path.isfile(path):  # written on Windows, read elsewhere
            path = os.path.join(self.folder, image.replace("\\", "/"))
        whole = os.path.abspath(path)
        if not any(_is_inside(whole, folder) for folder in self._allowed):
            raise ValueError(
                f"{image} leads out of the data set's folder {self._allowed[0]}. Name the folder of the pictures with "
                "data.image_dir, or give a name inside it"
            )
        return path


def _is_inside(path: str, folder: str) -> bool:
    try:
        return os.path.commonpath([path, folder]) == folder
    except ValueError:  # on another drive
        return False
