"""Headers of JPEG and PNG files: size, orientation and whether the end is there, without decoding a pixel."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO, Literal

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_ORIENTATION_TAG = 0x0112
_FRAME_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Start-of-frame markers: 0xC4, 0xC8 and 0xCC in their midst are tables and extensions."""
_BARE_MARKERS = {0x01, *range(0xD0, 0xD8)}
"""Markers that no length follows."""
_BLOCK = 65_536
"""Bytes read at once; no segment of a JPEG is longer, and no EXIF block needs to be."""
_MOST_PARTS = 1_000_000
"""A file of more segments or chunks was made to keep its reader busy: the largest PNG has a quarter as many."""


@dataclass(frozen=True)
class PictureHeader:
    """What a file says of itself.

    Attributes:
        format: the kind of file.
        width, height: of the upright picture.
        orientation: how the upright picture is stored, 1 to 8 as in EXIF; 1 as it is.
        channels: of a JPEG's colours, 4 for those of printing inks; 0 in PNGs, where they do not matter.
        is_complete: whether the end is there.
    """

    format: Literal["JPEG", "PNG"]
    width: int
    height: int
    orientation: int
    channels: int
    is_complete: bool


def parse_header(file: BinaryIO) -> PictureHeader | None:
    """The header of a JPEG or PNG file; None if it is neither.

    Args:
        file: opened for reading; no more of it is read than must be.
    """
    start = _read(file, 0, len(_PNG_SIGNATURE))
    if start.startswith(_JPEG_START):
        return _parse_jpeg(file)
    if start == _PNG_SIGNATURE:
        return _parse_png(file)
    return None


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def _parse_jpeg(file: BinaryIO) -> PictureHeader:
    """Walk the segments up to the first scan.

    Source: ITU-T T.81, annex B.
    """
    width = height = channels = 0
    orientation = 1
    position = len(_JPEG_START)
    is_complete = False
    for _ in range(_MOST_PARTS):
        start = _read(file, position, 4)
        if len(start) < 4 or start[0] != 0xFF:
            break
        marker = start[1]
        if marker == 0xFF or marker in _BARE_MARKERS:
            position += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", start, 2)
        if marker in _FRAME_MARKERS:
            frame = _read(file, position + 4, 6)
            if len(frame) == 6:
                height, width, channels = struct.unpack_from(">HHB", frame, 1)
        elif marker == 0xE1:
            segment = _read(file, position + 4, max(length - 2, 0))
            orientation = _orientation(segment[6:]) if segment.startswith(b"Exif\0\0") else orientation
        elif marker == 0xDA:
            # In scan data 0xFF is always followed by 0x00 or a marker, so this is the picture's own end, not
            # that of a thumbnail, which lies before the scan. Cameras may append data of their own after it.
            is_complete = _has_end(file, position)
            break
        position += 2 + length
    return _upright("JPEG", width, height, orientation, channels, is_complete and width > 0)


def _has_end(file: BinaryIO, start: int) -> bool:
    """Whether a JPEG's end marker follows somewhere; the end of the file, which is next to it, is looked at first."""
    last = file.seek(0, 2)
    while last > start:
        first = max(start, last - _BLOCK)
        # One byte more, as the marker may lie across two blocks.
        if _JPEG_END in _read(file, first, last - first + 1):
            return True
        last = first
    return False


def _parse_png(file: BinaryIO) -> PictureHeader:
    """Walk the chunks.

    Source: W3C Portable Network Graphics specification, third edition, sections 5.3 and 11.
    """
    width = height = 0
    orientation = 1
    position = len(_PNG_SIGNATURE)
    size = file.seek(0, 2)
    is_complete = False
    for _ in range(_MOST_PARTS):
        start = _read(file, position, 8)
        if is_complete or len(start) < 8:
            break
        length, kind = struct.unpack(">I4s", start)
        if kind == b"IHDR" and length >= 8 and position + 8 + length <= size:
            width, height = struct.unpack(">II", _read(file, position + 8, 8))
        elif kind == b"eXIf":
            orientation = _orientation(_read(file, position + 8, min(length, _BLOCK)))
        position += 8 + length + 4
        is_complete = kind == b"IEND" and position <= size
    return _upright("PNG", width, height, orientation, 0, is_complete and width > 0)


def _upright(
    format: Literal["JPEG", "PNG"], width: int, height: int, orientation: int, channels: int, is_complete: bool
) -> PictureHeader:
    # Orientations 5 to 8 lay the picture on its side.
    sides = (height, width) if orientation >= 5 else (width, height)
    return PictureHeader(format, *sides, orientation, channels, is_complete)


def _orientation(tiff: bytes) -> int:
    """The orientation entry of an EXIF block, 1 (upright) where there is none.

    Source: TIFF 6.0, section 2; EXIF 2.3, section 4.6.4.
    """
    if tiff[:4] not in (b"II*\0", b"MM\0*") or len(tiff) < 10:
        return 1
    order = "<" if tiff.startswith(b"II") else ">"
    (directory,) = struct.unpack_from(order + "I", tiff, 4)
    if directory + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(order + "H", tiff, directory)
    for entry in range(directory + 2, min(directory + 2 + 12 * count, len(tiff) - 11), 12):
        tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
        if tag == _ORIENTATION_TAG:
            return value if 1 <= value <= 8 else 1
    return 1
