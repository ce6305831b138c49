"""JPEG and PNG files as RGB arrays: what their headers say, the checks before decoding, and the decoding.

Damage must never pass as a picture. Three things that the decoders (simplejpeg, OpenCV) do not do are done here: a
header is read without the rest of the file; a JPEG is cleaned of oddities that libjpeg warns of without need, since it
reports only its first warning; the check sums of a PNG, which OpenCV ignores, are compared.
"""

import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import cv2
import numpy as np
import simplejpeg
from PIL import Image
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngStream

from panollava.crop.gpano import part_of, tilt_warning
from panollava.crop.partial import MAX_PIXELS, Covered, Part, Size, check_shape

DECODERS = {"cv2": cv2.__version__, "simplejpeg": simplejpeg.__version__}  # what pixels depend on besides the file
Format = Literal["JPEG", "PNG"]
DIVISORS = (8, 4, 2, 1)  # by which the sides of a JPEG can be divided while it is decoded

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_FRAME_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame; the others are tables and extensions
_SEQUENTIAL = {0xC0, 0xC1, 0xC9}
_BARE_MARKERS = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_MARKER = re.compile(rb"\xff+([\x02-\xcf\xd8-\xfe])")  # with a length, or the end: no stuffed bytes, no restarts
_UNREAD = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # application segments and comments that do not affect the pixels
_XMP, _MORE_XMP = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_PNG_TEXTS = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
_BLOCK = 65_536  # Bytes read at once. No segment of a JPEG is longer, and no EXIF block needs to be
_MAX_TEXT = 1 << 20
_MAX_PARTS = 1_000_000  # a file of more segments or chunks is malicious: the largest PNG has a quarter as many

_TRAILING = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_MAX_ZEROS_READ = 16  # zero bytes that may belong to the end of a scan itself, before the zeros that fill a file up
_MAX_12_BITS = 4095


@dataclass(frozen=True)
class PictureHeader:
    """The header of a picture file."""

    format: Format
    width: int  # of the upright picture
    height: int
    orientation: int  # how the upright picture is stored, 1 (upright) to 8 as in EXIF
    channels: int  # of a JPEG, 4 for printing inks; 0 for a PNG, where they do not matter
    is_complete: bool  # the file has its end marker
    xmp: tuple[bytes, ...] = ()  # XML documents that may name the part of the sphere that it shows


def parse_header(file: BinaryIO) -> PictureHeader | None:
    """The header of an open JPEG or PNG file, None if it is neither. No more of it is read than necessary."""
    start = _read(file, 0, len(_PNG_SIGNATURE))
    if start.startswith(_JPEG_START):
        return _parse_jpeg(file)
    return _parse_png(file) if start == _PNG_SIGNATURE else None


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def _parse_jpeg(file: BinaryIO) -> PictureHeader:
    """Walks the segments up to the first scan. Source: ITU-T T.81, annex B."""
    width = height = channels = 0
    exif, xmp, more = [], b"", {}
    position = len(_JPEG_START)
    is_complete = False
    for _ in range(_MAX_PARTS):
        start = _read(file, position, 4)
        if len(start) < 4:
            break
        marker = start[1]
        if start[0] != 0xFF or marker == 0:
            # Decoders skip stray bytes between segments. A file with more than a block of them is no picture.
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
                # The name of its document (32 bytes), the document's length (4), and the offset of this part (4).
                name, offset = segment[len(_MORE_XMP) :][:32], segment[len(_MORE_XMP) + 36 :][:4]
                more[name, offset] = segment[len(_MORE_XMP) + 40 :]
        elif marker == 0xDA:
            # In scan data 0xFF is always followed by 0x00 or a marker, so this is the picture's own end, not
            # that of a thumbnail, which lies before the scan. Cameras may append data of their own after it.
            is_complete = _has_end(file, position)
            break
        position += 2 + length
    info: dict[Any, Any] = ({"exif": b"Exif\0\0" + b"".join(exif)} if exif else {}) | ({"xmp": xmp} if xmp else {})
    documents = [name for name, _ in more if name in xmp]  # those that the first packet names
    extended = [b"".join(more[key] for key in sorted(more) if key[0] == name) for name in dict.fromkeys(documents)]
    return _header("JPEG", (height, width), info, channels, is_complete, extended)


def _has_end(file: BinaryIO, start: int) -> bool:
    """Whether a JPEG has an end marker after ``start``, searched backwards from the end of the file."""
    last = file.seek(0, 2)
    while last > start:
        first = max(start, last - _BLOCK)
        # One byte more: the marker may lie across two blocks.
        if _JPEG_END in _read(file, first, last - first + 1):
            return True
        last = first
    return False


def _parse_png(file: BinaryIO) -> PictureHeader:
    """Walks the chunks. Source: W3C Portable Network Graphics specification, third edition, sections 5.3 and 11."""
    width = height = 0
    texts = PngStream(io.BytesIO())
    position = len(_PNG_SIGNATURE)
    size = file.seek(0, 2)
    is_complete = False
    for _ in range(_MAX_PARTS):
        start = _read(file, position, 8)
        if is_complete or len(start) < 8:
            break
        length, kind = struct.unpack(">I4s", start)
        if kind == b"IHDR" and length >= 8 and position + 8 + length <= size:
            width, height = struct.unpack(">II", _read(file, position + 8, 8))
        elif kind in _PNG_TEXTS:
            text = _read(file, position + 8, min(length, _BLOCK if kind == b"eXIf" else _MAX_TEXT))
            texts.fp = io.BytesIO(text)
            with suppress(Exception):  # an unreadable text is ignored
                getattr(texts, f"chunk_{kind.decode()}")(0, len(text))
        position += 8 + length + 4
        is_complete = kind == b"IEND" and position <= size
    return _header("PNG", (height, width), texts.im_info, 0, is_complete, ())


def _header(
    format: Format, stored: Size, info: dict[Any, Any], channels: int, is_complete: bool, more_xmp: Sequence[bytes]
) -> PictureHeader:
    picture = Image.Image()
    picture.info = info
    orientation = exif_orientation(picture)
    width, height = stored if orientation >= 5 else stored[::-1]  # 5 to 8 store the picture on its side
    xmp = *xmp_packets(picture), *more_xmp
    return PictureHeader(format, width, height, orientation, channels, is_complete and width > 0, xmp)


def exif_orientation(picture: Image.Image) -> int:
    """How a picture or a file is stored, 1 to 8 as in EXIF, as Pillow reads it; 1 (upright) without an entry."""
    if not picture.info:
        return 1
    with suppress(Exception):  # an unreadable block is ignored
        value = picture.getexif().get(Base.Orientation, 1)
        return int(value) if value in range(1, 9) else 1
    return 1


def xmp_packets(picture: Image.Image) -> tuple[bytes, ...]:
    """The XMP packet of a picture opened by Pillow, if it has one."""
    xmp = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp") or b""
    return ((xmp.encode() if isinstance(xmp, str) else xmp),) if xmp else ()


def decode(data: bytes, header: PictureHeader, divisor: int = 1) -> np.ndarray:
    """The whole file ``data`` as ``(H, W, 3)`` uint8 RGB, upright, without alpha; a ValueError says why not.

    The sides of a JPEG are divided by one of ``DIVISORS`` and rounded up.
    """
    size = -(-header.height // divisor), -(-header.width // divisor)
    if header.format == "JPEG":
        stored = _jpeg(data, size if header.orientation < 5 else size[::-1], divisor)
    else:
        stored = _png(data)
    # The orientation is the header's, so that size and picture cannot contradict one another.
    picture = exif_transpose(stored, header.orientation)
    if picture.shape[:2] != size:
        raise _damaged(f"{picture.shape[1]} x {picture.shape[0]} pixels where its header says otherwise")
    return picture


def _jpeg(data: bytes, size: Size, divisor: int) -> np.ndarray:
    """A JPEG as it is stored, of ``size`` (h, w) after the division.

    The decoder continues with grey where data is damaged, and reports only its first warning. So all that causes a
    harmless warning is removed, and then any warning is an error.
    """
    height, width = size if divisor > 1 else (0, 0)
    is_plain = False
    while True:
        try:
            return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
        except ValueError as error:
            if not is_plain:
                data, is_plain = _plain_jpeg(data), True
            elif "subsampling" in str(error):
                unusual = "its colours are sampled in an unusual way. Save it again as a JPEG of 4:2:0."
                raise ValueError(unusual) from error
            elif filled := _zeros_at_the_end(data, str(error)):
                data = data[: -len(_JPEG_END) - filled] + _JPEG_END
            else:
                raise _damaged(str(error)) from error


def _plain_jpeg(data: bytes) -> bytes:
    """The same picture without what decoders warn of although its meaning is clear.

    That is bytes between segments, unknown versions of JFIF and colour transforms of Adobe, and wrong parameters of a
    sequential scan, which have only one legal value. Data after the end marker is dropped. Missing scans, which
    decoders do not report, raise a ValueError.

    Source: ITU-T T.81, annexes B and G; ITU-T T.871, section 10.1; Adobe Technical Note 5116, section 18.
    """
    pieces, position, is_sequential = [data[:2]], 2, True
    lacking: set[Size] = set()  # (colour, coefficient) that no scan has given yet
    while found := _MARKER.search(data, position):
        marker, start = found[1][0], found.end()
        if marker == 0xD9 or len(data) < start + 2:
            break
        position = start + struct.unpack_from(">H", data, start)[0]
        body = data[start + 2 : position]
        if marker in _FRAME_MARKERS:
            is_sequential = marker in _SEQUENTIAL
            lacking = {(colour, at) for colour in body[6::3] for at in range(64)}
        elif marker == 0xE0 and body.startswith(b"JFIF\0"):
            body = body[:5] + b"\1\1" + body[7:]
        elif marker == 0xEE and body.startswith(b"Adobe"):
            body = body[:11] + bytes(min(value, 1) for value in body[11:12]) + body[12:]
        elif marker == 0xDA:
            body = body[:-3] + b"\0\x3f\0" if is_sequential else body
            first, last, precision = (bytes(3) + body)[-3:]
            if not precision & 15:  # no bits are left to later scans
                lacking -= {(colour, at) for colour in body[1:-3:2] for at in range(first, last + 1)}
        if marker not in _UNREAD:
            pieces.append(b"\xff%c%b%b" % (marker, struct.pack(">H", len(body) + 2), body))
        if marker == 0xDA:
            following = _MARKER.search(data, position)
            pieces.append(data[position : following.start() if following else len(data)])
    if lacking:
        raise _damaged("some of its scans are missing")
    return b"".join(pieces) + _JPEG_END


def _zeros_at_the_end(data: bytes, complaint: str) -> int:
    """How many bytes were not read, if they are zeros that pad the file: zeros within the data are valid codes."""
    trailing = _TRAILING.search(complaint)
    scan = data.removesuffix(_JPEG_END)
    zeros, unread = len(scan) - len(scan.rstrip(b"\0")), int(trailing[1]) if trailing else 0
    return unread if unread <= zeros <= unread + _MAX_ZEROS_READ else 0


def _png(data: bytes) -> np.ndarray:
    """A PNG as it is stored; of an animated one the default image."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    picture = None
    with suppress(cv2.error):
        picture = cv2.imdecode(np.frombuffer(_critical_chunks(data), dtype=np.uint8), flags)
    if picture is None:
        raise _damaged("it is refused by its decoder")
    return cv2.cvtColor(eight_bits(picture), cv2.COLOR_BGR2RGB)


def _critical_chunks(data: bytes) -> bytes:
    """A PNG reduced to its critical chunks (those that make its pixels), whose check sums are right.

    Source: W3C Portable Network Graphics specification, third edition, sections 5.3 to 5.5.
    """
    pieces, position = [data[:8]], 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if not kind[0] & 0x20:  # an upper-case first letter: critical
            if data[end - 4 : end] != struct.pack(">I", zlib.crc32(memoryview(data)[position + 4 : end - 4])):
                raise _damaged(f"the check sum of a {kind.decode('latin-1')} chunk is wrong")
            pieces.append(data[position:end])
        if kind == b"IEND":
            break
        position = end
    return b"".join(pieces)


def eight_bits(picture: np.ndarray) -> np.ndarray:
    """A picture of 16 bits per channel scaled to 8; a ValueError if the upper bits are empty: it would be black."""
    if picture.dtype != np.uint16:
        return picture
    brightest = int(picture.max(initial=0))
    if 0 < brightest <= _MAX_12_BITS:
        raise ValueError(
            f"it has 16 bits a channel, and its brightest value is {brightest} of 65535: values of 12 bits or fewer "
            "that were not scaled. Multiply them so that white is 65535."
        )
    return cv2.convertScaleAbs(picture, alpha=1 / 257)


def exif_transpose(picture: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation. Source: EXIF 2.3, section 4.6.4: the sides that are stored as row 0 and column 0."""
    if orientation >= 5:
        picture = picture.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    return np.ascontiguousarray(picture)


def _damaged(reason: str) -> ValueError:
    return ValueError(f"its data is damaged ({reason}). Replace the file.")


@dataclass(frozen=True)
class PanoramaFile:
    """A picture file that was checked, with its name for messages and its part of the sphere, None for the whole."""

    name: str
    header: PictureHeader
    part: Part | None

    @property
    def size(self) -> Size:
        """(H, W) of the upright picture."""
        return self.header.height, self.header.width

    @property
    def tilt(self) -> str:
        """See ``tilt_warning``."""
        return tilt_warning(self.name, self.header.xmp)


def check_panorama(source: str | Path | BinaryIO, covered: Covered | None = None) -> PanoramaFile:
    """Check the kind, end marker, size and shape of a file without decoding it. Damage inside its data is not seen.

    ``covered`` are the degrees that it covers; None for its GPano tags, and the whole sphere without any. An empty or
    truncated file, and what is not a picture, too large or of another shape, raise a ValueError.
    """
    with _opened(source) as (name, file):
        return _checked(name, file, covered)


def decode_panorama(
    source: str | Path | BinaryIO, covered: Covered | None, divisor: Callable[[PanoramaFile], int]
) -> tuple[np.ndarray, PanoramaFile, int]:
    """Check a file as ``check_panorama`` does and decode it. ``divisor`` chooses one of ``DIVISORS`` for a JPEG.

    Returns:
        The picture ``(H, W, 3)`` uint8 RGB, upright, without alpha; the file; the divisor, which is 1 for a PNG.
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
    """An open file and its name for messages."""
    if isinstance(source, str | Path):
        with existing_file(source).open("rb", buffering=0) as file:
            yield str(source), file
    else:
        yield "The picture", source


def existing_file(path: str | Path) -> Path:
    """The path of a file; raises FileNotFoundError if there is none."""
    if os.path.isdir(path):
        raise FileNotFoundError(f"{path}: there is no such file, only a folder. Name a picture in it.")
    if not os.path.isfile(path):  # Path.is_file fails for names that are too long
        raise FileNotFoundError(f"{path}: there is no such file. Check the path and the folder it is relative to.")
    return Path(path)


def _checked(path: str, file: BinaryIO, covered: Covered | None) -> PanoramaFile:
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
    return PanoramaFile(path, header, part)
