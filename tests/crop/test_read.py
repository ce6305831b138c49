"""Panorama files: what is read from them, and what is said of bad ones."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from panollava.crop.read import MAX_PIXELS, check_panorama, read_panorama
from panollava.crop.render import render_views
from panollava.crop.strategies import AnyresE2pCrop, E2pCrop

CAMERAS = E2pCrop().cameras()


def gradient(height: int = 64, width: int = 128) -> np.ndarray:
    """RGB, red growing to the right, green downwards, blue full."""
    picture = np.full((height, width, 3), 255, dtype=np.uint8)
    picture[..., 0] = np.linspace(0, 255, width, dtype=np.uint8)
    picture[..., 1] = np.linspace(0, 255, height, dtype=np.uint8)[:, None]
    return picture


def write(path: Path, picture: np.ndarray) -> Path:
    stored = picture if picture.ndim == 2 else picture[..., [2, 1, 0, 3][: picture.shape[2]]]
    path.write_bytes(cv2.imencode(path.suffix, stored)[1].tobytes())
    return path


def with_orientation(jpeg: bytes, orientation: int, order: str = "<") -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0" + mark + struct.pack(order + "IH", 8, 1) + entry + b"\0\0\0\0"
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def read(path: Path, size: int = 64) -> np.ndarray:
    return read_panorama(path, CAMERAS, (size, size))


def test_a_png_is_read_as_it_is(tmp_path):
    picture = gradient()
    assert (read(write(tmp_path / "a.png", picture)) == picture).all()


def test_a_jpeg_is_read_in_rgb_order(tmp_path):
    picture = gradient()
    result = read(write(tmp_path / "a.jpg", picture)).astype(int)
    assert np.abs(result - picture).mean() < 3


@pytest.mark.parametrize(("view_side", "expected_width"), [(32, 256), (64, 512), (65, 512), (128, 1024), (512, 2048)])
def test_a_jpeg_is_decoded_at_the_smallest_scale_with_the_tiles_peak_resolution(tmp_path, view_side, expected_width):
    """A 90-degree tile of n pixels has 2 pi n pixels around the horizon at its peak."""
    path = write(tmp_path / "a.jpg", gradient(1024, 2048))
    width = read(path, view_side).shape[1]
    assert width == expected_width
    assert width >= min(2048, 6.28 * view_side) > width / 2 * (expected_width < 2048)


def test_the_reduced_panorama_gives_the_same_views(tmp_path):
    picture = gradient(1024, 2048)
    path = write(tmp_path / "a.jpg", picture)
    cameras = AnyresE2pCrop().cameras()
    views = render_views(read_panorama(path, cameras, (64, 64)), cameras, (64, 64)).astype(int)
    assert np.abs(views - render_views(picture, cameras, (64, 64))).mean() < 2


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("orientation", "stored"),
    [(3, lambda p: p[::-1, ::-1]), (6, lambda p: np.rot90(p, 1)), (8, lambda p: np.rot90(p, -1))],
)
def test_exif_rotation_is_undone(tmp_path, orientation, stored, order):
    path = write(tmp_path / "a.jpg", np.ascontiguousarray(stored(gradient())))
    path.write_bytes(with_orientation(path.read_bytes(), orientation, order))
    assert check_panorama(path) == (64, 128)
    assert np.abs(read(path).astype(int) - gradient()).mean() < 3


def test_grey_transparent_and_16_bit_pictures_become_8_bit_rgb(tmp_path):
    grey = gradient()[..., 0]
    assert (read(write(tmp_path / "grey.png", grey)) == grey[..., None]).all()
    clear = np.dstack([gradient(), np.zeros((64, 128), np.uint8)])
    assert (read(write(tmp_path / "clear.png", clear)) == gradient()).all()
    deep = read(write(tmp_path / "deep.png", gradient().astype(np.uint16) * 257))
    assert deep.dtype == np.uint8
    assert np.abs(deep.astype(int) - gradient()).max() <= 1
    deep_grey = read(write(tmp_path / "deep_grey.png", grey.astype(np.uint16) * 257))
    assert np.abs(deep_grey.astype(int) - grey[..., None]).max() <= 1


def test_data_after_the_end_of_a_jpeg_is_ignored(tmp_path):
    path = write(tmp_path / "a.jpg", gradient())
    path.write_bytes(path.read_bytes() + b"a camera's own trailer")
    assert read(path).shape == (64, 128, 3)


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_picture(tmp_path):
    path = write(tmp_path / "a.jpg", gradient())
    jpeg = path.read_bytes()
    comment = b"\xff\xd8 thumbnail \xff\xd9"
    path.write_bytes(jpeg[:2] + b"\xff\xe2" + struct.pack(">H", len(comment) + 2) + comment + jpeg[2:-40])
    with pytest.raises(ValueError, match="cut short"):
        read(path)


@pytest.mark.parametrize(("height", "width"), [(64, 129), (65, 128), (3003, 6006)])
def test_sizes_a_little_off_two_to_one_are_accepted(tmp_path, height, width):
    path = tmp_path / "a.png"
    path.write_bytes(png_of_size(width, height))
    assert check_panorama(path) == (height, width)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 64), (64, 132)])
def test_other_shapes_are_refused(tmp_path, height, width):
    path = write(tmp_path / "a.png", gradient(height, width))
    with pytest.raises(ValueError, match=rf"a\.png: {width} x {height} pixels is not a whole panorama"):
        read(path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [12, 30, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path, suffix, kept):
    path = write(tmp_path / f"a{suffix}", gradient())
    data = path.read_bytes()
    path.write_bytes(data[: kept if kept > 1 else int(len(data) * kept)])
    for action in (read, check_panorama):
        with pytest.raises(ValueError, match=rf"a\{suffix}: the (JPEG|PNG) is cut short.* again"):
            action(path)


def test_an_empty_a_missing_and_a_foreign_file_are_refused(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ValueError, match=r"empty\.jpg: the file is empty \(0 bytes\)"):
        read(tmp_path / "empty.jpg")
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg: there is no such file"):
        read(tmp_path / "missing.jpg")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"page\.jpg: neither a JPEG nor a PNG"):
        read(tmp_path / "page.jpg")


def test_a_complete_file_with_damaged_data_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png_of_size(128, 64))
    with pytest.raises(ValueError, match=r"a\.png: the PNG cannot be decoded"):
        read(tmp_path / "a.png")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    side = int((2 * MAX_PIXELS) ** 0.5) + 2
    (tmp_path / "bomb.png").write_bytes(png_of_size(side, side // 2))
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(ValueError, match=r"bomb\.png: .* more than the 300,000,000"):
        read(tmp_path / "bomb.png")


def test_real_photographs_are_whole_panoramas():
    folder = Path(__file__).parents[3] / "shared" / "data" / "quic360_mini" / "images"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    for path in sorted(folder.glob("*.jpg")):
        height, width = check_panorama(path)
        assert abs(width / height - 2) < 0.04
