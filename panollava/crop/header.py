"""Headers of JPEG and PNG files: size, orientation and whether the end is there, without decoding a pixel."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_ORIENTATION_TAG = 0x0112
_FRAME_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Start-of-frame markers: 0xC4, 0xC8 and 0xCC in their midst are tables and extensions."""
_BARE_MARKERS = {0x01, *range(0xD0, 0xD8)}
"""Markers that no length follows."""


@dataclass(frozen=True)
class PictureHeader:
    """What a file says of itself; width and height are those of the upright picture."""

    format: Literal["JPEG", "PNG"]
    width: int
    height: int
    is_complete: bool


def parse_header(data: bytes) -> PictureHeader | None:
    """The header of a JPEG or PNG file; None if the bytes are neither."""
    if data.startswith(_JPEG_START):
        return _parse_jpeg(data)
    if data.startswith(_PNG_SIGNATURE):
        return _parse_png(data)
    return None


def _parse_jpeg(data: bytes) -> PictureHeader:
    """Walk the segments up to the first scan.

    Source: ITU-T T.81, annex B.
    """
    width = height = 0
    orientation = 1
    position = len(_JPEG_START)
    is_complete = False
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker in _BARE_MARKERS:
            position += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        segment = data[position + 4 : position + 2 + length]
        if marker in _FRAME_MARKERS and len(segment) >= 5:
            height, width = struct.unpack_from(">HH", segment, 1)
        elif marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            orientation = _orientation(segment[6:])
        elif marker == 0xDA:
            # In scan data 0xFF is always followed by 0x00 or a marker, so this is the picture's own end, not
            # that of a thumbnail, which lies before the scan. Cameras may append data of their own after it.
            # The search begins at the end of the file, which is next to the picture's.
            is_complete = data.rfind(_JPEG_END, position) >= 0
            break
        position += 2 + length
    return _upright("JPEG", width, height, orientation, is_complete and width > 0)


def _parse_png(data: bytes) -> PictureHeader:
    """Walk the chunks.

    Source: W3C Portable Network Graphics specification, third edition, sections 5.3 and 11.
    """
    width = height = 0
    orientation = 1
    position = len(_PNG_SIGNATURE)
    is_complete = False
    while position + 8 <= len(data) and not is_complete:
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk = slice(position + 8, position + 8 + length)
        if kind == b"IHDR" and length >= 8 and chunk.stop <= len(data):
            width, height = struct.unpack_from(">II", data, chunk.start)
        elif kind == b"eXIf":
            orientation = _orientation(data[chunk])
        position = chunk.stop + 4
        is_complete = kind == b"IEND" and position <= len(data)
    return _upright("PNG", width, height, orientation, is_complete and width > 0)


def _upright(
    format: Literal["JPEG", "PNG"], width: int, height: int, orientation: int, is_complete: bool
) -> PictureHeader:
    # Orientations 5 to 8 lay the picture on its side.
    return PictureHeader(format, *((height, width) if orientation >= 5 else (width, height)), is_complete)


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
