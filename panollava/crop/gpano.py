"""The photo sphere tags (GPano) that cameras and stitchers write into the XMP of a picture file.

Source: Photo Sphere XMP Metadata, https://developers.google.com/streetview/spherical-metadata.
"""

import math
from collections.abc import Sequence
from xml.etree import ElementTree

from panollava.crop.partial import ASPECT_TOLERANCE, TAG_ADVICE, Part

_NAMESPACE = "http://ns.google.com/photos/1.0/panorama/"
_PIXELS = (
    "CroppedAreaImageWidthPixels",
    "CroppedAreaImageHeightPixels",
    "FullPanoWidthPixels",
    "FullPanoHeightPixels",
    "CroppedAreaLeftPixels",
    "CroppedAreaTopPixels",
)
_TOLERANCE = 0.005  # share of the sphere by which the numbers of a program that rounds may contradict one another
_LEVEL_DEG = 1.0  # a panorama with a larger tilt is not treated as level without a warning


def part_of(name: str, xmp: Sequence[bytes]) -> Part | None:
    """The part of the sphere that a picture with these XMP packets shows; None for the whole, and without tags.

    The numbers count pixels of the picture that the tags were written for. A program that scales a picture keeps
    them, so only their ratios are used. Another projection, and tags that are unreadable, incomplete or contradict
    one another, raise a ValueError.
    """
    try:
        tags = _tags(xmp)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{name}: its XMP names GPano tags and cannot be read ({error}). {TAG_ADVICE}") from error
    projection = tags.get("ProjectionType", "equirectangular")
    if projection.lower() != "equirectangular":
        raise ValueError(
            f"{name}: its GPano tags say ProjectionType={projection}, and only equirectangular pictures are read. "
            f"Convert it to one, or leave it out. If that is not its projection: {TAG_ADVICE}"
        )
    numbers = {key: _number(name, key, tags[key]) for key in _PIXELS if key in tags}
    missing = [key for key in _PIXELS[:4] if key not in numbers]
    if missing and not any(key.startswith("Cropped") for key in numbers):
        return None
    width, height, full_width, full_height = (numbers.get(key, 0.0) for key in _PIXELS[:4])
    is_cut = width < full_width, height < full_height
    missing += [key for key, cut in zip(_PIXELS[4:], is_cut, strict=True) if cut and key not in numbers]
    if missing:
        raise ValueError(f"{name}: its GPano tags lack {', '.join(missing)}. {TAG_ADVICE}")
    shares = []
    for part, whole, at in ((width, full_width, _PIXELS[4]), (height, full_height, _PIXELS[5])):
        start = numbers.get(at, 0.0)
        if part <= 0 or whole <= 0 or start < 0 or start + part > whole * (1 + _TOLERANCE):
            raise ValueError(
                f"{name}: by its GPano tags a picture of {part:g} pixels lies at {at}={start:g} in a sphere of "
                f"{whole:g}. {TAG_ADVICE}"
            )
        share = min(1.0, part / whole)
        shares.append((share, min(1.0, start / (whole - part)) if share < 1 else 0.5))
    if abs(full_width / full_height / 2 - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"{name}: by its GPano tags the sphere has {full_width:g} x {full_height:g} pixels, which is not twice as "
            f"wide as high. {TAG_ADVICE}"
        )
    (across, before), (down, above) = shares
    return None if across == down == 1 else Part(360 * across, 180 * down, before, above, from_tags=True)


def tilt_warning(name: str, xmp: Sequence[bytes]) -> str:
    """A sentence for the user if a picture with these XMP packets is tilted, else an empty string."""
    tilt = tilt_deg(xmp)
    if tilt <= _LEVEL_DEG:
        return ""
    return (
        f"{name}: tilted by {tilt:.1f} degrees (PosePitchDegrees, PoseRollDegrees); its views are cut as if it stood "
        "upright. Level it with the program of its camera, or a stitcher."
    )


def tilt_deg(xmp: Sequence[bytes]) -> float:
    """Degrees between the vertical axis of a picture and the true one, by its pose tags; 0 without them."""
    try:
        tags = _tags(xmp)
        pitch, roll = (math.radians(float(tags.get(f"Pose{axis}Degrees", 0))) for axis in ("Pitch", "Roll"))
        return math.degrees(math.acos(math.cos(pitch) * math.cos(roll)))
    except (ElementTree.ParseError, ValueError):  # ValueError: infinity, too
        return 0.0


def has_gpano_tags(xmp: Sequence[bytes]) -> bool:
    """Whether XMP packets contain GPano tags."""
    return any(_NAMESPACE.encode() in packet for packet in xmp)


def _tags(xmp: Sequence[bytes]) -> dict[str, str]:
    """The GPano properties by name, which XMP writes as attributes or as elements."""
    tags: dict[str, str] = {}
    for packet in xmp:
        if not has_gpano_tags([packet]):
            continue
        if b"<!" in packet.replace(b"<!--", b""):
            raise ValueError("it has declarations, as no XMP does")  # entities could grow without end
        for element in ElementTree.fromstring(packet.strip(b"\0 \t\r\n")).iter():
            for key, value in ((element.tag, element.text), *element.attrib.items()):
                space, _, name = key.removeprefix("{").partition("}")
                text = (value or "").strip()
                if space == _NAMESPACE and tags.setdefault(name, text) != text:
                    raise ValueError(f"it says {name}={tags[name]} and {text}")
    return tags


def _number(name: str, key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name}: its GPano tag {key}={value!r} is no number of pixels. {TAG_ADVICE}")
    return number
