"""What of annotated boxes suggests that they were read with a wrong convention."""

import math
from dataclasses import dataclass

import numpy as np

from panollava.data.boxes import BoxAnnotations, Conventions

_FEWEST = 5
"""Boxes from which numbers are looked at together."""
_IN_RADIANS = 1.02
"""How much larger than in radians an angle may be, which some files round or count on beyond a full turn."""

_SHOWN = 5
"""Places that a message lists."""
_HIGH_DEG = 45.0
"""Median of pitches above which they may be counted from straight up: most things are near the horizon."""


@dataclass(frozen=True)
class Doubt:
    """A sign of a wrong convention; values that the other reading has may still be right."""

    what: str  # in words, for a message that ends in the way out
    field: str  # of ``Conventions``; empty if it may be any
    way_out: str  # value to state instead, or what to look at


def repeated_boxes(annotations: BoxAnnotations) -> str:
    """Boxes that are written twice, in words; empty for none. They may be right: two things of a crowd can coincide."""
    places = annotations.repeated
    if not places:
        return ""
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return (
        f"{len(places)} of {annotations.count} boxes have the class and the numbers of an earlier one of their picture "
        f"({', '.join(places[:_SHOWN])}{more}). Delete them, unless there are several things at one place"
    )


def convention_doubts(annotations: BoxAnnotations, conventions: Conventions) -> list[Doubt]:
    """Signs of wrong conventions in the numbers of a file, bad boxes included; none of rectangles or of few boxes."""
    centres = annotations.centres
    if conventions.boxes != "angles" or len(centres) < _FEWEST:
        return []
    highest = np.abs(centres).max(axis=0)
    if conventions.angles == "deg" and highest[0] <= 2 * math.pi and highest[1] <= math.pi:
        what = (
            "all yaws and pitches are numbers below 2 pi, and were read as degrees. If they are radians, all boxes lie "
            "at one place, and are wrong"
        )
        return [Doubt(what, "angles", "rad, or mixed where extents are degrees")]
    if conventions.angles != "deg" and (highest[0] > _IN_RADIANS * 2 * math.pi or highest[1] > _IN_RADIANS * math.pi):
        what = f"yaws and pitches have numbers up to {highest.max():g}, and were read as radians. If they are degrees"
        return [Doubt(what, "angles", "deg, or leave it out")]
    yaws, pitches = (centres if conventions.angles == "deg" else np.degrees(centres)).T
    doubts = []
    if conventions.origin == "centre" and yaws.min() >= 0 and yaws.max() > 180:
        what = "all yaws are from 0 to 360 degrees, and were read with 0 in the centre. If 0 is the picture's left edge"
        doubts.append(Doubt(what, "origin", "corner"))
    if conventions.origin == "corner" and yaws.min() < 0:
        what = "some yaws are negative, and were read with 0 at the left edge. If 0 is the picture's centre"
        doubts.append(Doubt(what, "origin", "centre"))
    if conventions.pitch == "latitude" and pitches.min() >= 0 and np.median(pitches) > _HIGH_DEG:
        what = "no pitch is below 0, and most are high above the horizon. If 0 is straight up"
        doubts.append(Doubt(what, "pitch", "colatitude"))
    if conventions.pitch == "colatitude" and pitches.min() < 0:
        what = "some pitches are negative, and were read with 0 straight up. If 0 is the horizon"
        doubts.append(Doubt(what, "pitch", "latitude"))
    boxes = np.concatenate([np.zeros((0, 5)), *(one.boxes for one in annotations.pictures.values())])
    beyond = int((np.abs(boxes[:, 1]) + boxes[:, 3] / 2 > 90).sum())
    if not doubts and len(boxes) >= _FEWEST and 2 * beyond > len(boxes):
        what = f"{beyond} of {len(boxes)} boxes reach beyond a pole. If this is not so in the pictures"
        doubts.append(Doubt(what, "pitch", "latitude" if conventions.pitch == "colatitude" else "colatitude"))
    rolls = boxes[:, 4]
    if conventions.angles != "rad" and len(rolls) >= _FEWEST and rolls.min() >= 0 and 0 < rolls.max() <= 1:
        what = "all rolls are from 0 to 1 degree. If they are scores, delete them from the file; if they are radians"
        doubts.append(Doubt(what, "angles", "rad"))
    return doubts
