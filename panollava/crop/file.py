"""Picture files: there, whole, of a kind, size and shape that can be read, their data sound; and if not, why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from panollava.crop.decode import decode
from panollava.crop.gpano import LEVEL_DEG, part_of, tilt_deg
from panollava.crop.header import PictureHeader, parse_header
from panollava.crop.partial import MAX_PIXELS, Covered, Part, check_shape


@dataclass(frozen=True)
class Panorama:
    """A file that was checked.

    Attributes:
        name: of the file, for messages.
        header: what it says of itself.
        part: of the sphere that it shows; None for the whole.
    """

    name: str
    header: PictureHeader
    part: Part | None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture, upright."""
        return self.header.height, self.header.width

    @property
    def tilt(self) -> str:
        """That it is tilted, in words; empty where it is level or does not say."""
        return tilted(self.name, self.header.xmp)


def tilted(name: str, xmp: tuple[bytes, ...]) -> str:
    """That a picture with those XMP packets is tilted, in words; empty where it is level or does not say."""
    tilt = tilt_deg(xmp)
    if tilt <= LEVEL_DEG:
        return ""
    return (
        f"{name}: tilted by {tilt:.1f} degrees (PosePitchDegrees, PoseRollDegrees); its views are cut as if it stood "
        "upright. Level it with the program of its camera, or a stitcher."
    )


def check_panorama(source: str | Path | BinaryIO, covered: Covered | None = None) -> Panorama:
    """Check a file without decoding it: kind, end marker, size and shape. No more of it is read than that takes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, cut short, not a picture, too large or of another shape. Damage
            inside its data is not seen.
    """
    with _opened(source) as (name, file):
        return _checked(name, file, covered)


def decode_panorama(
    source: str | Path | BinaryIO, covered: Covered | None, divisor: Callable[[Panorama], int]
) -> tuple[np.ndarray, Panorama, int]:
    """A picture as its file has it, upright, 8 bits a channel, alpha dropped.

    Args:
        source: a JPEG or PNG file, or one that is open.
        covered: degrees that the picture covers; None for what its tags say, and the whole sphere without any.
        divisor: by how much the sides of that JPEG are divided, one of ``DIVISORS``.

    Returns:
        ``(H, W, 3)`` uint8 RGB, what was checked and the divisor, which is 1 for a PNG.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as for ``check_panorama``, or its data is damaged.
    """
    with _opened(source) as (name, file):
        panorama = _checked(name, file, covered)
        file.seek(0)
        data = file.read()
    header = panorama.header
    divided = divisor(panorama) if header.format == "JPEG" else 1
    try:
        return decode(data, header, divided), panorama, divided
    except ValueError as error:
        raise ValueError(f"{panorama.name}: the {header.format} cannot be decoded: {error}") from error


@contextmanager
def _opened(source: str | Path | BinaryIO) -> Iterator[tuple[str, BinaryIO]]:
    """A file with its name for messages."""
    if isinstance(source, str | Path):
        with found(source).open("rb", buffering=0) as file:
            yield str(source), file
    else:
        yield "The picture", source


def found(path: str | Path) -> Path:
    """The path of a file that is there; raises FileNotFoundError where it is not."""
    if os.path.isdir(path):
        raise FileNotFoundError(f"{path}: there is no such file, only a folder. Name a picture in it.")
    if not os.path.isfile(path):  # unlike that of a Path, it takes names that are too long
        raise FileNotFoundError(f"{path}: there is no such file. Check the path and the folder it is relative to.")
    return Path(path)


def _checked(path: str, file: BinaryIO, covered: Covered | None) -> Panorama:
    """An open file; raises ValueError where it cannot be read, as ``check_panorama`` does."""
    header = parse_header(file)
    if file.seek(0, 2) == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes). Fetch or copy it again.")
    if header is None:
        raise ValueError(f"{path}: neither a JPEG nor a PNG picture. Convert it to one of them.")
    if not header.is_complete:
        raise ValueError(f"{path}: the {header.format} is cut short: its end is missing. Fetch or copy it again.")
    if header.width * header.height > MAX_PIXELS:
        size = f"{header.width} x {header.height} pixels"
        raise ValueError(f"{path}: {size} are more than the {MAX_PIXELS:,} that are read. Scale it down first.")
    if header.channels not in (0, 1, 3):
        raise ValueError(
            f"{path}: a JPEG of {header.channels} colours, such as the inks of a printer (CMYK), which look different "
            "on each. Convert it to RGB."
        )
    part = part_of(path, header.xmp) if covered is None else Part(*covered)
    check_shape(path, (header.height, header.width), part)
    return Panorama(path, header, part)
