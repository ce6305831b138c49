"""Which things of a scene of the built-in world a question is about, and where a rotation of the sphere moves them."""

import re
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from panollava.crop.sphere import angles_to_direction, direction_to_angles
from panollava.data.scenes.questions import RELATIONS
from panollava.data.scenes.scene import HEIGHTS, SECTOR_DEG, SECTORS, Disc, Scene, Solid
from panollava.data.source import Question

Thing = Solid | Disc
HIGH_DEG = max(HEIGHTS.values()) / 2
"""Pitch of a solid's centre from which on it is high, and below whose negative it is low."""
_LOOKING = re.compile(rf"\blooking ({'|'.join(sorted(SECTORS, key=len, reverse=True))}),")


def asked_text(question: Question) -> str:
    """The words that say what a question is about: of a follow-up, those of the first question."""
    return question.history[0][0] if question.history else question.question


def asked_things(scene: Scene, question: Question) -> tuple[Thing, ...]:
    """The things that the right answer depends on; none where it is that there is nothing.

    A question about the number of a shape depends on all solids.
    """
    text = asked_text(question)
    if question.question_type == "count":
        return scene.solids
    if found := _LOOKING.search(text):
        solid = scene.at(SECTORS.index(found[1]))
        return () if solid is None else (solid,)
    named = tuple(thing for thing in scene.things if re.search(rf"\b{thing.name}\b", text))
    if not named:  # "the red solid", "the ball", "the light overhead"
        words = set(re.findall(r"\w+", text))
        named = tuple(
            thing
            for thing in scene.things
            if (thing.shape in words or ("solid" in words and isinstance(thing, Solid) and thing.colour in words))
        )
    steps = next((steps for words, steps in RELATIONS.items() if f"is {words} the" in text), None)
    if steps is None or not named or not isinstance(named[0], Solid):
        return named
    other = scene.at(named[0].sector + steps)
    return named if other is None else (*named, other)


def single_solid(scene: Scene, question: Question) -> Solid | None:
    """The only thing that a question is about, where it is a solid."""
    things = asked_things(scene, question)
    return things[0] if len(things) == 1 and isinstance(things[0], Solid) else None


@lru_cache(maxsize=4096)
def direction(thing: Thing) -> np.ndarray:
    """Unit vector ``(3,)`` of a thing's centre."""
    yaw, pitch = torch.deg2rad(torch.tensor((thing.yaw_deg, thing.pitch_deg), dtype=torch.float64))
    return angles_to_direction(yaw, pitch).numpy()


def angles_deg(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Yaw and pitch in degrees ``(...)`` of vectors ``(..., 3)``."""
    yaw, pitch = direction_to_angles(torch.from_numpy(directions))
    return np.rad2deg(yaw.numpy()), np.rad2deg(pitch.numpy())


def sector_of(yaw_deg: float) -> int:
    """Index of the word for a yaw."""
    return round(yaw_deg / SECTOR_DEG) % len(SECTORS)


def height_of(pitch_deg: float, limit_deg: float = HIGH_DEG) -> str:
    """The word for the pitch of a solid."""
    return "high" if pitch_deg > limit_deg else "low" if pitch_deg < -limit_deg else "level"


def keeps_words(solid: Solid, rotation: np.ndarray) -> bool:
    """Whether a solid has the same words for its direction and its height after a rotation ``(3, 3)`` of the sphere."""
    yaw, pitch = angles_deg(rotation @ direction(solid))
    return (sector_of(float(yaw)), height_of(float(pitch))) == (solid.sector, solid.height)


def at_pitch(scene: Scene, name: str, pitch_deg: float) -> Scene:
    """The scene with one solid at another pitch, and without the discs, which it would cover near a pole."""
    height = height_of(pitch_deg)
    solids = (replace(one, pitch_deg=pitch_deg, height=height) if one.name == name else one for one in scene.solids)
    return replace(scene, solids=tuple(solids), discs=())


def stands_alone(scene: Scene, name: str) -> bool:
    """Whether no other solid of the scene covers a part of the named one."""
    own = next(one for one in scene.solids if one.name == name)
    others = [one for one in scene.solids if one.name != name]
    return all(
        np.dot(direction(own), direction(one)) < np.cos(np.deg2rad(own.radius_deg + one.radius_deg)) for one in others
    )
