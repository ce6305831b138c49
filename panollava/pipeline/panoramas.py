"""The panoramas that a command line names: a file, or the pictures of a folder."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = {".jpg", ".jpeg", ".png"}


def named_panorama(image: str) -> Path:
    """The path of ``image``, before anything is opened.

    Raises:
        ValueError: it is an address, not a path.
    """
    if image.lower().startswith(("http://", "https://")):
        raise ValueError(f"image={image}: pictures are not fetched. Download it and give its path.")
    return Path(image).expanduser()


def find_panoramas(image: str) -> list[Path]:
    """The file that ``image`` names, or all JPEG and PNG files of a folder, sorted by name.

    Raises:
        FileNotFoundError: there is no such file or folder, or no picture in the folder.
        ValueError: it is an address, not a path.
    """
    path = named_panorama(image)
    if not path.is_dir():
        if not image or not path.exists():
            raise FileNotFoundError(f"image={image}: there is no such file or folder. Check the path.")
        return [path]
    found = [one for one in path.iterdir() if one.suffix.lower() in SUFFIXES and not one.name.startswith(".")]
    if not found:
        raise FileNotFoundError(f"image={image}: there is no JPEG or PNG picture in this folder. Name another.")
    return sorted(found)
