"""Which score ranks models: decided from the references alone, recorded, and given by group."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panollava.data.world import WorldSource
from panollava.evaluation.comparison import group_tables
from panollava.evaluation.measure import (
    as_asked,
    check_measure,
    choose_measure,
    find_measure,
    group_scores,
    recorded_scores,
)
from panollava.evaluation.metrics import AnswerSet, find_metric
from panollava.evaluation.predictions import Scored
from panollava.evaluation.statistics import mean_interval

WORDS = ["sofa", "by", "window", "with", "two", "lamps", "above", "some", "books", "on", "low", "table", "near", "door"]


def answers(references: Sequence[str], pictures: int = 10) -> AnswerSet:
    return AnswerSet([Scored(f"{at % pictures}", f"q{at}", "text", "", (one,)) for at, one in enumerate(references)])


def captions(count: int, seed: int = 0) -> list[str]:
    drawn = random.Random(seed)
    return [f"{' '.join(drawn.sample(WORDS, 9))} {at}" for at in range(count)]


@pytest.mark.parametrize(
    ("references", "measure", "why"),
    [
        (["red", "left", "none", "two balls"] * 10, "exact match", "short and closed"),
        ([f"sign {at}" for at in range(40)], "exact match", "short"),
        (["빨간색", "왼쪽 뒤"] * 5, "exact match", "short and closed"),
        (
            ["The red ring is behind you.", "the red ring is behind you", "It is not there."] * 10,
            "exact match",
            "closed",
        ),
        (["左后方的红色的球", "没有任何东西"] * 10, "exact match", "closed"),
        (captions(40), "CIDEr", "open texts"),
        (["the sofa stands left of the door", *captions(1)], "CIDEr", "open texts"),
    ],
)
def test_auto_is_exact_match_for_short_or_closed_answers_and_cider_for_captions(
    references: list[str], measure: str, why: str
) -> None:
    found = choose_measure("auto", answers(references))
    assert (found.name, found.type) == (measure, measure)
    assert f"since answers are {why}:" in str(found)


def test_the_limits_of_short_and_closed_are_where_the_docstring_has_them() -> None:
    three, two = [f"{at} white cups" for at in range(8)], [f"cup {at}" for at in range(8)]

    def measure(references: list[str]) -> str:
        return choose_measure("auto", answers(references)).name

    assert measure([*three, *two]) == "CIDEr"  # the median has 2.5 words
    assert measure([*three[:7], *two]) == "exact match"
    assert measure(three * 2) == "exact match"  # 16 questions, 8 answers
    assert measure([*three, *three[:7]]) == "CIDEr"


@pytest.mark.parametrize("scenes", [1, 4])
def test_the_built_in_world_has_exact_match_however_small(scenes: int) -> None:
    questions = WorldSource(split="test", scenes=scenes).questions()
    assert choose_measure("auto", AnswerSet(as_asked(questions))).name == "exact match"


def test_one_picture_falls_back_from_cider_and_says_so() -> None:
    found = choose_measure("auto", answers(captions(10), pictures=1))
    assert found.name == "ROUGE-L"
    assert "CIDEr is undefined, as it weighs words by how few pictures" in str(found)


@given(st.lists(st.sampled_from(["red", "two balls", *captions(6)]), min_size=1, max_size=12), st.randoms())
def test_neither_the_order_nor_the_answers_matter(references: list[str], random: random.Random) -> None:
    given = answers(references)
    mixed = [replace(one, prediction=random.choice(WORDS), question="?") for one in given.scored]
    random.shuffle(mixed)
    assert str(choose_measure("auto", AnswerSet(mixed))) == str(choose_measure("auto", given))


def test_a_measure_is_a_metric_of_single_answers_that_these_questions_have() -> None:
    assert choose_measure("ROUGE-L", answers(["red"])).name == "ROUGE-L"
    with pytest.raises(ValueError, match=r"evaluation.measure='CIDEr' is unavailable on these questions: weighs words"):
        choose_measure("CIDEr", answers(captions(5), pictures=1))
    (unknown,) = check_measure("CIDer")
    assert unknown.startswith("evaluation.measure: there is no 'CIDer'. Did you mean 'CIDEr'?")
    (whole,) = check_measure("BLEU")
    assert "does not score single answers. Available: exact match, ROUGE-L, CIDEr" in whole
    assert check_measure("auto") == check_measure("exact match") == []


def test_results_of_before_there_was_a_measure_count_as_exact_match() -> None:
    score = {"value": 0.5, "low": 0.25, "high": 1.0, "top": 10.0}
    old = {"exact_match": 0.25, "interval": None, "captions": {"scores": {"CIDEr": score, "METEOR": None}}}
    measure, scores = recorded_scores(old)
    assert measure == "exact match"
    assert {name: (one.value, one.low, one.top) for name, one in scores.items()} == {
        "exact match": (0.25, None, 1.0),
        "CIDEr": (0.5, 0.25, 10.0),
    }
    assert recorded_scores({**old, "measure": "CIDEr"})[0] == "CIDEr"


def test_group_scores_are_means_of_the_scores_per_answer() -> None:
    said = captions(24, seed=1)
    scored = [
        replace(one, prediction=text, groups=(("language", "ko" if at % 3 else "en"), ("room", "")))
        for at, (one, text) in enumerate(zip(answers(captions(24)).scored, said, strict=True))
    ]
    given = AnswerSet([*scored[:-1], replace(scored[-1], prediction=scored[-1].references[0])])
    found = group_scores(given, find_measure("CIDEr"))
    assert {name: list(members) for name, members in found.items()} == {"language": ["en", "ko"], "room": [""]}
    per_answer = find_metric("CIDEr", "").per_answer(given)
    is_korean = np.array([at % 3 > 0 for at in range(24)])
    images = [image for image, korean in zip(given.images, is_korean, strict=True) if korean]
    korean = found["language"]["ko"]
    assert korean.count == 16
    assert korean.scores["CIDEr"] == mean_interval(per_answer[is_korean], images, top=10.0)
    assert korean.scores["exact match"].value == 1 / 16
    assert found["room"][""].scores["CIDEr"] == mean_interval(per_answer, given.images, top=10.0)
    assert list(group_scores(given, find_measure("exact match"))["room"][""].scores) == ["exact match"]
    table = group_tables({"a": found, "b": found}, "CIDEr")
    assert "| run | language=en (8) | language=ko (16) |" in table
    assert f"| b | {found['language']['en'].scores['CIDEr']} | {korean.scores['CIDEr']} |" in table
    assert group_scores(answers(["red"]), find_measure("exact match")) == {}
