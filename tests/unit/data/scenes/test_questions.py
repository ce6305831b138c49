"""Questions: answers follow from the scene, are spread evenly, and turn with the panorama."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest

from panollava.data.scenes.questions import (
    KINDS,
    NOTHING,
    RELATIONS,
    Asked,
    ask,
    ask_all,
    caption,
    names_direction,
    turn_words,
)
from panollava.data.scenes.scene import SECTORS, Scene, scene_at


@cache
def val_scene(index: int, level: int) -> Scene:
    return scene_at(0, "val", index, level)


def ask_many(kind: str, scenes: int, level: int) -> list[tuple[Scene, Asked]]:
    asked = []
    for index in range(scenes):
        scene = val_scene(index, level)
        one = ask(scene, kind, np.random.default_rng([index, 1]))
        if one is not None:
            asked.append((scene, one))
    return asked


def sector_in(text: str) -> int:
    return SECTORS.index(text.split(",")[0].removeprefix("looking "))


def named(scene: Scene, name: str) -> int:
    return next(solid.sector for solid in scene.solids if solid.name == name)


def test_what_and_where_agree_with_the_scene(level: int) -> None:
    for scene, one in ask_many("what", 100, level):
        solid = scene.at(sector_in(one.question))
        assert one.answer == (f"a {solid.name}" if solid else NOTHING)
    for scene, one in ask_many("where", 100, level):
        name = one.question.removeprefix("where is the ").rstrip("?")
        assert SECTORS.index(one.answer) == named(scene, name)


def test_relations_agree_with_the_scene(level: int) -> None:
    for scene, one in ask_many("relation", 200, level):
        words = next(words for words in RELATIONS if f"what is {words} the " in one.question)
        name = one.question.removeprefix(f"what is {words} the ").rstrip("?")
        solid = scene.at(named(scene, name) + RELATIONS[words])
        assert one.answer == (f"a {solid.name}" if solid else NOTHING)


def test_counts_agree_with_the_scene(level: int) -> None:
    for scene, one in ask_many("count", 200, level):
        shape = one.question.removeprefix("which solids have the shape ").split(",")[0]
        colours = {solid.colour for solid in scene.solids if solid.shape == shape}
        named, number = one.answer.split(", ")
        assert int(number) == len(colours)
        assert set(named.split(" and ")) == (colours or {"none"})


@pytest.mark.parametrize(("kind", "trait"), [("colour", "colour"), ("shape", "shape"), ("height", "height")])
def test_traits_agree_with_the_scene(kind: str, trait: str, level: int) -> None:
    for scene, one in ask_many(kind, 200, level):
        if one.question.startswith("looking"):
            solid = scene.at(sector_in(one.question))
            assert solid is not None
            assert one.answer == getattr(solid, trait)
        else:
            matching = [
                solid
                for solid in scene.solids
                if solid.name in one.question
                or one.question in (f"what colour is the {solid.shape}?", f"what shape is the {solid.colour} solid?")
            ]
            assert [getattr(solid, trait) for solid in matching] == [one.answer]


def test_a_second_turn_needs_the_picture(level: int) -> None:
    for scene, one in ask_many("turns", 200, level):
        assert len(one.history) == 1
        assert not any(names_direction(text) for text in one.history[0])
        assert any(SECTORS[solid.sector] == one.answer for solid in scene.solids)


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_is_a_good_guess(kind: str, level: int) -> None:
    answers = Counter(one.answer for _, one in ask_many(kind, 600, level))
    assert max(answers.values()) / sum(answers.values()) < 0.4


@pytest.mark.parametrize("kind", ["where", "colour", "shape", "height", "pole", "turns"])
def test_answers_do_not_lean_on_the_wording(kind: str, level: int) -> None:
    """Guessing by the question's opening words gains almost nothing over guessing the commonest answer."""
    asked = [(" ".join(one.question.split()[:3]), one.answer) for _, one in ask_many(kind, 1500, level)]
    overall = Counter(answer for _, answer in asked).most_common(1)[0][1] / len(asked)
    groups: dict[str, Counter[str]] = {}
    for opening, answer in asked:
        groups.setdefault(opening, Counter())[answer] += 1
    large = [group for group in groups.values() if sum(group.values()) > 200]
    for group in large:
        assert group.most_common(1)[0][1] / sum(group.values()) < overall + 0.06


@pytest.mark.parametrize("turn_deg", [45.0, 90.0, 180.0, 270.0])
def test_a_turned_scene_is_asked_the_same_in_turned_words(turn_deg: float, level: int) -> None:
    for index in range(40):
        scene = scene_at(2, "test", index, level)
        here = ask_all(scene, KINDS, np.random.default_rng(index))
        there = ask_all(scene.turned(turn_deg), KINDS, np.random.default_rng(index))
        for one, other in zip(here, there, strict=True):
            assert other.question == turn_words(one.question, turn_deg)
            assert other.answer == turn_words(one.answer, turn_deg)
            assert other.history == tuple((turn_words(q, turn_deg), turn_words(a, turn_deg)) for q, a in one.history)


def test_words_turn_clockwise() -> None:
    assert turn_words("looking ahead, where is it?", 90) == "looking right, where is it?"
    assert turn_words("behind left", 90) == "ahead left"
    assert turn_words("a red cube, overhead a light", 90) == "a red cube, overhead a light"


def test_the_caption_names_everything_clockwise(level: int) -> None:
    for index in range(20):
        scene = scene_at(0, "train", index, level)
        text = caption(scene)
        places = [text.index(f" a {solid.name} {solid.height}") for solid in scene.solids]
        assert places == sorted(places)
        assert all(f"{disc.pole} a {disc.name}" in text for disc in scene.discs)
