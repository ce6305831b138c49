"""Picture files as their formats define them, made here byte by byte or by a second library."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from PIL import Image

PNG_START = b"\x89PNG\r\n\x1a\n"
XMP_HEAD = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
GPANO_SPACE = 'xmlns:GPano="http://ns.google.com/photos/1.0/panorama/"'


def gradient(height: int = 64, width: int = 128) -> np.ndarray:
    """RGB, red growing to the right, green downwards, blue full."""
    picture = np.full((height, width, 3), 255, dtype=np.uint8)
    picture[..., 0] = np.linspace(0, 255, width, dtype=np.uint8)
    picture[..., 1] = np.linspace(0, 255, height, dtype=np.uint8)[:, None]
    return picture


def noise(height: int, width: int, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)
    return values[..., 0] if channels == 1 else values


def by_pillow(picture: np.ndarray | Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, format, **options)
    return file.getvalue()


def torn_jpeg(height: int = 128, width: int = 256) -> bytes:
    """A JPEG whose header and end are right, with a hole in its data that its decoder notices."""
    smooth = cv2.GaussianBlur(noise(height, width), (0, 0), 1)
    data = by_pillow(smooth, "JPEG", quality=90)
    middle = len(data) // 2
    return data[:middle] + bytes(600) + data[middle + 600 :]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(picture: np.ndarray) -> bytes:
    """A PNG of 8 or 16 bits a channel: grey, grey and alpha, RGB or RGB and alpha, the rows unfiltered."""
    stored = picture[..., None] if picture.ndim == 2 else picture
    height, width, channels = stored.shape
    rows = b"".join(b"\0" + row.astype(stored.dtype.newbyteorder(">")).tobytes() for row in stored)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, stored.dtype.itemsize * 8, kind, 0, 0, 0)
    return PNG_START + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that has no pixels, whatever its header says."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG_START + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def exif(orientation: int, order: str = "<") -> bytes:
    """An EXIF block of one entry, without the marker that JPEGs put before it."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return mark + struct.pack(order + "IH", 8, 1) + entry + b"\0\0\0\0"


def with_orientation(file: bytes, orientation: int, order: str = "<") -> bytes:
    """A JPEG or PNG with an EXIF block behind its start, and in PNGs behind the header chunk."""
    block = exif(orientation, order)
    if file.startswith(PNG_START):
        return file[:33] + chunk(b"eXIf", block) + file[33:]
    block = b"Exif\0\0" + block
    return file[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + file[2:]


def stored_as(upright: np.ndarray, orientation: int) -> np.ndarray:
    """How a picture of that orientation is stored: row 0 and column 0 are the sides that EXIF 2.3 names."""
    first_row_then_column = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }
    row, column = first_row_then_column[orientation]
    result = upright
    if "bottom" in (row, column):
        result = result[::-1]
    if "right" in (row, column):
        result = result[:, ::-1]
    return np.ascontiguousarray(result.swapaxes(0, 1) if row in ("left", "right") else result)


def gpano(tags: Mapping[str, object], as_elements: bool = False) -> bytes:
    """An XMP packet as programs write it, padding included."""
    if as_elements:
        written = "".join(f"<GPano:{key}> {value}</GPano:{key}>" for key, value in tags.items())
        body = f'<rdf:Description rdf:about="" {GPANO_SPACE}>{written}</rdf:Description>'
    else:
        written = " ".join(f'GPano:{key}="{value}"' for key, value in tags.items())
        body = f'<rdf:Description rdf:about="" {GPANO_SPACE} {written}/>'
    start = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    return f'{start}{XMP_HEAD}{body}</rdf:RDF></x:xmpmeta>{" " * 99}<?xpacket end="w"?>'.encode()


def cut_tags(
    top: float, left: float, height: float, width: float, whole: tuple[float, float] = (1024, 2048)
) -> dict[str, object]:
    return {
        "ProjectionType": "equirectangular",
        "CroppedAreaImageWidthPixels": width,
        "CroppedAreaImageHeightPixels": height,
        "FullPanoWidthPixels": whole[1],
        "FullPanoHeightPixels": whole[0],
        "CroppedAreaLeftPixels": left,
        "CroppedAreaTopPixels": top,
    }


def segment(content: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def with_xmp(file: bytes, xmp: bytes) -> bytes:
    if file.startswith(b"\xff\xd8"):
        return file[:2] + segment(b"http://ns.adobe.com/xap/1.0/\0" + xmp) + file[2:]
    return file[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)) + file[33:]
