"""Headers of files that were made to be misread: an answer, and soon, whatever the bytes."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.picture_files import PNG_START, by_pillow, chunk, exif, gradient, png, png_of_size

from panollava.crop import image_file as header_file
from panollava.crop.crop import read_panorama
from panollava.crop.image_file import PictureHeader, check_panorama, parse_header
from panollava.crop.strategies import E2pCrop

STARTS = [
    b"\xff\xd8",
    b"\xff\xd8\xff",
    b"\xff\xd8\xff\xe1\x00\x40Exif\0\0II*\0",
    b"\xff\xd8\xff\xe1\x00\x40Exif\0\0MM\0*",
    b"\xff\xd8\xff\xc0",
    b"\xff\xd8\xff\xda",
    PNG_START,
    PNG_START + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 4, 8, 2, 0, 0, 0)),
    PNG_START + b"\xff\xff\xff\xffeXIf",
]


class Reads(io.BytesIO):
    """Counts reads and what they ask for."""

    count = asked = 0

    def read(self, size: int | None = -1) -> bytes:
        self.count += 1
        self.asked += size or 0
        return super().read(size)


@settings(deadline=None, max_examples=300)
@given(start=st.sampled_from([b"", *STARTS]), rest=st.binary(max_size=400))
@example(start=b"\xff\xd8", rest=b"\xff" * 400)
@example(start=b"\xff\xd8", rest=b"\xff\xe0\x00\x00" * 100)
@example(start=b"\xff\xd8", rest=b"\xff\xd0" * 200)
@example(start=PNG_START, rest=bytes(400))
def test_any_bytes_have_a_header_or_none(start, rest):
    file = Reads(start + rest)
    header = parse_header(file)
    assert header is None or isinstance(header, PictureHeader)
    assert (header is None) == (not (start + rest).startswith((b"\xff\xd8", PNG_START)))
    assert file.count <= 3 * len(start + rest) + 4
    if header is not None:
        assert 1 <= header.orientation <= 8
        assert not header.is_complete or header.width > 0


@settings(deadline=None, max_examples=100)
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=400))
def test_random_bytes_behind_a_signature_are_one_error_with_the_file_name(tmp_path_factory, start, rest):
    path = tmp_path_factory.mktemp("files") / "odd.jpg"
    path.write_bytes(start + rest)
    for action in (check_panorama, lambda file: read_panorama(file, E2pCrop().cameras(), (8, 8))):
        with pytest.raises(ValueError, match=r"odd\.jpg: "):
            action(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_cut_anywhere_is_refused(tmp_path, kind):
    data = by_pillow(gradient(16, 32), kind)
    path = tmp_path / "cut.jpg"
    for kept in range(1, len(data)):
        path.write_bytes(data[:kept])
        with pytest.raises(ValueError, match=r"cut\.jpg: (the (JPEG|PNG) is cut short|neither a JPEG nor a PNG)"):
            check_panorama(path)


@pytest.mark.parametrize("data", [b"\xff\xd8" + b"\xff" * 2_000_000, PNG_START + bytes(2_000_000)])
def test_a_file_of_endless_parts_is_given_up(monkeypatch, data):
    monkeypatch.setattr(header_file, "_MAX_PARTS", 10_000)
    file = Reads(data)
    header = parse_header(file)
    assert header is not None
    assert not header.is_complete
    assert file.count < 10_010


@pytest.mark.parametrize("length", [0, 40, 70_000, 0xFFFFFFFF])
def test_no_length_makes_it_ask_for_more_than_a_block(length):
    block = exif(6).ljust(length, b"\0") if length < 100_000 else exif(6)
    data = png_of_size(8, 4)[:33] + struct.pack(">I4s", length, b"eXIf") + block + bytes(4) + png_of_size(8, 4)[33:]
    file = Reads(data)
    header = parse_header(file)
    assert header is not None
    assert file.asked < 70_000
    assert header.orientation == (1 if length == 0 else 6)


def test_sizes_that_no_picture_has(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_size(60_000, 30_000))
    with pytest.raises(ValueError, match=r"bomb\.png: 60000 x 30000 pixels are more than the 300,000,000"):
        check_panorama(path)
    jpeg = bytearray(by_pillow(gradient(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 30_000, 60_000)
    path.write_bytes(jpeg)
    with pytest.raises(ValueError, match=r"bomb\.png: 60000 x 30000 pixels are more than the 300,000,000"):
        check_panorama(path)
    path.write_bytes(png_of_size(0, 0))
    with pytest.raises(ValueError, match=r"bomb\.png: the PNG is cut short"):
        check_panorama(path)


def test_a_header_that_promises_more_than_there_is(tmp_path):
    """The frame says twice the size; the decoder runs out of data."""
    jpeg = bytearray(by_pillow(gradient(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 128, 256)
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg)
    with pytest.raises(ValueError, match=r"a\.jpg: the JPEG cannot be decoded"):
        read_panorama(path, E2pCrop().cameras(), (64, 64))


def test_the_end_of_a_jpeg_is_found_across_blocks():
    data = by_pillow(gradient(), "JPEG")
    for trailing in (0, 1, 65_535, 65_536, 65_537, 200_000):
        for kept in (0, 1, 2):
            header = parse_header(io.BytesIO(data[: len(data) - kept] + bytes(trailing)))
            assert header == PictureHeader("JPEG", 128, 64, 1, 3, kept == 0)


def test_a_whole_png_is_complete_whatever_follows():
    header = parse_header(io.BytesIO(png(gradient()) + b"trailer"))
    assert header == PictureHeader("PNG", 128, 64, 1, 0, True)
