"""Headers of JPEG and PNG files: size, orientation and whether the end is there, without decoding a pixel."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from PIL import Image
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngStream

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_FRAME_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Start-of-frame markers: 0xC4, 0xC8 and 0xCC in their midst are tables and extensions."""
_BARE_MARKERS = {0x01, *range(0xD0, 0xD8)}
"""Markers that no length follows."""
_BLOCK = 65_536
"""Bytes read at once; no segment of a JPEG is longer, and no EXIF block needs to be."""
_XMP, _MORE_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_LONGEST_TEXT = 1 << 20
_PNG_TEXTS = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
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
        xmp: its XMP packets, XML documents that may name the part of the sphere that it shows.
    """

    format: Literal["JPEG", "PNG"]
    width: int
    height: int
    orientation: int
    channels: int
    is_complete: bool
    xmp: tuple[bytes, ...] = ()


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
    exif, xmp, more = [], b"", {}
    position = len(_JPEG_START)
    is_complete = False
    for _ in range(_MOST_PARTS):
        start = _read(file, position, 4)
        if len(start) < 4:
            break
        marker = start[1]
        if start[0] != 0xFF or marker == 0:
            # Decoders pass over stray bytes between segments; more than a block of them is no picture.
            stray = _read(file, position + 1, _BLOCK).find(b"\xff")
            if stray < 0:
                break
            position += 1 + stray
            continue
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
            if segment.startswith(b"Exif\0\0"):
                exif.append(segment[6:])
            elif segment.startswith(_XMP):
                xmp = segment[len(_XMP) :]
            elif segment.startswith(_MORE_XMP) and len(segment) > len(_MORE_XMP) + 40:
                # The name of its document, the length of that, and the place of this part in it.
                name, place = segment[len(_MORE_XMP) :][:32], segment[len(_MORE_XMP) + 36 :][:4]
                more[name, place] = segment[len(_MORE_XMP) + 40 :]
        elif marker == 0xDA:
            # In scan data 0xFF is always followed by 0x00 or a marker, so this is the picture's own end, not
            # that of a thumbnail, which lies before the scan. Cameras may append data of their own after it.
            is_complete = _has_end(file, position)
            break
        position += 2 + length
    said: dict[Any, Any] = ({"exif": b"Exif\0\0" + b"".join(exif)} if exif else {}) | ({"xmp": xmp} if xmp else {})
    documents = [name for name, _ in more if name in xmp]  # those that the first packet names
    extended = [b"".join(more[key] for key in sorted(more) if key[0] == name) for name in dict.fromkeys(documents)]
    return _upright("JPEG", width, height, said, channels, is_complete and width > 0, extended)


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
    texts = PngStream(io.BytesIO())
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
        elif kind in _PNG_TEXTS:
            text = _read(file, position + 8, min(length, _BLOCK if kind == b"eXIf" else _LONGEST_TEXT))
            texts.fp = io.BytesIO(text)
            with suppress(Exception):  # what cannot be read says nothing of the picture
                getattr(texts, f"chunk_{kind.decode()}")(0, len(text))
        position += 8 + length + 4
        is_complete = kind == b"IEND" and position <= size
    return _upright("PNG", width, height, texts.im_info, 0, is_complete and width > 0)


def _upright(
    format: Literal["JPEG", "PNG"],
    width: int,
    height: int,
    said: dict[Any, Any],
    channels: int,
    is_complete: bool,
    more: Sequence[bytes] = (),
) -> PictureHeader:
    picture = Image.Image()
    picture.info = said
    orientation = orientation_of(picture)
    # Orientations 5 to 8 lay the picture on its side.
    sides = (height, width) if orientation >= 5 else (width, height)
    return PictureHeader(format, *sides, orientation, channels, is_complete, (*xmp_of(picture), *more))


def orientation_of(picture: Image.Image) -> int:
    """How a picture is stored, 1 to 8 as in EXIF, as Pillow reads it from ``info``; 1 (upright) where it says nothing.

    Files are read by the same function, so that a file and the picture that Pillow opens from it are turned alike.
    """
    if not picture.info:
        return 1
    with suppress(Exception):  # a block that cannot be read says nothing
        value = picture.getexif().get(Base.Orientation, 1)
        return int(value) if value in range(1, 9) else 1
    return 1


def xmp_of(picture: Image.Image) -> tuple[bytes, ...]:
    """The XMP packet of a picture that Pillow has opened, where it has one."""
    xmp = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp") or b""
    return ((xmp.encode() if isinstance(xmp, str) else xmp),) if xmp else ()
