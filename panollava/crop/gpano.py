"""What a picture file says of the sphere: the photo sphere tags (GPano) in its XMP, which cameras and stitchers write.

Source: Photo Sphere XMP Metadata, https://developers.google.com/streetview/spherical-metadata.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree import ElementTree

from panollava.crop.partial import ASPECT_TOLERANCE, OTHERWISE, Part

_NAMESPACE = "http://ns.google.com/photos/1.0/panorama/"
_PIXELS = (
    "CroppedAreaImageWidthPixels",
    "CroppedAreaImageHeightPixels",
    "FullPanoWidthPixels",
    "FullPanoHeightPixels",
    "CroppedAreaLeftPixels",
    "CroppedAreaTopPixels",
)
_TOLERANCE = 0.005
"""Shares of the sphere by which the numbers of a writer that rounds may contradict one another."""
LEVEL_DEG = 1.0
"""A panorama that is tilted by more is not taken for a level one without a word."""


def part_of(name: str, xmp: Sequence[bytes]) -> Part | None:
    """The part of the sphere that a picture shows; None for the whole, and where no tags say otherwise.

    The numbers count pixels of the picture that the tags were written for, and a program that scales a picture keeps
    them: so nothing but their ratios is used.

    Args:
        name: of the picture, for messages.
        xmp: its XMP packets.

    Raises:
        ValueError: it has another projection, or its tags are unreadable, incomplete or contradict one another.
    """
    try:
        tags = _tags(xmp)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{name}: its XMP names GPano tags and cannot be read ({error}). {OTHERWISE}") from error
    projection = tags.get("ProjectionType", "equirectangular")
    if projection.lower() != "equirectangular":
        raise ValueError(
            f"{name}: its GPano tags say ProjectionType={projection}, and only equirectangular pictures are read. "
            f"Convert it to one, or leave it out. If that is not its projection: {OTHERWISE}"
        )
    numbers = {key: _number(name, key, tags[key]) for key in _PIXELS if key in tags}
    missing = [key for key in _PIXELS[:4] if key not in numbers]
    if missing and not any(key.startswith("Cropped") for key in numbers):
        return None
    width, height, full_width, full_height = (numbers.get(key, 0.0) for key in _PIXELS[:4])
    missing += [
        key
        for key, is_cut in zip(_PIXELS[4:], (width < full_width, height < full_height), strict=True)
        if is_cut and key not in numbers
    ]
    if missing:
        raise ValueError(f"{name}: its GPano tags lack {', '.join(missing)}. {OTHERWISE}")
    shares = []
    for part, whole, at in ((width, full_width, _PIXELS[4]), (height, full_height, _PIXELS[5])):
        start = numbers.get(at, 0.0)
        if part <= 0 or whole <= 0 or start < 0 or start + part > whole * (1 + _TOLERANCE):
            raise ValueError(
                f"{name}: by its GPano tags a picture of {part:g} pixels lies at {at}={start:g} in a sphere of "
                f"{whole:g}. {OTHERWISE}"
            )
        share = min(1.0, part / whole)
        shares.append((share, min(1.0, start / (whole - part)) if share < 1 else 0.5))
    if abs(full_width / full_height / 2 - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"{name}: by its GPano tags the sphere has {full_width:g} x {full_height:g} pixels, which is not twice as "
            f"wide as high. {OTHERWISE}"
        )
    (across, before), (down, above) = shares
    return None if across == down == 1 else Part(360 * across, 180 * down, before, above, is_said=True)


def tilt_deg(xmp: Sequence[bytes]) -> float:
    """Degrees between the vertical axis of a picture and the true one, by its tags; 0 where they do not say."""
    try:
        tags = _tags(xmp)
        pitch, roll = (math.radians(float(tags.get(f"Pose{axis}Degrees", 0))) for axis in ("Pitch", "Roll"))
        return math.degrees(math.acos(math.cos(pitch) * math.cos(roll)))
    except (ElementTree.ParseError, ValueError):  # ValueError too of infinity
        return 0.0


def names_tags(xmp: Sequence[bytes]) -> bool:
    """Whether those XMP packets name GPano tags."""
    return any(_NAMESPACE.encode() in packet for packet in xmp)


def _tags(xmp: Sequence[bytes]) -> dict[str, str]:
    """The GPano properties by name, which XMP writes as attributes or as elements."""
    tags: dict[str, str] = {}
    for packet in xmp:
        if not names_tags([packet]):
            continue
        if b"<!" in packet.replace(b"<!--", b""):
            raise ValueError("it has declarations, as no XMP does")  # entities could grow without end
        for element in ElementTree.fromstring(packet.strip(b"\0 \t\r\n")).iter():
            for key, value in ((element.tag, element.text), *element.attrib.items()):
                space, _, name = key.removeprefix("{").partition("}")
                said = (value or "").strip()
                if space == _NAMESPACE and tags.setdefault(name, said) != said:
                    raise ValueError(f"it says {name}={tags[name]} and {said}")
    return tags


def _number(name: str, key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name}: its GPano tag {key}={value!r} is no number of pixels. {OTHERWISE}")
    return number
