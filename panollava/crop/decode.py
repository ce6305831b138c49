"""JPEG and PNG data as upright 8-bit RGB, damaged data never taken for a picture."""

from __future__ import annotations

import re
import struct
import zlib

import cv2
import numpy as np
import simplejpeg

from panollava.crop.header import PictureHeader

DIVISORS = (8, 4, 2, 1)
"""By which the sides of JPEGs can be divided while they are decoded."""

DECODERS = {"cv2": cv2.__version__, "simplejpeg": simplejpeg.__version__}
"""What a picture's pixels depend on beside its file."""

_JPEG_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff+([\x02-\xcf\xd8-\xfe])")
"""Markers that a length follows, and the end: neither stuffed bytes nor restart markers."""
_SEQUENTIAL = {0xC0, 0xC1, 0xC9}
_UNREAD = {*range(0xE1, 0xEE), 0xEF, 0xFE}
"""Application segments and comments that say nothing of the pixels."""
_TRAILING = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
_MOST_ZEROS_READ = 16
"""Zero bytes that the end of a scan may hold itself before the zeros that fill a file up."""
_DEPTH_12 = 4095


def decode(data: bytes, header: PictureHeader, divisor: int = 1) -> np.ndarray:
    """A picture, upright, 8 bits a channel, alpha dropped.

    Args:
        data: the whole file.
        header: what it says of itself.
        divisor: one of ``DIVISORS``, for JPEGs; sides are rounded up.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        ValueError: why it cannot be decoded, and the way out.
    """
    size = -(-header.height // divisor), -(-header.width // divisor)
    stored = _jpeg(data, size if header.orientation < 5 else size[::-1], divisor) if header.format == "JPEG" else None
    # The orientation is the header's, so that size and picture cannot contradict one another.
    picture = turned_upright(_png(data) if stored is None else stored, header.orientation)
    if picture.shape[:2] != size:
        raise _damaged(f"{picture.shape[1]} x {picture.shape[0]} pixels where its header says otherwise")
    return picture


def _jpeg(data: bytes, size: tuple[int, int], divisor: int) -> np.ndarray:
    """A JPEG as it is stored, ``size`` (h, w) after the division.

    The decoder goes on with grey where data is damaged. It tells that there was a warning, but only what the first
    one was: so what it would warn of without need is taken out, and of the rest no warning is let pass.
    """
    height, width = size if divisor > 1 else (0, 0)

    def attempt(data: bytes) -> np.ndarray:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)

    try:
        return attempt(data)
    except ValueError:
        data = _plain_jpeg(data)
    while True:
        try:
            return attempt(data)
        except ValueError as error:
            if "subsampling" in str(error):
                raise ValueError(
                    "its colours are sampled in an unusual way. Save it again as a JPEG of 4:2:0."
                ) from error
            filled = _zeros_at_the_end(data, str(error))
            if not filled:
                raise _damaged(str(error)) from error
        data = data[: -len(_JPEG_END) - filled] + _JPEG_END


def _plain_jpeg(data: bytes) -> bytes:
    """The same picture without what decoders warn of though they can tell what is meant.

    That is bytes between segments, versions of JFIF and colours of Adobe that are not known, and the parameters of a
    sequential scan, which can only be one thing. What follows the end is left out.

    Source: ITU-T T.81, annexes B and G; ITU-T T.871, section 10.1; Adobe Technical Note 5116, section 18.

    Raises:
        ValueError: scans are missing, of which decoders say nothing: what is left out was in their place.
    """
    pieces, position, is_sequential = [data[:2]], 2, True
    lacking: set[tuple[int, int]] = set()  # colours and their coefficients
    while found := _MARKER.search(data, position):
        marker, start = found[1][0], found.end()
        if marker == 0xD9 or len(data) < start + 2:
            break
        position = start + struct.unpack_from(">H", data, start)[0]
        body = data[start + 2 : position]
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):
            is_sequential = marker in _SEQUENTIAL
            lacking = {(colour, at) for colour in body[6::3] for at in range(64)}
        elif marker == 0xE0 and body.startswith(b"JFIF\0"):
            body = body[:5] + b"\1\1" + body[7:]
        elif marker == 0xEE and body.startswith(b"Adobe"):
            body = body[:11] + bytes(min(value, 1) for value in body[11:12]) + body[12:]
        elif marker == 0xDA:
            body = body[:-3] + b"\0\x3f\0" if is_sequential else body
            first, last, precision = (bytes(3) + body)[-3:]
            if not precision & 15:  # bits that are left to later scans
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
    """How many bytes the decoder has not read, if they are zeros with which a camera has filled the file up.

    Zeros in the place of a picture's data are read in part, as they are the code of something.
    """
    trailing = _TRAILING.search(complaint)
    scan = data.removesuffix(_JPEG_END)
    zeros, unread = len(scan) - len(scan.rstrip(b"\0")), int(trailing[1]) if trailing else 0
    return unread if unread <= zeros <= unread + _MOST_ZEROS_READ else 0


def _png(data: bytes) -> np.ndarray:
    """A PNG as it is stored; of the frames of an animated one the picture that is shown where none moves."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        picture = cv2.imdecode(np.frombuffer(_critical_chunks(data), dtype=np.uint8), flags)
    except cv2.error as error:
        raise _damaged("it is refused by its decoder") from error
    if picture is None:
        raise _damaged("it is refused by its decoder")
    return cv2.cvtColor(eight_bits(picture), cv2.COLOR_BGR2RGB)


def _critical_chunks(data: bytes) -> bytes:
    """A PNG with nothing in it but its pixels, whose check sums are right.

    Source: W3C Portable Network Graphics specification, third edition, sections 5.3 to 5.5.
    """
    pieces, position = [data[:8]], 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if not kind[0] & 0x20:
            if data[end - 4 : end] != struct.pack(">I", zlib.crc32(memoryview(data)[position + 4 : end - 4])):
                raise _damaged(f"the check sum of a {kind.decode('latin-1')} chunk is wrong")
            pieces.append(data[position:end])
        if kind == b"IEND":
            break
        position = end
    return b"".join(pieces)


def eight_bits(picture: np.ndarray) -> np.ndarray:
    """A picture of 16 bits a channel with 8, 65535 becoming 255; one of 8 as it is.

    Raises:
        ValueError: its values leave the upper bits empty, so that it would be all but black.
    """
    if picture.dtype != np.uint16:
        return picture
    brightest = int(picture.max(initial=0))
    if 0 < brightest <= _DEPTH_12:
        raise ValueError(
            f"it has 16 bits a channel, and its brightest value is {brightest} of 65535: values of 12 bits or fewer "
            "that were not scaled. Multiply them so that white is 65535."
        )
    return cv2.convertScaleAbs(picture, alpha=1 / 257)


def turned_upright(picture: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation.

    Source: EXIF 2.3, section 4.6.4: which sides of the picture row 0 and column 0 of what is stored are.
    """
    if orientation >= 5:
        picture = picture.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    return np.ascontiguousarray(picture)


def _damaged(reason: str) -> ValueError:
    return ValueError(f"its data is damaged ({reason}). Replace the file.")
