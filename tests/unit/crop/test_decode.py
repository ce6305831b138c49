"""Every kind of picture against a second decoder or the pixels it was made of; damage is never taken for a picture."""

from __future__ import annotations

import io
import re
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support.picture_files import by_pillow, chunk, gradient, noise, png, segment, stored_as, with_orientation

from panollava.crop.crop import read_panorama
from panollava.crop.image_file import DIVISORS, decode, parse_header
from panollava.crop.strategies import E2pCrop

CAMERAS = E2pCrop().cameras()
ORIENTATIONS = range(1, 9)


def decoded(data: bytes, divisor: int = 1) -> np.ndarray | None:
    """None where it is refused."""
    header = parse_header(io.BytesIO(data))
    assert header is not None
    try:
        picture = decode(data, header, divisor)
    except ValueError:
        return None
    assert picture.dtype == np.uint8
    assert picture.shape[2:] == (3,)
    assert picture.flags.c_contiguous
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


def behind_header(data: bytes, inserted: bytes) -> bytes:
    """With bytes before the quantization tables."""
    tables = data.index(b"\xff\xdb")
    return data[:tables] + inserted + data[tables:]


def stray_bytes(data: bytes) -> bytes:
    return behind_header(data, b"a\xff\0bc")


def odd_scan_parameters(data: bytes) -> bytes:
    """As phones of a large maker write them."""
    return data.replace(b"\0\x3f\0", bytes(3), 1) if b"\xff\xc0" in data else stray_bytes(data)


def odd_jfif(data: bytes) -> bytes:
    return data.replace(b"JFIF\0\1\1", b"JFIF\0\3\x09", 1)


def odd_adobe(data: bytes) -> bytes:
    start = data.index(b"JFIF\0") - 4
    return data[:start] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x07" + data[start + 18 :]


def odd_profile(data: bytes) -> bytes:
    return behind_header(data, b"\xff\xe2\0\x12ICC_PROFILE\0\x07\x03ab")


def all_at_once(data: bytes) -> bytes:
    return stray_bytes(odd_profile(odd_scan_parameters(odd_jfif(data))))


def filled_up(data: bytes) -> bytes:
    """As cameras that write files of certain sizes do."""
    return odd_scan_parameters(data)[:-2] + bytes(500) + data[-2:]


def zeros_from(data: bytes, middle: int) -> bytes:
    return data[:middle] + bytes(len(data) - middle - 2) + data[-2:]


ODD = [stray_bytes, odd_scan_parameters, odd_jfif, odd_adobe, odd_profile, all_at_once, filled_up]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("divisor", [1, 4])
def test_an_odd_but_sound_jpeg_is_the_picture_it_was(odd, progressive, divisor):
    data = jpeg(progressive)
    assert (decoded(odd(data), divisor) == decoded(data, divisor)).all()


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("damage", [hole, overwritten, lacking, ended_early, zeros_from])
def test_an_oddity_hides_no_damage(odd, progressive, damage):
    data = odd(jpeg(progressive))
    assert decoded(damage(data, len(data) // 2)) is None


def test_a_black_end_is_told_from_filling():
    """Of a picture that ends in black the last bytes of the data, with tables of its own, are zeros too."""
    picture = cv2.GaussianBlur(noise(128, 256), (0, 0), 1)
    picture[64:] = 0
    data = by_pillow(picture, "JPEG", quality=90, optimize=True)
    for zeros in (1, 100, 5000):
        assert (decoded(data[:-2] + bytes(zeros) + data[-2:]) == decoded(data)).all()


def test_zeros_in_the_place_of_passes_are_no_filling():
    """A progressive picture without its later scans, which a decoder takes for a whole one, is a blurred one."""
    data = jpeg(progressive=True)
    starts = [found.start() for found in re.finditer(b"\xff\xda", data)]
    assert len(starts) > 5
    for start in starts[1:]:
        assert decoded(zeros_from(data, start)) is None


def test_left_over_data_is_no_filling():
    data = jpeg(progressive=False)
    assert decoded(data[:-2] + data[-300:-2] + data[-2:]) is None


def test_a_reason_is_given(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(ended_early(jpeg(progressive=False), 4000))
    with pytest.raises(ValueError, match=r"a\.jpg: the JPEG cannot be decoded: its data is damaged \(.*premature end"):
        read_panorama(path, CAMERAS, (64, 64))
    data = bytearray(jpeg(progressive=False))
    data[data.index(b"\xff\xc0") + 11] = 0x31
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"sampled in an unusual way\. Save it again"):
        read_panorama(path, CAMERAS, (64, 64))


def exif_of(value: int, field: int, order: str) -> bytes:
    """An EXIF block whose orientation is of a field type: 3 for two bytes, 4 for four."""
    entry = struct.pack(order + "HHI", 0x0112, field, 1) + struct.pack(
        order + ("HH" if field == 3 else "I"), value, *[0][: 4 - field]
    )
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("field", [3, 4], ids=["SHORT", "LONG"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["JPEG", "JPEG, two blocks", "JPEG, XMP", "PNG", "PNG, XMP", "PNG, text"])
def test_an_orientation_is_what_pillow_reads(field, order, kind):
    upright = cv2.GaussianBlur(noise(48, 96), (0, 0), 12)
    block = exif_of(3, field, order)
    if kind.startswith("JPEG"):
        data = by_pillow(upright, "JPEG", quality=98, subsampling=0)
        blocks = [b"Exif\0\0" + block] if "XMP" not in kind else [b"http://ns.adobe.com/xap/1.0/\0" + XMP]
        blocks += [b"Exif\0\0" + exif_of(6, 3, order)] if "two" in kind else []
        data = data[:2] + b"".join(map(segment, blocks)) + data[2:]
    else:
        data = png(upright)
        added = chunk(b"eXIf", block)
        if "XMP" in kind:
            added = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP))
        elif "text" in kind:
            profile = f"\nexif\n{len(block):8}\n{block.hex()}\n"
            added = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile.encode()))
        data = data[:-12] + added + data[-12:]
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert expected.shape == ((96, 48, 3) if "XMP" in kind else (48, 96, 3))
    assert np.abs(decoded(data).astype(int) - expected).max() <= 2
    assert parse_header(io.BytesIO(data)).orientation == (6 if "XMP" in kind else 3)


def test_the_picture_of_an_animated_png_is_the_one_shown_where_none_moves():
    first, others = Image.fromarray(gradient()), [Image.fromarray(noise(64, 128))]
    data = by_pillow(first, "PNG", save_all=True, append_images=others)
    assert (decoded(data) == gradient()).all()
    control = chunk(b"acTL", struct.pack(">II", 2, 0))
    assert (decoded(png(gradient())[:33] + control + png(gradient())[33:]) == gradient()).all()


@pytest.mark.parametrize("most", [255, 1023, 4095])
def test_12_bits_in_16_are_refused_and_not_black(most):
    picture = (noise(16, 32).astype(np.uint16) * most // 255).astype(np.uint16)
    data = png(picture)
    with pytest.raises(ValueError, match=f"brightest value is {picture.max()} of 65535.*Multiply them"):
        decode(data, parse_header(io.BytesIO(data)))
    assert (decoded(png(picture * 0)) == 0).all()


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
        picture = decoded(bytes(data))
        assert picture is None or picture.shape == (header.height, header.width, 3)


def test_an_error_of_the_decoder_is_damage(monkeypatch):
    def failing(data, flags):
        raise cv2.error("bad header")

    monkeypatch.setattr(cv2, "imdecode", failing)
    assert decoded(png(gradient())) is None
