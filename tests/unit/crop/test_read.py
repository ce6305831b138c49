"""Panorama files: what is read from them, and what is said of bad ones."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import REAL_DATA
from support.picture_files import gradient, png_of_size

from panollava.crop.crop import read_panorama
from panollava.crop.image_file import check_panorama
from panollava.crop.partial import MAX_PIXELS, extent_of
from panollava.crop.render import render_views
from panollava.crop.strategies import AnyresE2pCrop, E2pCrop

CAMERAS = E2pCrop().cameras()


def write(path: Path, picture: np.ndarray) -> Path:
    stored = picture if picture.ndim == 2 else picture[..., [2, 1, 0, 3][: picture.shape[2]]]
    path.write_bytes(cv2.imencode(path.suffix, stored)[1].tobytes())
    return path


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
    assert check_panorama(path).size == (height, width)


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
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "folder.jpg").mkdir()
    for action in (read, check_panorama):
        with pytest.raises(ValueError, match=r"empty\.jpg: the file is empty \(0 bytes\)"):
            action(tmp_path / "empty.jpg")
        with pytest.raises(ValueError, match=r"page\.jpg: neither a JPEG nor a PNG"):
            action(tmp_path / "page.jpg")
        with pytest.raises(FileNotFoundError, match=r"missing\.jpg: there is no such file"):
            action(tmp_path / "missing.jpg")
        with pytest.raises(FileNotFoundError, match=r"folder\.jpg: there is no such file, only a folder"):
            action(tmp_path / "folder.jpg")
        for name in ("x" * 5000, "nul\0byte.jpg"):
            with pytest.raises(FileNotFoundError, match="there is no such file"):
                action(name)


def test_any_name_will_do(tmp_path):
    folder = tmp_path / "파노라마 사진 (1)"
    folder.mkdir()
    path = write(folder / "서울 하늘 #1.png", gradient())
    assert check_panorama(path).size == (64, 128)
    assert (read(path) == gradient()).all()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"서울 하늘 #1\.png: the PNG is cut short"):
        read(path)


def test_a_picture_of_two_pixels_is_a_panorama(tmp_path):
    path = write(tmp_path / "a.png", gradient(1, 2))
    assert (render_views(read(path), CAMERAS, (8, 8))[..., 2] == 255).all()
    with pytest.raises(ValueError, match="1 x 2 pixels is not a whole panorama"):
        read(write(tmp_path / "b.png", gradient(2, 1)))


class CountingReads:
    """Counts the bytes that are read of files."""

    def __init__(self, monkeypatch):
        self.bytes = self.files = 0
        plain = Path.open

        def opened(path, *args, **options):
            self.files += 1
            file = plain(path, *args, **options)
            return Counted(file, self)

        monkeypatch.setattr(Path, "open", opened)


class Counted:
    """A file, its reads counted."""

    def __init__(self, file, counts):
        self.file, self.counts = file, counts

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()

    def seek(self, *args):
        return self.file.seek(*args)

    def read(self, *args):
        data = self.file.read(*args)
        self.counts.bytes += len(data)
        return data


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_file_is_read_once_and_checked_without_reading_it_all(tmp_path, monkeypatch, suffix):
    picture = np.random.default_rng(0).integers(0, 256, (512, 1024, 3), dtype=np.uint8)
    path = write(tmp_path / f"a{suffix}", picture)
    size = path.stat().st_size
    counts = CountingReads(monkeypatch)
    check_panorama(path)
    assert 0 < counts.bytes < 70_000 < size / 3
    counts.bytes = counts.files = 0
    read(path)
    assert counts.files == 1
    assert size <= counts.bytes < size + 70_000


@pytest.mark.parametrize(("height", "width", "divisor"), [(1001, 2003, 4), (1000, 2000, 4), (333, 666, 1)])
def test_a_panorama_knows_where_its_sphere_ends(tmp_path, height, width, divisor):
    panorama = read(write(tmp_path / "a.jpg", gradient(height, width)))
    assert panorama.shape[:2] == (-(-height // divisor), -(-width // divisor))
    assert extent_of(panorama) == (height / divisor, width / divisor)


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
    folder = REAL_DATA / "quic360_mini" / "images"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    for path in sorted(folder.glob("*.jpg")):
        height, width = check_panorama(path).size
        assert abs(width / height - 2) < 0.04
