"""The panoramas that a command line names: a file, an address, or the pictures of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panollava.config.check import check_section
from panollava.data.remote.one import fetch_panorama, is_address
from panollava.data.remote.rules import RemoteOptions, check_hosts

SUFFIXES = {".jpg", ".jpeg", ".png"}


def check_remote(section: Mapping[str, Any]) -> list[str]:
    """Problems of the ``data`` section of a command that asks about a picture: ``remote`` and what belongs to it."""
    return check_section(section, RemoteOptions, "data") + check_hosts(section.get("remote", False))


def named_panorama(image: str, remote: RemoteOptions) -> Path:
    """The path of ``image``, which is fetched where it is an address; a path need not be there.

    Raises:
        ValueError: an address that ``data.remote`` does not allow, or that gave no picture.
        OSError: the folder of fetched pictures cannot be written.
    """
    return fetch_panorama(image, remote) if is_address(image) else Path(image).expanduser()


def find_panoramas(image: str, remote: RemoteOptions) -> list[Path]:
    """The file that ``image`` names, or all JPEG and PNG files of a folder, sorted by name.

    Raises:
        FileNotFoundError: there is no such file or folder, or no picture in the folder.
        ValueError, OSError: as of ``named_panorama``.
    """
    path = named_panorama(image, remote)
    if not image or not path.exists():
        raise FileNotFoundError(f"image={image}: there is no such file or folder. Check the path.")
    if not path.is_dir():
        return [path]
    found = [one for one in path.iterdir() if one.suffix.lower() in SUFFIXES and not one.name.startswith(".")]
    if not found:
        raise FileNotFoundError(f"image={image}: there is no JPEG or PNG picture in this folder. Name another.")
    return sorted(found)
