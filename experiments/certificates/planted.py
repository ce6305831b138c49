"""Readers of the built-in world's scenes with one planted fault each, and models that answer at random.

A reader gets views with their cameras, as a model does, and knows what is in a scene. It takes the direction of a thing
from the place in a view where it sees it and from the camera that it believes the view to have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
import yaml

from panollava.crop.cameras import Camera, Column, camera_tensor, locate, point_directions
from panollava.crop.crop import Crop
from panollava.data.scenes.questions import NOTHING, RELATIONS
from panollava.data.scenes.scene import COLOURS, SECTORS, Disc, Scene, Solid, wrap_deg
from panollava.data.source import Question
from panollava.data.world import WorldSource
from panollava.evaluation.asked_things import angles_deg, asked_text, at_pitch, direction, height_of, sector_of
from panollava.evaluation.certificates import Plan, Shown, focused, make_plan, turned
from panollava.evaluation.changes import Change, changed_cameras, rotation

CROP = {"type": "anyres_e2p", "fov_deg": 90.0, "overlap": 0.5, "pitch_rows_deg": [0.0], "global_view": "letterbox"}
OTHER_CROP = (("overlap", 0.25),)
POLE_DEG, SEAM_DEG, NARROW_DEG = 50.0, 20.0, 17.0
MISREAD = ("columns_only", "locked_to_a_tile_phase", "position_codes_removed")
"""Faults of which a reader takes things to be in other directions; the others are about what it sees and says."""
EXPECTED = yaml.safe_load((Path(__file__).parent / "expected.yaml").read_text("utf-8"))


class World:
    """The scenes of a split with their questions, and what a plan is made of."""

    def __init__(self, scenes: int, seed: int = 0, level: int = 1) -> None:
        self.source = WorldSource(split="test", scenes=scenes, seed=seed, level=level)
        self.questions = self.source.questions()
        self.focus = {about[0].image_id: name for _, name, about in focused(self.shown()) if about}

    @cache  # noqa: B019  one world a process
    def scene(self, picture: str) -> Scene:
        """The scene of a picture."""
        return self.source.scene(int(picture.rsplit("-", 1)[1]))

    def shown(self, tilt_deg: float = 5.0) -> Shown:
        """What a plan with the default crop is made of."""
        directions = {one.sample_id: self.source.directions(0) for one in self.questions}
        return Shown(self.questions, directions, cameras_of(()), self.scene, [OTHER_CROP], tilt_deg)

    def plan(self) -> Plan:
        """All certificates with the default crop."""
        return make_plan(self.shown())


@lru_cache(maxsize=8)
def cameras_of(keys: tuple[tuple[str, object], ...]) -> tuple[Camera, ...]:
    """The cameras of the default crop with other keys."""
    return Crop.from_spec({**CROP, **dict(keys)}, view_size=(64, 64)).cameras


@dataclass(frozen=True)
class Reader:
    """Answers by reading the scenes of a world, with one fault of ``expected.yaml`` or ``none``."""

    world: World
    fault: str = "none"

    def answers(self, change: Change, questions: Sequence[Question]) -> list[str]:
        """As ``certificates.Subject``."""
        seen: dict[str, Scene] = {}
        found = []
        for question in questions:
            picture = question.image_id
            if picture not in seen:
                seen[picture] = self._seen(picture, change)
            if self.fault == "locked_to_a_heading" and change.turn_deg:
                question = turned(question, -change.turn_deg)
            found.append(answer(seen[picture], question))
        return found

    def _seen(self, picture: str, change: Change) -> Scene:
        """The scene as it is read from the views of a change."""
        scene = self.world.scene(picture)
        if change.pitch_deg is not None:
            scene = at_pitch(scene, self.world.focus[picture], change.pitch_deg)
        base = cameras_of(())
        cameras = changed_cameras(cameras_of(change.crop), change)
        blind = (self.fault == "needs_every_view" and change.grey is not None) or (
            self.fault == "fixed_number_of_views" and len(cameras) != len(base)
        )
        if blind or not scene.things:
            return replace(scene, solids=(), discs=())
        if self.fault == "locked_to_a_heading":
            change = replace(change, turn_deg=0.0)
        true_yaws, true_pitches, view, *_ = sighted(scene.things, change)
        yaws, pitches = _read(scene.things, change, self.fault if self.fault in MISREAD else "none")
        solids: list[Solid] = []
        discs: list[Disc] = []
        for at, thing in enumerate(scene.things):
            if (
                view[at] < 0
                or (self.fault == "blind_at_the_poles" and abs(true_pitches[at]) > POLE_DEG)
                or (self.fault == "blind_at_the_seam" and abs(wrap_deg(true_yaws[at] - 180)) < SEAM_DEG)
            ):
                continue
            if isinstance(thing, Disc):
                discs.append(thing)
                continue
            yaw, pitch = float(yaws[at]), float(pitches[at])
            limits = {"limit_deg": NARROW_DEG} if self.fault == "narrow_heights" and pitch > 0 else {}
            solids.append(replace(thing, sector=sector_of(yaw), height=height_of(pitch, **limits)))
        return replace(scene, solids=tuple(solids), discs=tuple(discs))


@lru_cache(maxsize=20_000)
def sighted(
    things: tuple[Solid | Disc, ...], change: Change
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where things are seen in a change: true yaw and pitch, and the view (-1 for none), column and row, each ``(T,)``.

    A thing is seen in the view whose centre it is nearest to; in a tile, if it is in one.
    """
    true = np.stack([direction(thing) for thing in things]) @ rotation(change).T  # (T, 3)
    rows = camera_tensor(changed_cameras(cameras_of(change.crop), change), torch.float64)
    x, y, is_ahead = locate(rows, torch.from_numpy(true).expand(len(rows), -1, -1))  # (V, T)
    inside = is_ahead & (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    if change.grey is not None:
        inside[change.grey] = False
    distance = torch.hypot(x - 0.5, y - 0.5) + 10 * rows[:, Column.IS_GLOBAL, None]
    nearest, view = distance.masked_fill(~inside, math.inf).min(dim=0)
    at = torch.arange(len(true))
    seen = torch.where(nearest.isfinite(), view, -1)
    return *angles_deg(true), seen.numpy(), x[view, at].numpy(), y[view, at].numpy()


@lru_cache(maxsize=20_000)
def _read(things: tuple[Solid | Disc, ...], change: Change, fault: str) -> tuple[np.ndarray, np.ndarray]:
    """Yaw and pitch ``(T,)`` that are read of things, of the camera that each view is believed to have."""
    _, _, view, x, y = sighted(things, change)
    cameras = changed_cameras(cameras_of(change.crop), change)
    rows = camera_tensor(_believed(cameras, fault), torch.float64)[view]  # (T, C)
    if fault == "columns_only":
        y = (rows[:, Column.BOX_Y0] + rows[:, Column.BOX_Y1]).numpy() / 2
    places = (torch.from_numpy(one)[:, None] for one in (x, y))
    return angles_deg(point_directions(rows, *places)[:, 0, 0].numpy())


def _believed(cameras: Sequence[Camera], fault: str) -> tuple[Camera, ...]:
    """The cameras that a reader takes the views to have."""
    base = cameras_of(())
    if fault == "position_codes_removed":
        return tuple(base[at % len(base)] for at in range(len(cameras)))
    if fault == "locked_to_a_tile_phase":
        step = 2 * math.pi / sum(not one.is_global for one in base)
        return tuple(
            one if one.is_global else replace(one, yaw_rad=math.floor(one.yaw_rad / step + 1e-6) * step)
            for one in cameras
        )
    return tuple(cameras)


def answer(scene: Scene, question: Question) -> str:
    """The answer to a question of the built-in world, by a scene as it was read."""
    kind, text = question.question_type, asked_text(question)
    if kind == "pole":
        return next((disc.colour for disc in scene.discs if f"the {disc.shape} " in text), NOTHING)
    if kind == "count":
        own = [one for one in scene.solids if f"the shape {one.shape}," in text]
        named = " and ".join(colour for colour in COLOURS if colour in {one.colour for one in own})
        return f"{named or 'none'}, {len(own)}"
    solid = _solid(scene, text)
    if kind == "relation":
        steps = next(steps for words, steps in RELATIONS.items() if f"is {words} the" in text)
        solid = None if solid is None else scene.at(solid.sector + steps)
    if solid is None:
        return NOTHING
    answers: dict[str, Callable[[Solid], str]] = {
        **dict.fromkeys(("what", "relation"), lambda one: f"a {one.name}"),
        **dict.fromkeys(("where", "turns"), lambda one: SECTORS[one.sector % len(SECTORS)]),
        "colour": lambda one: one.colour,
        "shape": lambda one: one.shape,
        "height": lambda one: one.height,
    }
    return answers[kind](solid)


def _solid(scene: Scene, text: str) -> Solid | None:
    """The solid that a question names or looks at."""
    if looking := re.search(r"\blooking ([a-z ]+),", text):
        return scene.at(SECTORS.index(looking[1]))
    names = (lambda one: f"the {one.name}", lambda one: f"the {one.colour} solid", lambda one: f"the {one.shape}?")
    return next((one for name in names for one in scene.solids if name(one) in text), None)


def random_scores(plan: Plan, accuracy: float, seed: int) -> np.ndarray:
    """Scores ``(S,)`` of a model that is right in each slot with the same probability, whatever it is shown."""
    return (np.random.default_rng([seed, 1]).random(len(plan.slots)) < accuracy).astype(float)
