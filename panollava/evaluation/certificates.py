"""Certificates: what must hold of the answers when a panorama is shown in another way, and whether it does.

A plan lists the changes of each certificate and the questions that are asked in each, with the right answers after it.
Whatever answers them, a model, a program that reads the scene or a random number, is judged by the same code.

The certificates are separated by construction. ``yaw`` rotates by multiples of the tile step, which leaves the tiles'
place on the things as it is, and of the built-in world asks about things that are on the seam neither before nor after.
``tile_phase`` rotates the tiles by parts of a step under a panorama that stays. ``seam`` compares one thing on the seam
and in the centre, both by rotations of a multiple of 45 degrees. Between them is half a circle, a multiple of the tile
step unless a row has an odd number of tiles: then ``seam`` is not separated from ``tile_phase``, and says so.

Legend: ``S`` slots, each a question in a change; ``P`` pairs, each a question before and after.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, get_args

import numpy as np

from panollava.crop.cameras import Camera
from panollava.data.scenes.questions import NOTHING, names_direction, turn_words
from panollava.data.scenes.scene import SECTOR_DEG, Scene, Solid, wrap_deg
from panollava.data.source import Directions, Question
from panollava.evaluation.asked_things import (
    asked_text,
    asked_things,
    at_pitch,
    direction,
    height_of,
    keeps_words,
    single_solid,
    stands_alone,
)
from panollava.evaluation.changes import (
    UNCHANGED,
    Change,
    circle_share,
    rotation,
    shows,
    tile_step_deg,
    tiles_of,
)

Name = Literal["yaw", "tilt", "seam", "latitude", "tile_phase", "crop_swap", "view_order", "view_loss"]
NAMES: tuple[Name, ...] = get_args(Name)
MEANT: dict[Name, str] = {
    "yaw": "rotating the panorama by multiples of the tile step",
    "tilt": "a small tilt of the panorama",
    "seam": "a thing on the seam, against the same thing in the centre,",
    "latitude": "a thing far from the horizon, against the same thing at it,",
    "tile_phase": "rotating the tiles by parts of their step",
    "crop_swap": "another crop",
    "view_order": "another order of the views",
    "view_loss": "greying a tile, for answers about what it does not show,",
}
BEHIND, AHEAD = 4, 0
"""Sectors on the seam and in the centre."""
BANDS = {45.0: 0.366, 67.0: 0.134}
"""Pitch at which a thing is asked about, with the part of the sphere from 30 to 60, and from 60 to 90 degrees of pitch
up and down: sin 60° - sin 30° and 1 - sin 60°. The rest, sin 30°, lies around the horizon."""
_TURNS = (90.0, 225.0)  # rotations are the allowed ones nearest to these
_PHASES = (0.5, 0.25)


@dataclass(frozen=True)
class Shown:
    """What a plan is made of.

    Attributes:
        questions: of the split, on the panoramas as they are.
        directions: how the texts of a question name directions, by sample id.
        cameras: of the views.
        scene: the scene of a picture by its id, where the data are the built-in world.
        crops: other crops, as keys of ``crop``, of the crop swap.
        tilt_deg: angle of the tilt.
    """

    questions: Sequence[Question]
    directions: Mapping[str, Directions]
    cameras: Sequence[Camera]
    scene: Callable[[str], Scene] | None
    crops: Sequence[tuple[tuple[str, object], ...]]
    tilt_deg: float = 5.0


class Subject(Protocol):
    """Whatever answers questions about panoramas."""

    def answers(self, change: Change, questions: Sequence[Question]) -> Sequence[str]:
        """Answers, one a question and in their order, to questions about panoramas that are shown in a change."""


@dataclass
class Mixture:
    """A score of each pair, as a weighted sum of slots: row i is (pair, slot, weight)."""

    pairs: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, pair: int, parts: Sequence[tuple[int, float]]) -> None:
        """Appends the slots and weights of a pair."""
        for slot, weight in parts:
            self.pairs.append(pair)
            self.slots.append(slot)
            self.weights.append(weight)

    def of(self, right: np.ndarray, count: int) -> np.ndarray:
        """Scores ``(P,)`` of the pairs, of ``right`` ``(S,)``."""
        return np.bincount(self.pairs, weights=np.array(self.weights) * right[self.slots], minlength=count)


@dataclass
class Planned:
    """A certificate: its questions before and after the changes; without pairs, ``reason`` says why."""

    name: Name
    asked: list[Question] = field(default_factory=list)  # of each pair, as before
    before: Mixture = field(default_factory=Mixture)
    after: Mixture = field(default_factory=Mixture)
    reason: str = ""
    is_bound: bool = False  # the first score is the least that the second may be, so that only a loss counts
    shifts_tiles: bool = False  # a rotation that is no multiple of the tile step lies between before and after


@dataclass
class Plan:
    """The slots of all certificates, and the certificates."""

    slots: list[tuple[Change, Question]] = field(default_factory=list)
    certificates: list[Planned] = field(default_factory=list)
    _places: dict[tuple[Change, str], int] = field(default_factory=dict)

    def slot(self, change: Change, question: Question) -> int:
        """The place of a question in a change; a question is asked once in each."""
        key = (change, question.sample_id)
        if key not in self._places:
            self._places[key] = len(self.slots)
            self.slots.append((change, question))
        return self._places[key]

    def by_change(self) -> dict[Change, list[int]]:
        """The slots of each change."""
        found: dict[Change, list[int]] = {}
        for at, (change, _) in enumerate(self.slots):
            found.setdefault(change, []).append(at)
        return found


Part = tuple[Change, Question, float]
Pair = tuple[Question, list[Part], list[Part]]
"""A question, and its weighted parts before and after."""


def make_plan(shown: Shown, only: Sequence[str] = NAMES, refused: Mapping[Name, str] | None = None) -> Plan:
    """The plan of some certificates, in the order of ``NAMES``; ``refused`` has reasons why some are not applicable."""
    plan, step = Plan(), tile_step_deg(shown.cameras)
    is_odd = step is not None and round(360 / step) % 2 == 1
    for name in (one for one in NAMES if one in only):
        is_bound = name == "view_loss" and shown.scene is None
        planned = Planned(name, is_bound=is_bound, shifts_tiles=name == "seam" and is_odd)
        planned.reason = refused[name] if refused and name in refused else _obstacle(name, shown)
        for question, before, after in () if planned.reason else _MAKERS[name](shown):
            pair = len(planned.asked)
            planned.asked.append(question)
            for mixture, parts in ((planned.before, before), (planned.after, after)):
                mixture.add(pair, [(plan.slot(change, one), weight) for change, one, weight in parts])
        if not planned.asked and not planned.reason:
            planned.reason = "no question is one whose right answer after the change is known" + _unsaid(shown)
        plan.certificates.append(planned)
    return plan


def _obstacle(name: Name, shown: Shown) -> str:
    """Why a certificate is not applicable to what is shown; empty if it is."""
    if name in ("seam", "latitude") and shown.scene is None:
        return "the data do not say where in the panorama the thing is that a question is about"
    if name == "tile_phase" and tile_step_deg(shown.cameras) is None:
        return "the crop has no ring of tiles"
    if name == "crop_swap" and not shown.crops:
        return "the model takes no other crop"
    if name in ("view_order", "view_loss") and len(tiles_of(shown.cameras)) < 2:
        return "the crop has no two tiles"
    return ""


def _unsaid(shown: Shown) -> str:
    """What to do where texts do not say how they name directions."""
    if "unknown" not in shown.directions.values():
        return ""
    return "; say how texts name directions with names_directions=none or names_directions=words"


def _even(parts: Sequence[tuple[Change, Question]]) -> list[Part]:
    return [(change, question, 1 / len(parts)) for change, question in parts]


def _same(shown: Shown, changes: Sequence[Change]) -> Iterator[Pair]:
    """Pairs of all questions, whose answers are the same in each change."""
    for question in shown.questions:
        yield question, [(UNCHANGED, question, 1.0)], _even([(change, question) for change in changes])


def turned(question: Question, turn_deg: float) -> Question:
    """The question after a rotation to the right, with its direction words, and those of its right answers."""
    history = tuple((turn_words(one, turn_deg), turn_words(other, turn_deg)) for one, other in question.history)
    references = tuple(turn_words(one, turn_deg) for one in question.references)
    return replace(question, question=turn_words(question.question, turn_deg), history=history, references=references)


def names_place(question: Question) -> bool:
    """Whether a question, what came before it or its answers name a direction or the yaw of a box."""
    texts = (question.question, *question.references, *(text for turn in question.history for text in turn))
    return any(names_direction(one) or turn_words(one, SECTOR_DEG) != one for one in texts)


def _turns(shown: Shown) -> list[float]:
    """Rotations by multiples of the tile step, if possible such that direction words follow; at most two."""
    step = tile_step_deg(shown.cameras) or SECTOR_DEG
    multiples = [step * at for at in range(1, round(360 / step))]
    named = [turn for turn in multiples if turn % SECTOR_DEG == 0]
    return sorted({min(named or multiples, key=lambda turn: abs(turn - wanted)) for wanted in _TURNS})


def _on_seam(scene: Scene, question: Question, turn_deg: float) -> bool:
    steps = round(turn_deg / SECTOR_DEG)
    return any((one.sector + steps) % 8 == BEHIND for one in asked_things(scene, question) if one in scene.solids)


def _yaw(shown: Shown) -> Iterator[Pair]:
    turns = _turns(shown)
    for question in shown.questions:
        said, after = shown.directions[question.sample_id], []
        for turn in turns:
            is_word = said == "words" and names_place(question)
            if said not in ("none", "words") or (is_word and turn % SECTOR_DEG):
                continue
            if shown.scene is not None:
                scene = shown.scene(question.image_id)
                if any(_on_seam(scene, question, angle) for angle in (0.0, turn)):
                    continue
            after.append((Change(turn_deg=turn), turned(question, turn) if is_word else question))
        if after:
            yield question, [(UNCHANGED, question, 1.0)], _even(after)


def _tilt(shown: Shown) -> Iterator[Pair]:
    changes = [Change(tilt_deg=shown.tilt_deg, axis_deg=axis) for axis in (0.0, 90.0)]
    for question in shown.questions:
        after = [(change, question) for change in changes if _stays(shown, question, change)]
        if after:
            yield question, [(UNCHANGED, question, 1.0)], _even(after)


def _stays(shown: Shown, question: Question, change: Change) -> bool:
    """Whether the right answer is the same after a tilt."""
    said = shown.directions[question.sample_id]
    if shown.scene is None:
        return said == "none" or (said == "words" and not names_place(question))
    if question.question_type in ("count", "pole"):
        return True
    scene, matrix = shown.scene(question.image_id), rotation(change)
    solids = [one for one in asked_things(scene, question) if isinstance(one, Solid)]
    if question.question_type == "relation" or names_direction(asked_text(question)):
        if not solids:
            return False  # nothing is there, and a tilt may move something in
        solids = list(scene.solids)  # nor may another one move in
    return all(keeps_words(one, matrix) for one in solids or scene.solids)


def _focus(scene: Scene, questions: Sequence[Question], among: Collection[Solid]) -> tuple[str, list[Question]]:
    """The solid, of some of a picture, that most questions are about, and these questions; boxes are not among them."""
    about: dict[str, list[Question]] = {solid.name: [] for solid in among}
    for question in questions:
        solid = single_solid(scene, question)
        if solid is not None and solid in among and question.question_type != "box":
            about[solid.name].append(question)
    name = max(about, key=lambda one: len(about[one]))
    return name, about[name]


def focused(
    shown: Shown, is_allowed: Callable[[Solid], bool] = lambda _: True
) -> Iterator[tuple[Scene, str, list[Question]]]:
    """For each picture of the built-in world its scene, the solid in question, and the questions about it.

    Pictures without an allowed solid are left out.
    """
    by_picture: dict[str, list[Question]] = {}
    for question in shown.questions:
        by_picture.setdefault(question.image_id, []).append(question)
    for picture, questions in by_picture.items():
        assert shown.scene is not None
        scene = shown.scene(picture)
        if among := tuple(filter(is_allowed, scene.solids)):
            yield scene, *_focus(scene, questions, among)


def covers_middle(solid: Solid) -> bool:
    """Whether a solid covers the middle of its sector, so that a rotation by sectors brings it onto the seam."""
    return abs(wrap_deg(solid.yaw_deg - solid.sector * SECTOR_DEG)) < solid.radius_deg


def _seam(shown: Shown) -> Iterator[Pair]:
    for scene, name, questions in focused(shown, covers_middle):
        sector = next(one.sector for one in scene.solids if one.name == name)
        for question in questions:
            centre, seam = (
                (Change(turn_deg=turn), turned(question, turn))
                for turn in ((to - sector) % 8 * SECTOR_DEG for to in (AHEAD, BEHIND))
            )
            yield question, _even([centre]), _even([seam])


def _latitude(shown: Shown) -> Iterator[Pair]:
    for number, (scene, name, questions) in enumerate(focused(shown)):
        pitches = [0.0, *((1 if number % 2 else -1) * band for band in BANDS)]
        if not all(stands_alone(at_pitch(scene, name, pitch), name) for pitch in pitches):
            continue
        weights = [1.0, *(weight / sum(BANDS.values()) for weight in BANDS.values())]
        for question in questions:
            parts = []
            for pitch, weight in zip(pitches, weights, strict=True):
                is_height = question.question_type == "height"
                references = (height_of(pitch),) if is_height else question.references
                history = question.history
                if history and history[0][0].startswith("how high"):  # the earlier answer moves along
                    history = ((history[0][0], height_of(pitch)),)
                parts.append(
                    (Change(pitch_deg=pitch), replace(question, references=references, history=history), weight)
                )
            yield question, parts[:1], parts[1:]


def _view_loss(shown: Shown) -> Iterator[Pair]:
    tiles = tiles_of(shown.cameras)
    numbers = {one: at for at, one in enumerate(dict.fromkeys(question.image_id for question in shown.questions))}
    for question in shown.questions:
        grey = tiles[numbers[question.image_id] % len(tiles)]  # one tile a picture, each as often as the others
        kept = 1.0
        if shown.scene is None:
            kept -= circle_share(shown.cameras[grey])
        else:
            things = asked_things(shown.scene(question.image_id), question)
            if not things or NOTHING in question.references:
                continue  # that nothing is there depends on where it would be
            if any(shows(shown.cameras[grey], direction(one), one.radius_deg) for one in things):
                continue
        yield question, [(UNCHANGED, question, kept)], [(Change(grey=grey), question, 1.0)]


_MAKERS: dict[Name, Callable[[Shown], Iterator[Pair]]] = {
    "yaw": _yaw,
    "tilt": _tilt,
    "seam": _seam,
    "latitude": _latitude,
    "tile_phase": lambda shown: _same(shown, [Change(phase=phase) for phase in _PHASES]),
    "crop_swap": lambda shown: _same(shown, [Change(crop=one) for one in shown.crops]),
    "view_order": lambda shown: _same(shown, [Change(order=1)]),
    "view_loss": _view_loss,
}


def ask(plan: Plan, subject: Subject) -> list[str]:
    """The subject's answers, one a slot."""
    said = [""] * len(plan.slots)
    for change, places in plan.by_change().items():
        answers = subject.answers(change, [plan.slots[at][1] for at in places])
        for at, answer in zip(places, answers, strict=True):
            said[at] = answer
    return said
