"""JPEG and PNG data as upright 8-bit RGB, damaged data never taken for a picture."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from tempfile import TemporaryFile
from threading import Lock

import cv2
import numpy as np

from panollava.crop.header import PictureHeader

DIVISORS = (8, 4, 2, 1)
"""By which the sides of JPEGs can be divided while they are decoded."""

_JPEG_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}

_DECODERS = (b"Corrupt JPEG data", b"Premature end", b"Warning: ", b"libpng ")
"""How the lines begin that the decoders write."""

_TRAILING = re.compile(rb"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")

_stderr = Lock()


def decode(data: bytes, header: PictureHeader, divisor: int = 1) -> np.ndarray | None:
    """A picture, upright, 8 bits a channel, alpha dropped.

    Args:
        data: the whole file.
        header: what it says of itself.
        divisor: one of ``DIVISORS``, for JPEGs; sides are rounded up.

    Returns:
        ``(H, W, 3)`` uint8 RGB; None where the data is damaged.
    """
    # The orientation is the header's, so that size and picture cannot contradict one another.
    flags = _JPEG_FLAGS[divisor] if header.format == "JPEG" else cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    picture, complaint = _decoded(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if picture is None or _tells_of_damage(complaint, data):
        return None
    if picture.dtype == np.uint16:
        picture = cv2.convertScaleAbs(picture, alpha=1 / 257)  # 65535 becomes 255
    picture = cv2.cvtColor(_turned_upright(picture, header.orientation), cv2.COLOR_BGR2RGB)
    size = -(-header.height // divisor), -(-header.width // divisor)
    return picture if picture.shape[:2] == size else None


def _decoded(data: bytes, flags: int) -> tuple[np.ndarray | None, bytes]:
    """The picture as it is stored, and what its decoder wrote to the standard error stream.

    Where a JPEG's data is damaged or ends early, its decoder goes on with grey and says so there and nowhere else.
    """
    encoded = np.frombuffer(data, dtype=np.uint8)
    picture = None
    with _stderr, TemporaryFile() as heard:
        if sys.stderr is not None:
            sys.stderr.flush()
        kept = os.dup(2)
        try:
            os.dup2(heard.fileno(), 2)
            with suppress(cv2.error):  # None tells the same
                picture = cv2.imdecode(encoded, flags)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        heard.seek(0)
        lines = heard.read().splitlines(keepends=True)
    if others := b"".join(line for line in lines if not line.startswith(_DECODERS)):
        os.write(2, others)  # of another thread, in the meantime
    return picture, b"".join(line for line in lines if line.startswith(_DECODERS))


def _tells_of_damage(complaint: bytes, data: bytes) -> bool:
    if trailing := _TRAILING.search(complaint):
        # Some cameras fill a file up with zeros before the end marker; the picture is whole.
        return bytes(int(trailing[1])) + b"\xff\xd9" not in data
    return complaint.startswith((b"Corrupt JPEG data", b"Premature end"))


def _turned_upright(picture: np.ndarray, orientation: int) -> np.ndarray:
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
