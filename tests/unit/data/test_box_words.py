"""Boxes in words: their text, the question kind that asks for them, and rotated worlds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs import config

from panollava.config.check import check_section
from panollava.data.boxes import box_text, parse_box
from panollava.data.scenes.boxes import thing_box
from panollava.data.scenes.questions import ALL_KINDS, BOX, KINDS, ask, names_direction, turn_words
from panollava.data.scenes.scene import scene_at
from panollava.data.world import WorldSource
from panollava.run.config_check import checked
from panollava.run.data import digest_of

WHOLE = st.tuples(
    st.integers(-180, 179), st.integers(-90, 90), st.integers(1, 180), st.integers(1, 180), st.just(0)
).map(lambda values: np.array(values, dtype=float))


@given(WHOLE)
def test_whole_degrees_round_trip(box: np.ndarray) -> None:
    for text in (box_text(box), f"{box_text(box)}."):
        found = parse_box(text)
        assert found is not None
        assert found.dtype == np.float64
        assert (found == box).all()


@given(st.tuples(*(st.floats(-limit, limit) for limit in (1000, 90)), *(st.floats(0.01, 180) for _ in range(2))))
def test_any_box_is_told_to_the_degree(values: tuple[float, ...]) -> None:
    told = parse_box(box_text(np.array([*values, 12.0])))
    assert told is not None
    yaw, pitch, *extents = (float(value) for value in told[:4])
    assert abs((yaw - values[0] + 180) % 360 - 180) <= 0.5 + 1e-9
    assert abs(pitch - values[1]) <= 0.5
    assert all(abs(one - max(0.5, other)) <= 0.5 for one, other in zip(extents, values[2:], strict=True))
    assert told[4] == 0


def test_the_form() -> None:
    assert box_text(np.array([92.2, -4.4, 19.6, 21.0, 0.0])) == "yaw 92, pitch -4, 20 x 21"
    assert box_text(np.array([179.6, -0.2, 0.2, 180.0, 0.0])) == "yaw -180, pitch 0, 1 x 180"
    assert box_text(np.array([0.5, 1.5, 2.5, 3.5, 0.0])) == "yaw 0, pitch 2, 2 x 4"


@pytest.mark.parametrize(
    "text",
    [
        "", "yaw 92", "Yaw 92, pitch -4, 20 x 21", "yaw 92, pitch -4, 20 x 21 .", " yaw 92, pitch -4, 20 x 21",
        "yaw 92.0, pitch -4, 20 x 21", "yaw 092, pitch -4, 20 x 21", "yaw -0, pitch -4, 20 x 21",
        "yaw 180, pitch -4, 20 x 21", "yaw 92, pitch -91, 20 x 21", "yaw 92, pitch −4, 20 x 21",
        "yaw 92, pitch -4, 0 x 21", "yaw 92, pitch -4, 20 x 181", "yaw 92, pitch -4, 20 x 21\n",
        "yaw ９２, pitch -4, 20 x 21",
    ],
)  # fmt: skip
def test_other_texts_are_no_boxes(text: str) -> None:
    assert parse_box(text) is None


def test_a_question_about_a_box_has_the_true_one(level: int) -> None:
    for index in range(60):
        scene = scene_at(3, "train", index, level)
        one = ask(scene, BOX, np.random.default_rng(index))
        assert one is not None
        (thing,) = (thing for thing in scene.things if one.question == f"where exactly is the {thing.name}?")
        assert one.answer == box_text(thing_box(thing))
        assert not one.history


@pytest.mark.parametrize("turn_deg", [45.0, 90.0, 180.0, 270.0, -135.0])
def test_boxes_turn_with_the_world(turn_deg: float, level: int) -> None:
    sources = [WorldSource(split="test", scenes=25, level=level, kinds=[BOX], turn_deg=turn) for turn in (0, turn_deg)]
    for one, other in zip(*(source.questions() for source in sources), strict=True):
        assert other.question == one.question
        assert other.references[0] == turn_words(one.references[0], turn_deg) != one.references[0]
    for index in range(5):
        turned = [turn_words(text, turn_deg) for _, text in sources[0].record(index, 0).turns[:-1]]
        assert turned == [text for _, text in sources[1].record(index, 0).turns[:-1]]
        rotated = sources[0].rotated_record(index, 0, turn_deg)
        assert rotated.turns == sources[1].record(index, 0).turns


def test_yaws_of_boxes_alone_are_turned() -> None:
    assert turn_words("yaw 170, pitch -4, 20 x 21", 45) == "yaw -145, pitch -4, 20 x 21"
    assert turn_words("it is ahead, at yaw -180, pitch 4, 2 x 2", -90) == "it is left, at yaw 90, pitch 4, 2 x 2"
    assert turn_words("the yaw 170 of a plane", 45) == "the yaw 170 of a plane"
    assert not names_direction("yaw 170, pitch -4, 20 x 21")


def test_kinds_choose_what_is_asked() -> None:
    source = WorldSource(split="val", scenes=8, kinds=["where", "box"])
    assert [question.question_type for question in source.questions()].count("box") == 8
    assert {question.question_type for question in source.questions()} == {"where", "box"}
    assert len(source.record(0, 0).turns) == 3
    every = WorldSource(split="val", scenes=8, kinds=list(ALL_KINDS)).questions()
    assert {question.question_type for question in every} == set(ALL_KINDS)


def test_null_is_the_nine_kinds() -> None:
    assert set(ALL_KINDS) - set(KINDS) == {BOX}
    plain, named = WorldSource(split="test", scenes=5), WorldSource(split="test", scenes=5, kinds=list(KINDS))
    assert plain.questions() == named.questions()
    assert plain.record(4, 2) == named.record(4, 2)
    data = {"type": "world", "name": "world", "seed": 0, "level": 1, "test_scenes": 5}
    assert digest_of({**data, "kinds": None}, "test") == digest_of(data, "test")
    assert digest_of({**data, "kinds": [BOX]}, "test") != digest_of(data, "test")


@pytest.mark.parametrize("kinds", [[], ["what", "boxes"], ["box", "box"]])
def test_other_kinds_are_refused(kinds: list[str]) -> None:
    with pytest.raises(
        ValueError, match=r"data\.kinds=\[.*: allowed is a list out of what, .*, box, each once\. Leave"
    ):
        WorldSource(split="test", scenes=1, kinds=kinds)  # type: ignore[arg-type]


def test_unknown_kinds_are_refused_by_the_check() -> None:
    (line,) = check_section({"split": "val", "scenes": 1, "kinds": ["what", "boxes"]}, WorldSource, "data")
    assert line.startswith("data.kinds.1=\"boxes\": allowed is 'what'")
    assert "'box'" in line


def test_a_language_model_without_the_words_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"data\.kinds=\['where', 'box'\]: .*panollava/tiny-qwen3 .*language=tiny_boxes"
    ):
        checked(config("data.kinds=[where,box]"))
    checked(config("data.kinds=[where,box]", "language=tiny_boxes"))
    checked(config("data.kinds=[where]"))
