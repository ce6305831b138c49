"""Questions about a scene with exact answers, and the rotation of direction words with the panorama.

Answers of one type are about equally frequent for any wording, so that neither the question nor the conversation
before it predicts them: without the picture nothing is better than a guess.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from panollava.data.boxes import box_text
from panollava.data.scenes.boxes import thing_box
from panollava.data.scenes.scene import COLOURS, SECTOR_DEG, SECTORS, SHAPES, Disc, Scene, Solid, wrap_deg

Kind = Literal["what", "where", "colour", "shape", "height", "pole", "count", "relation", "turns", "box"]
BOX: Kind = "box"
"""The kind whose answer is a box in words, see ``panollava.data.boxes.box_text``."""
ALL_KINDS: tuple[Kind, ...] = get_args(Kind)
KINDS = tuple(kind for kind in ALL_KINDS if kind != BOX)
"""The kinds that are asked by default."""
NOTHING = "nothing"
CAPTION_REQUEST = "describe the scene."
RELATIONS = {"opposite": 4, "a quarter turn clockwise from": 2, "a quarter turn anticlockwise from": -2}
"""Wording -> sectors clockwise."""
FOLLOW_UP = "where is it?"

_DIRECTION = re.compile(r"\b(ahead|behind)(?: (left|right))?\b|\b(left|right)\b", re.IGNORECASE)
_BOX_YAW = re.compile(r"\byaw (-?\d+)(?=, pitch -?\d)")


@dataclass(frozen=True)
class Asked:
    """A question about one scene, its answer, and the (question, answer) pairs before it."""

    kind: str
    question: str
    answer: str
    history: tuple[tuple[str, str], ...] = ()

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        return (*self.history, (self.question, self.answer))


def caption(scene: Scene) -> str:
    """Everything in the scene, clockwise from straight ahead, then the poles."""
    parts = [f"{SECTORS[solid.sector]} a {solid.name} {solid.height}" for solid in scene.solids]
    parts += [f"{disc.pole} a {disc.name}" for disc in scene.discs]
    return ", ".join(parts) + "."


def ask(scene: Scene, kind: Kind, rng: np.random.Generator) -> Asked | None:
    """A question of a type, or None if the scene has nothing that it could be about.

    All draws are made before directions become words, in the order of the solids before a rotation, so that the
    questions about a rotated scene are the same with rotated words.
    """
    return _ASKERS[kind](scene, rng)


def ask_all(scene: Scene, kinds: Sequence[Kind], rng: np.random.Generator) -> list[Asked]:
    """One question of each type that the scene allows, in the given order."""
    asked = [ask(scene, kind, rng) for kind in kinds]
    return [question for question in asked if question is not None]


def turn_words(text: str, turn_deg: float) -> str:
    """A text with every direction and every box rotated clockwise: by 90°, ``ahead`` becomes ``right``."""
    steps = round(turn_deg / SECTOR_DEG)

    def turned(match: re.Match[str]) -> str:
        word = match.group(0)
        other = SECTORS[(SECTORS.index(word.lower()) + steps) % len(SECTORS)]
        return other.capitalize() if word[0].isupper() else other

    def turned_yaw(match: re.Match[str]) -> str:
        return f"yaw {round(wrap_deg(int(match.group(1)) + steps * SECTOR_DEG))}"

    return _BOX_YAW.sub(turned_yaw, _DIRECTION.sub(turned, text))


def names_direction(text: str) -> bool:
    """Whether a text names one of the eight directions; a box, whose yaw is a number, does not."""
    return _DIRECTION.search(text) is not None


def _made_order(scene: Scene) -> list[Solid]:
    """Solids in the order of the scene before it was rotated."""
    steps = round(scene.turn_deg / SECTOR_DEG)
    return sorted(scene.solids, key=lambda solid: (solid.sector - steps) % len(SECTORS))


def _pick_solid(scene: Scene, rng: np.random.Generator) -> Solid:
    return _made_order(scene)[int(rng.integers(len(scene.solids)))]


def _pick(options: list[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _name(solid: Solid | None) -> str:
    return NOTHING if solid is None else f"a {solid.name}"


def _looking(sector: int) -> str:
    return f"looking {SECTORS[sector]}"


def _what(scene: Scene, rng: np.random.Generator) -> Asked:
    solid = _pick_solid(scene, rng)
    sector = solid.sector
    if rng.random() < 0.1:
        steps = round(scene.turn_deg / SECTOR_DEG)
        made = [s for s in range(len(SECTORS)) if scene.at(s + steps) is None]
        sector = (made[int(rng.integers(len(made)))] + steps) % len(SECTORS)
    ending = _pick(["what is there?", "what do you see?"], rng)
    return Asked("what", f"{_looking(sector)}, {ending}", _name(scene.at(sector)))


def _where(scene: Scene, rng: np.random.Generator) -> Asked:
    solid = _pick_solid(scene, rng)
    return Asked("where", f"where is the {solid.name}?", SECTORS[solid.sector])


def _colour(scene: Scene, rng: np.random.Generator) -> Asked:
    alone = _alone_in_shape(scene)
    if alone and rng.random() < 0.5:
        solid = alone[int(rng.integers(len(alone)))]
        return Asked("colour", f"what colour is the {solid.shape}?", solid.colour)
    solid = _pick_solid(scene, rng)
    return Asked("colour", f"{_looking(solid.sector)}, what colour is the solid?", solid.colour)


def _shape(scene: Scene, rng: np.random.Generator) -> Asked:
    solid = _pick_solid(scene, rng)
    if rng.random() < 0.5:
        return Asked("shape", f"{_looking(solid.sector)}, what shape is the solid?", solid.shape)
    return Asked("shape", f"what shape is the {solid.colour} solid?", solid.shape)


def _alone_in_shape(scene: Scene) -> list[Solid]:
    counts = Counter(solid.shape for solid in scene.solids)
    return [solid for solid in _made_order(scene) if counts[solid.shape] == 1]


def _height(scene: Scene, rng: np.random.Generator) -> Asked:
    solid = _pick_solid(scene, rng)
    if rng.random() < 0.5:
        return Asked("height", f"{_looking(solid.sector)}, how high is the solid?", solid.height)
    return Asked("height", f"how high is the {solid.name}?", solid.height)


def _pole(scene: Scene, rng: np.random.Generator) -> Asked | None:
    if not scene.discs:
        return None
    disc = scene.discs[int(rng.integers(len(scene.discs)))]
    return Asked("pole", f"what colour is the {disc.shape} {disc.pole}?", disc.colour)


def _count(scene: Scene, rng: np.random.Generator) -> Asked:
    """Draws the number first, so that the numbers are about equally frequent; the answer names what it counts."""
    counts = Counter(solid.shape for solid in scene.solids)
    by_number: dict[int, list[str]] = {}
    for shape in SHAPES:
        by_number.setdefault(counts[shape], []).append(shape)
    numbers = sorted(by_number)
    # Every scene lacks some shape and "none" is one answer, where other numbers have many: less weight for 0.
    weights = np.array([0.5 if number == 0 else 1.0 for number in numbers])
    number = numbers[int(rng.choice(len(numbers), p=weights / weights.sum()))]
    shape = _pick(by_number[number], rng)
    found = {solid.colour for solid in scene.solids if solid.shape == shape}
    named = " and ".join(colour for colour in COLOURS if colour in found) or "none"
    return Asked("count", f"which solids have the shape {shape}, and how many?", f"{named}, {number}")


def _relation(scene: Scene, rng: np.random.Generator) -> Asked:
    """The answer is a solid four times out of five, if the scene has two in one of the relations."""
    pairs = [
        (solid, words)
        for solid in _made_order(scene)
        for words, steps in RELATIONS.items()
        if (scene.at(solid.sector + steps) is not None)
    ]
    everything = [(solid, words) for solid in _made_order(scene) for words in RELATIONS]
    options = pairs if pairs and rng.random() < 0.8 else everything
    solid, words = options[int(rng.integers(len(options)))]
    answer = _name(scene.at(solid.sector + RELATIONS[words]))
    return Asked("relation", f"what is {words} the {solid.name}?", answer)


def _turns(scene: Scene, rng: np.random.Generator) -> Asked:
    """A first question that identifies a solid without a direction, then where that solid is."""
    solid = _pick_solid(scene, rng)
    alone = _alone_in_shape(scene)
    form = int(rng.integers(3))
    if form == 0 and alone:
        solid = alone[int(rng.integers(len(alone)))]
        first = (f"what colour is the {solid.shape}?", solid.colour)
    elif form == 1:
        first = (f"how high is the {solid.name}?", solid.height)
    else:
        first = (f"what shape is the {solid.colour} solid?", solid.shape)
    return Asked("turns", FOLLOW_UP, SECTORS[solid.sector], (first,))


def _box(scene: Scene, rng: np.random.Generator) -> Asked:
    """Names are unique: no two solids have one colour, and there is one light or mat at most."""
    things: list[Solid | Disc] = [*_made_order(scene), *scene.discs]
    thing = things[int(rng.integers(len(things)))]
    return Asked(BOX, f"where exactly is the {thing.name}?", box_text(thing_box(thing)))


_ASKERS: dict[Kind, Callable[[Scene, np.random.Generator], Asked | None]] = {
    "what": _what,
    "where": _where,
    "colour": _colour,
    "shape": _shape,
    "height": _height,
    "pole": _pole,
    "count": _count,
    "relation": _relation,
    "turns": _turns,
    BOX: _box,
}
