"""Photo sphere tags against panoramas whose pixels are their own direction, cut and scaled as phones and people do."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from support.picture_files import XMP_HEAD, by_pillow, cut_tags, gpano, gradient, png, segment, with_xmp

from panollava.crop.crop import Crop
from panollava.crop.gpano import part_of, tilt_deg
from panollava.crop.image_file import check_panorama
from panollava.crop.partial import Part
from panollava.crop.sphere import direction_to_pixel
from panollava.crop.strategies import AnyresE2pCrop, ResizeCrop
from panollava.model.processor import read_picture
from panollava.run.image_commands import read_twice

WHOLE = (1024, 2048)
CUTS = {
    "narrow, high and to the left": (60, 130, 400, 700),
    "all around, without the poles": (300, 0, 400, 2048),
    "2:1, which could be a sphere": (350, 900, 512, 1024),
    "the lower half": (512, 1024, 512, 1024),
    "the upper pole": (0, 0, 300, 2048),
}


def with_more_xmp(file: bytes, xmp: bytes) -> bytes:
    """In segments of their own that the first packet names, as for packets of more than 64 kB; not in their order."""
    name, parts = b"0123456789ABCDEF0123456789ABCDEF", [(0, xmp[:150]), (150, xmp[150:])]
    first = XMP_HEAD.encode() + b'<rdf:Description xmpNote:HasExtendedXMP="' + name + b'"/></rdf:RDF></x:xmpmeta>'
    first = first.replace(b"<x:xmpmeta", b'<x:xmpmeta xmlns:xmpNote="http://ns.adobe.com/xmp/note/"')
    more = b"".join(
        segment(b"http://ns.adobe.com/xmp/extension/\0" + name + struct.pack(">II", len(xmp), at) + part)
        for at, part in reversed(parts)
    )
    return with_xmp(file[:2] + more + file[2:], first)


def inside_by(cut: tuple[int, int, int, int], directions: np.ndarray, pixels: float) -> np.ndarray:
    """Which directions lie in a part, and that far from its edges, which may be those of the sphere."""
    column, row = (place.numpy() + 0.5 for place in direction_to_pixel(torch.from_numpy(directions), WHOLE))
    top, left, height, width = cut
    is_inside = (row >= top + pixels * (top > 0)) & (row <= top + height - pixels * (top + height < WHOLE[0]))
    if width < WHOLE[1]:
        off_centre = np.abs((column - left - width / 2 + WHOLE[1] / 2) % WHOLE[1] - WHOLE[1] / 2)
        is_inside &= off_centre <= width / 2 - pixels / np.maximum(np.sin(row / WHOLE[0] * np.pi), 1e-3)
    return is_inside


def errors_deg(views: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Angles between what pixels show and where they look."""
    seen = views.astype(float) - 127.5
    cosines = (seen * directions).sum(-1) / np.linalg.norm(seen, axis=-1)
    return np.degrees(np.arccos(cosines.clip(-1, 1)))


@pytest.mark.parametrize("kind", ["JPEG", "JPEG, elements", "JPEG, more XMP", "PNG"])
@pytest.mark.parametrize("scale", [1.0, 0.37])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_part_lies_where_its_tags_say(
    tmp_path: Path, panorama: np.ndarray, oracle, cut: tuple[int, int, int, int], scale: float, kind: str
) -> None:
    """However the file was scaled after they were written; as a file, its content and as PIL opens it."""
    top, left, height, width = cut
    picture = np.round(panorama * 127 + 127.5).astype(np.uint8)[top : top + height, left : left + width]
    picture = cv2.resize(picture, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    xmp = gpano(cut_tags(*cut), as_elements="elements" in kind)
    data = png(picture) if kind == "PNG" else by_pillow(picture, "JPEG", quality=100, subsampling=0)
    data = with_more_xmp(data, xmp) if "more" in kind else with_xmp(data, xmp)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    crop = Crop(AnyresE2pCrop(), view_size=(64, 64))
    expected = oracle(crop.cameras, (64, 64))[1:]
    inner, outer = inside_by(cut, expected, 16), ~inside_by(cut, expected, -16)
    given: list[Any] = [path, data] + ([Image.open(path)] if "more" not in kind else [])  # PIL does not read that
    for each in given:
        views = crop.views(read_picture(each, crop)).permute(0, 2, 3, 1).numpy()[1:]
        assert inner.mean() > 0.03
        assert np.quantile(errors_deg(views, expected)[inner], 0.99) < 1.0  # JPEG's rounding
        assert (views[outer] == 0).all()


def test_a_whole_panorama_is_read_as_without_tags(tmp_path: Path) -> None:
    data = by_pillow(gradient(), "JPEG")
    crop = Crop(ResizeCrop(), view_size=(32, 32))
    for tags in (cut_tags(0, 0, *WHOLE), {"ProjectionType": "equirectangular"}, {"FullPanoWidthPixels": 9}):
        path = tmp_path / "a.jpg"
        path.write_bytes(with_xmp(data, gpano(tags)))
        assert crop.check(path).part is None
        assert (crop.read(path) == read_picture(data, crop)).all()


def test_pictures_that_show_borders_show_the_whole_sphere(tmp_path: Path, panorama: np.ndarray) -> None:
    top, left, height, width = cut = CUTS["narrow, high and to the left"]
    whole = np.round(panorama * 127 + 127.5).astype(np.uint8)
    path = tmp_path / "a.png"
    path.write_bytes(with_xmp(png(whole[top : top + height, left : left + width]), gpano(cut_tags(*cut))))
    shown, _ = read_twice(path, Crop(AnyresE2pCrop(), view_size=(64, 64)))
    expected = np.zeros_like(whole)
    expected[top : top + height, left : left + width] = whole[top : top + height, left : left + width]
    assert (shown == expected).all()


def test_the_key_goes_before_the_tags(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(
        with_xmp(by_pillow(gradient(), "JPEG"), gpano({**cut_tags(1, 2, 3, 4), "ProjectionType": "fisheye"}))
    )
    crop = Crop(ResizeCrop(), view_size=(32, 32), panorama_fov_deg=(180, 90))
    assert crop.check(path).part == Part(180, 90)
    assert (crop.read(path)[:8] == 0).all()


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"ProjectionType": "cylindrical"}, "ProjectionType=cylindrical, and only equirectangular"),
        ({"ProjectionType": "fisheye"}, "ProjectionType=fisheye"),
        ({"ProjectionType": "cubemap"}, "ProjectionType=cubemap"),
        (
            cut_tags(0, 0, 512, 2048),
            "128 x 64 pixels do not cover the .360, 90. degrees of its GPano tags.* cut or stret",
        ),
        (cut_tags(0, 0, 1024, 1024, (1024, 1024)), "the sphere has 1024 x 1024 pixels, which is not twice"),
        (cut_tags(600, 0, 512, 1024), "512 pixels lies at CroppedAreaTopPixels=600 in a sphere of 1024"),
        (cut_tags(0, 1100, 512, 1024), "1024 pixels lies at CroppedAreaLeftPixels=1100 in a sphere of 2048"),
        (cut_tags(-1, 0, 512, 1024), "CroppedAreaTopPixels=-1"),
        (cut_tags(0, 0, 2048, 4096), "4096 pixels lies at .* in a sphere of 2048"),
        (cut_tags(0, 0, 0, 1024), "a picture of 0 pixels"),
        (cut_tags(0, 0, 512, 1024, (0, 0)), "in a sphere of 0"),
        ({**cut_tags(0, 0, 512, 1024), "FullPanoWidthPixels": "wide"}, "FullPanoWidthPixels='wide' is no number"),
        ({**cut_tags(0, 0, 512, 1024), "FullPanoWidthPixels": "nan"}, "FullPanoWidthPixels='nan' is no number"),
        ({k: v for k, v in cut_tags(9, 9, 512, 1024).items() if "Left" not in k}, "lack CroppedAreaLeftPixels"),
        ({k: v for k, v in cut_tags(9, 9, 512, 1024).items() if "FullPanoW" not in k}, "lack FullPanoWidthPixels"),
    ],
)
def test_what_cannot_be_placed_is_refused_with_ways_out(tmp_path: Path, tags: dict[str, object], said: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(with_xmp(png(gradient()), gpano(tags)))
    crop = Crop(ResizeCrop(), view_size=(8, 8))
    for action in (check_panorama, crop.read):
        with pytest.raises(ValueError, match=rf"a\.png: .*({said}).*exiftool.*crop\.panorama_fov_deg"):
            action(path)
    with Image.open(path) as image, pytest.raises(ValueError, match=f"The picture: .*({said})"):
        read_picture(image, crop)


@pytest.mark.parametrize(
    "xmp",
    [
        gpano({"ProjectionType": "equirectangular"})[:-150],
        b"<!DOCTYPE a [<!ENTITY b 'bb'>]>" + gpano({"ProjectionType": "equirectangular"}),
        gpano({"CroppedAreaTopPixels": 1}).replace(
            b"</rdf:RDF>", gpano({"CroppedAreaTopPixels": 2})[60:-170] + b"</rdf:RDF>"
        ),
    ],
    ids=["broken", "entities", "contradiction"],
)
def test_tags_that_cannot_be_read_are_refused(xmp: bytes) -> None:
    with pytest.raises(ValueError, match="a: its XMP names GPano tags and cannot be read"):
        part_of("a", [xmp])
    assert tilt_deg([xmp]) == 0
    assert part_of("a", [b"<broken>", b""]) is None


@pytest.mark.parametrize(
    ("pose", "degrees"),
    [
        ({}, 0),
        ({"Roll": -25.0}, 25),
        ({"Pitch": "3.0", "Roll": "-4.0"}, 5.0),
        ({"Roll": 180}, 180),
        ({"Roll": "inf"}, 0),
    ],
)
def test_a_tilt_is_told(tmp_path: Path, pose: dict[str, object], degrees: float) -> None:
    tags = {f"Pose{axis}Degrees": value for axis, value in pose.items()} | {"PoseHeadingDegrees": 225}
    path = tmp_path / "a.jpg"
    path.write_bytes(with_xmp(by_pillow(gradient(), "JPEG"), gpano(tags)))
    crop = Crop(ResizeCrop(), view_size=(8, 8))
    said = f"a.jpg: tilted by {degrees:.0f}.0 degrees" if degrees else ""
    assert tilt_deg([gpano(tags)]) == pytest.approx(degrees, abs=0.02)
    assert said in crop.check(path).tilt
    assert bool(crop.check(path).tilt) == bool(degrees)
    if degrees:
        with pytest.warns(UserWarning, match="tilted by"):
            read_picture(io.BytesIO(path.read_bytes()), crop)
