"""Every kind of picture against a second decoder or the pixels it was made of; damage is never taken for a picture."""

from __future__ import annotations

import io
import os

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import by_pillow, chunk, gradient, noise, png, stored_as, with_orientation
from PIL import Image

from panollava.crop.decode import DIVISORS, decode
from panollava.crop.header import parse_header
from panollava.crop.read import read_panorama
from panollava.crop.strategies import E2pCrop

CAMERAS = E2pCrop().cameras()
ORIENTATIONS = range(1, 9)


def decoded(data: bytes, divisor: int = 1) -> np.ndarray | None:
    header = parse_header(io.BytesIO(data))
    assert header is not None
    picture = decode(data, header, divisor)
    assert picture is None or (picture.dtype == np.uint8 and picture.shape[2:] == (3,) and picture.flags.c_contiguous)
    return picture


def opened(data: bytes) -> np.ndarray:
    """As Pillow decodes it."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("channels", [1, 2, 3, 4], ids=["grey", "grey+alpha", "rgb", "rgb+alpha"])
@pytest.mark.parametrize("size", [(16, 32), (17, 33), (1, 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pngs_of_true_colour_and_grey(channels, size, dtype):
    """16 bits are scaled, 65535 to 255, and not cut to the high or the low byte; alpha changes nothing."""
    picture = noise(*size, channels, dtype)
    colours = picture[..., None] if channels == 1 else picture[..., : channels - (channels in (2, 4))]
    expected = colours if dtype == np.uint8 else np.round(colours / 257)
    assert (decoded(png(picture)) == np.broadcast_to(expected, (*size, 3))).all()


def test_every_value_of_16_bits():
    picture = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert (decoded(png(picture))[..., 0] == np.round(picture / 257)).all()


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("1", {}),
        ("P", {}),
        ("P", {"transparency": 3}),
        ("P", {"transparency": bytes(range(256))}),
        ("RGB", {"transparency": (1, 2, 3)}),
        ("L", {"transparency": 7}),
        ("LA", {}),
    ],
    ids=["1-bit", "palette", "palette-one-clear", "palette-alpha", "rgb-one-clear", "grey-one-clear", "grey+alpha"],
)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_pngs_as_pillow_reads_them(mode, options):
    data = by_pillow(Image.fromarray(noise(15, 31)).convert(mode), "PNG", **options)
    assert (decoded(data) == opened(data)).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palettes_of_few_colours(bits):
    picture = Image.fromarray(noise(15, 31)).quantize(2**bits)
    data = by_pillow(picture, "PNG", bits=bits)
    assert data[24] == bits
    assert (decoded(data) == opened(data)).all()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 2], ids=["4:4:4", "4:2:0"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpegs_as_pillow_reads_them(progressive, subsampling, mode):
    smooth = cv2.GaussianBlur(noise(61, 127), (0, 0), 3)
    data = by_pillow(
        Image.fromarray(smooth).convert(mode), "JPEG", progressive=progressive, subsampling=subsampling, quality=95
    )
    assert np.abs(decoded(data).astype(int) - opened(data)).max() <= 2
    assert parse_header(io.BytesIO(data)).channels == {"RGB": 3, "L": 1}[mode]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_orientation_of_a_png(orientation, order):
    upright = noise(15, 31)
    assert (decoded(with_orientation(png(stored_as(upright, orientation)), orientation, order)) == upright).all()


def test_an_orientation_behind_the_pixels_of_a_png_counts_too():
    data = png(stored_as(gradient(), 6))
    block = with_orientation(data, 6)[33 : 33 + len(with_orientation(data, 6)) - len(data)]
    assert (decoded(data[:-12] + block + chunk(b"IEND", b"")) == gradient()).all()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("divisor", DIVISORS)
def test_every_orientation_of_a_jpeg_at_every_size(orientation, divisor):
    upright = cv2.GaussianBlur(noise(64, 128), (0, 0), 12)
    stored = by_pillow(stored_as(upright, orientation), "JPEG", quality=98, subsampling=0)
    expected = cv2.resize(upright, (128 // divisor, 64 // divisor), interpolation=cv2.INTER_AREA)
    result = decoded(with_orientation(stored, orientation), divisor)
    assert np.abs(result.astype(int) - expected).max() <= 4
    with Image.open(io.BytesIO(with_orientation(stored, orientation))) as image:
        assert image.getexif()[0x0112] == orientation


def test_a_lying_jpeg_of_odd_sides_is_not_divided(tmp_path):
    """Turned upright, the column that lies in part beyond the picture would be the first."""
    path = tmp_path / "a.jpg"
    for orientation, width in ((1, 501), (3, 2003), (6, 2003)):
        stored = by_pillow(stored_as(gradient(1001, 2003), orientation), "JPEG")
        path.write_bytes(with_orientation(stored, orientation))
        assert read_panorama(path, CAMERAS, (64, 64)).shape[1] == width


def test_printing_inks_are_refused(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(by_pillow(Image.fromarray(gradient()).convert("CMYK"), "JPEG"))
    with pytest.raises(ValueError, match=r"a\.jpg: a JPEG of 4 colours, .*CMYK.* Convert it to RGB"):
        read_panorama(path, CAMERAS, (16, 16))


def jpeg(progressive: bool) -> bytes:
    return by_pillow(cv2.GaussianBlur(noise(128, 256), (0, 0), 1), "JPEG", quality=90, progressive=progressive)


def hole(data: bytes, middle: int) -> bytes:
    return data[:middle] + bytes(600) + data[middle + 600 :]


def overwritten(data: bytes, middle: int) -> bytes:
    return data[:middle] + noise(1, 200).tobytes() + data[middle + 600 :]


def lacking(data: bytes, middle: int) -> bytes:
    return data[:middle] + data[middle + 600 :]


def ended_early(data: bytes, middle: int) -> bytes:
    return data[:middle] + b"\xff\xd9"


@pytest.mark.parametrize("damage", [hole, overwritten, lacking, ended_early])
@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG"])
def test_damage_in_the_middle_is_refused(tmp_path, capfd, kind, damage):
    data = png(noise(128, 256)) if kind == "PNG" else jpeg(kind == "progressive")
    assert decoded(data) is not None
    path = tmp_path / "a.jpg"
    path.write_bytes(damage(data, len(data) // 2))
    with pytest.raises(ValueError, match=r"a\.jpg: the (JPEG|PNG) (cannot be decoded|is cut short)"):
        read_panorama(path, CAMERAS, (64, 64))
    assert capfd.readouterr().err == ""


def test_zeros_before_the_end_of_a_jpeg_are_no_damage():
    data = jpeg(progressive=False)
    assert (decoded(data[:-2] + bytes(500) + data[-2:]) == decoded(data)).all()
    assert decoded(data[:-2] + data[-300:-2] + data[-2:]) is None


@settings(deadline=None, max_examples=60)
@given(
    progressive=st.booleans(),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=20),
)
def test_a_changed_byte_makes_another_picture_or_none(progressive, changes):
    data = bytearray(by_pillow(gradient(32, 64), "JPEG", progressive=progressive))
    for place, value in changes:
        data[int(place * len(data))] = value
    header = parse_header(io.BytesIO(bytes(data)))
    if header is not None and header.width * header.height < 10**6:
        picture = decode(bytes(data), header)
        assert picture is None or picture.shape == (header.height, header.width, 3)


def test_what_others_write_meanwhile_is_not_lost(monkeypatch, capfd):
    def interrupted(data, flags):
        os.write(2, b"another thread\nCorrupt JPEG data: premature end of data segment\n")
        return np.zeros((64, 128, 3), np.uint8)

    monkeypatch.setattr(cv2, "imdecode", interrupted)
    assert decoded(by_pillow(gradient(), "JPEG")) is None
    assert capfd.readouterr().err == "another thread\n"


def test_an_error_of_the_decoder_is_damage(monkeypatch):
    def failing(data, flags):
        raise cv2.error("bad header")

    monkeypatch.setattr(cv2, "imdecode", failing)
    assert decoded(by_pillow(gradient(), "JPEG")) is None
