"""Annotated boxes of pictures, and the conventions in which files write them.

Inside the package a box is ``(yaw, pitch, horizontal, vertical, roll)`` in degrees, as in ``panollava.crop.boxes``.
Files differ in the unit of angles, in where yaw 0 is, in how they count latitudes and in the sign of the roll, and some
have rectangles of pixels; ``Conventions`` states which, and nothing is guessed from the values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args, get_type_hints

import numpy as np

from panollava.crop.boxes import NOTHING, IgnoredBoxes, PictureBoxes, box_problem
from panollava.data.csv import LISTED_PROBLEMS, Problem

Angles = Literal["deg", "rad", "mixed"]
Origin = Literal["centre", "corner"]
Pitch = Literal["latitude", "colatitude"]
Roll = Literal["ccw", "cw"]
Boxes = Literal["angles", "corners", "size", "shares"]


@dataclass(frozen=True)
class Conventions:
    """How the numbers of a box are to be read; the defaults are those of this package.

    Attributes:
        angles: unit of all angles; ``mixed`` is radians for the centre and degrees for extents and roll.
        origin: where yaw is 0: in the centre of the picture or at its left edge.
        pitch: ``latitude`` is 0 at the horizon and positive above it; ``colatitude`` is 0 straight up and 90 degrees at
            the horizon.
        roll: the turn of the box, as seen in the picture, for a positive value: counter-clockwise is right to up.
        boxes: ``angles`` are centre, extents and perhaps a roll; the others are rectangles of the equirectangular
            picture: ``corners`` (x1, y1, x2, y2) and ``size`` (x, y, width, height) in pixels, ``shares`` (centre x,
            centre y, width, height) in shares of the picture. The other keys do not apply to them.

    Raises ValueError for a value that a key does not have.
    """

    angles: Angles = "deg"
    origin: Origin = "centre"
    pitch: Pitch = "latitude"
    roll: Roll = "ccw"
    boxes: Boxes = "angles"

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for one in fields(self):
            value, allowed = getattr(self, one.name), get_args(hints[one.name])
            if value not in allowed:
                raise ValueError(f"{one.name}={value} is not a convention of boxes: use {', '.join(allowed)}.")


_ROUNDED_DEG = 1e-4  # excess over 90 or 180 degrees that is one of rounding: 3.141593 radians are 180.00002 degrees

PRESETS = {
    "pandora": Conventions(angles="mixed"),
    "indoor360": Conventions(origin="corner", pitch="colatitude"),
    "rbfov": Conventions(angles="rad"),
    "era": Conventions(angles="rad"),
}
"""Conventions of public data sets: PANDORA, 360-Indoor, the unified RBFoV files, and ERA (ICPR 2018)."""


@dataclass(frozen=True, eq=False)
class BoxAnnotations:
    """The boxes of many pictures, and what is wrong with others."""

    names: tuple[str, ...]  # of the classes
    pictures: dict[str, PictureBoxes]  # by file name, also those without boxes
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # (H, W) in pixels, where a file states it
    problems: tuple[Problem, ...] = ()  # of boxes that were left out, and of whole pictures, which have the number 0
    source: str = ""  # file or folder that was read
    count: int = 0  # good and bad boxes
    bad: tuple[str, ...] = ()  # the picture of each problem; empty for a box of no picture
    repeated: tuple[str, ...] = ()  # places of boxes that are written twice, with the same class, numbers and score
    centres: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    """(B, 2) the first two numbers of boxes as they are written, also of bad ones: they show a wrong convention."""

    def checked(self) -> BoxAnnotations:
        """The same, if nothing is bad; else raises a ValueError that names the first problems and their number."""
        if not self.problems:
            return self
        boxes = len({problem.number for problem in self.problems if problem.number})
        pictures = len({name for name, one in zip(self.bad, self.problems, strict=True) if not one.number})
        counts = [f"{boxes} of {self.count} boxes"] if boxes else []
        counts += [f"{pictures} of {len(self.pictures)} pictures"] if pictures else []
        lines = [f"{self.source}: {' and '.join(counts)} are bad. Mend or delete them:"]
        lines += [f"  {problem}" for problem in self.problems[:LISTED_PROBLEMS]]
        if len(self.problems) > LISTED_PROBLEMS:
            lines.append(f"  and {len(self.problems) - LISTED_PROBLEMS} more")
        raise ValueError("\n".join(lines))


def read_box(
    values: Sequence[float], conventions: Conventions, size: tuple[int, int] | None = None
) -> tuple[np.ndarray, str]:
    """A box ``(5,)`` of the numbers in a file, and what is wrong with it, empty if nothing is.

    Args:
        values: 4 numbers, or 5 with a roll, which rectangles do not have.
        conventions: how they are to be read.
        size: (H, W) of the picture in pixels, for rectangles in pixels.
    """
    box = np.full(5, np.nan)
    is_angles = conventions.boxes == "angles"
    if len(values) not in ((4, 5) if is_angles else (4,)):
        return box, f"{len(values)} numbers, and a box has {'4, or 5 with a roll' if is_angles else '4'}"
    if bad := [value for value in values if not math.isfinite(value)]:
        return box, f"{bad[0]} is not a finite number"
    if is_angles:
        box = _from_angles(np.array([*values, 0.0][:5]), conventions)
    else:
        if size is None and conventions.boxes != "shares":
            return box, "the size of the picture is not stated, and the box is in pixels"
        height, width = size or (1, 1)
        shares = _shares(values, conventions.boxes, height, width)
        if problem := _rectangle_problem(shares):
            return box, f"{', '.join(f'{value:g}' for value in values)} {problem}"
        box = _from_rectangle(shares)
    return box, box_problem(box)


def written_box(box: np.ndarray, conventions: Conventions) -> list[float]:
    """The numbers of a box ``(5,)`` for a file; ``read_box`` inverts it.

    Raises:
        ValueError: the conventions are of rectangles, which cannot hold each box, such as one over a pole.
    """
    if conventions.boxes != "angles":
        raise ValueError(
            f"boxes={conventions.boxes} is read but not written, as a rectangle of the picture cannot hold a roll, or "
            "a box over a pole. Use boxes=angles."
        )
    yaw, pitch, horizontal, vertical, roll = (float(value) for value in box)
    yaw = (yaw + 180) % 360 - (0 if conventions.origin == "corner" else 180)
    pitch = 90 - pitch if conventions.pitch == "colatitude" else pitch
    roll = -roll if conventions.roll == "cw" else roll
    values = [yaw, pitch, horizontal, vertical, roll]
    in_radians = {"deg": 0, "mixed": 2, "rad": 5}[conventions.angles]
    return [math.radians(value) for value in values[:in_radians]] + values[in_radians:]


def same_names(annotations: BoxAnnotations, names: Sequence[str]) -> BoxAnnotations:
    """The annotations with classes in the order of `names`, which may have more.

    Raises ValueError for a class that `names` lacks.
    """
    if missing := [name for name in annotations.names if name not in names]:
        raise ValueError(f"{annotations.source}: the class {missing[0]} is none of {', '.join(names)}.")
    return with_classes(annotations, names)


def with_classes(annotations: BoxAnnotations, names: Sequence[str]) -> BoxAnnotations:
    """The annotations with the classes `names` in this order; boxes of others are left out, not their pictures."""
    place = np.array([names.index(name) if name in names else NOTHING for name in annotations.names], dtype=int)
    pictures = {key: renumbered(one, place) for key, one in annotations.pictures.items()}
    return replace(annotations, names=tuple(names), pictures=pictures)


def renumbered(found: PictureBoxes, number: np.ndarray) -> PictureBoxes:
    """The boxes of a picture with the class ``number[k]`` for each class k, without those of ``NOTHING``."""
    classes = number[found.classes]
    kept, ignored = classes != NOTHING, found.ignored
    if ignored is not None:
        others = number[ignored.classes]
        ignored = replace(ignored, boxes=ignored.boxes[others != NOTHING], classes=others[others != NOTHING])
    return PictureBoxes(found.boxes[kept], classes[kept], None if found.scores is None else found.scores[kept], ignored)


def collected(
    found: Mapping[str, Sequence[tuple[np.ndarray, int, float | None]]],
    ignored: Mapping[str, Sequence[tuple[np.ndarray, int]]],
    *,
    are_regions: bool,
) -> dict[str, PictureBoxes]:
    """Boxes of each picture out of (box, class, score), and those that are ignored out of (box, class).

    Raises:
        ValueError: some boxes of a picture have a score, and others have none.
    """
    pictures = {}
    for name, rows in found.items():
        boxes = np.array([box for box, _, _ in rows]).reshape(-1, 5)
        classes = np.array([number for _, number, _ in rows], dtype=int)
        scores = [score for _, _, score in rows if score is not None]
        if scores and len(scores) < len(rows):
            raise ValueError(f"{name}: {len(scores)} of its {len(rows)} boxes have a score. Give all one, or none.")
        beside = None
        if others := ignored.get(name):
            beside = IgnoredBoxes(np.array([box for box, _ in others]), np.array([k for _, k in others]), are_regions)
        pictures[name] = PictureBoxes(boxes, classes, np.array(scores) if scores else None, beside)
    return pictures


def _from_angles(values: np.ndarray, conventions: Conventions) -> np.ndarray:
    in_radians = {"deg": 0, "mixed": 2, "rad": 5}[conventions.angles]
    box = np.concatenate([np.degrees(values[:in_radians]), values[in_radians:]])
    box[0] = (box[0] + (0 if conventions.origin == "corner" else 180)) % 360 - 180
    if conventions.pitch == "colatitude":
        box[1] = 90 - box[1]
    if conventions.roll == "cw":
        box[4] = -box[4]
    limits = np.array([90.0, 180.0, 180.0])
    is_over = (np.abs(box[1:4]) > limits) & (np.abs(box[1:4]) < limits + _ROUNDED_DEG)
    box[1:4] = np.where(is_over, np.sign(box[1:4]) * limits, box[1:4])
    return box


def _shares(values: Sequence[float], kind: Boxes, height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, width and height of a rectangle in shares of the picture; the right edge may be beyond the seam."""
    one, other, third, fourth = (float(value) for value in values)
    if kind == "shares":
        return one - third / 2, other - fourth / 2, third, fourth
    across = third - one if kind == "corners" else third
    if kind == "corners" and across < 0:  # over the seam
        across += width
    return one / width, other / height, across / width, (fourth - other if kind == "corners" else fourth) / height


def _rectangle_problem(shares: tuple[float, float, float, float]) -> str:
    _, top, across, down = shares
    if not 0 < across <= 1 or down <= 0:
        return "is a rectangle without an area, or wider than the picture"
    return "" if top >= -1e-9 and top + down <= 1 + 1e-9 else "reaches out of the picture at its top or bottom"


def _from_rectangle(shares: tuple[float, float, float, float]) -> np.ndarray:
    """The box with the rectangle's centre and height, whose sides pass through the ends of its middle row.

    In the frame of the centre, at the pitch p, a point of that row at the yaw l has the coordinates cos p sin l to the
    right and sin² p + cos² p cos l forward.
    """
    left, top, across, down = shares
    pitch, half = (0.5 - top - down / 2) * math.pi, across * math.pi
    sin, cos = math.sin(pitch), math.cos(pitch)
    horizontal = 2 * math.atan2(cos * math.sin(half), sin**2 + cos**2 * math.cos(half))
    yaw = ((left + across / 2) * 360) % 360 - 180
    return np.array([yaw, math.degrees(pitch), math.degrees(horizontal), down * 180, 0.0])


_BOX_TEXT = re.compile(r"yaw (-?\d{1,3}), pitch (-?\d{1,2}), (\d{1,3}) x (\d{1,3})\.?", re.ASCII)


def box_text(box: np.ndarray) -> str:
    """A box ``(5,)`` in words, in whole degrees: ``yaw 92, pitch -4, 20 x 21``; a roll is left out.

    Halves are rounded to even. The yaw is in -180 to 179, and extents, horizontal x vertical, are 1 at least.
    """
    yaw, pitch, horizontal, vertical = (round(float(value)) for value in box[:4])
    return f"yaw {(yaw + 180) % 360 - 180}, pitch {pitch}, {max(1, horizontal)} x {max(1, vertical)}"


def parse_box(text: str) -> np.ndarray | None:
    """The box ``(5,)`` that ``box_text`` wrote, perhaps with a period after it; None for any other text."""
    found = _BOX_TEXT.fullmatch(text)
    if found is None:
        return None
    box = np.array([*map(float, found.groups()), 0.0])
    return box if not box_problem(box) and box_text(box) == text.removesuffix(".") else None
