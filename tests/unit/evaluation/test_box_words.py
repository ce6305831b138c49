"""Boxes in words: strict reading, both conventions of scores, and what rounding to whole degrees costs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from panollava.crop.boxes import iou
from panollava.data.boxes import box_text, parse_box
from panollava.data.scenes.boxes import scene_boxes
from panollava.data.world import WorldSource
from panollava.evaluation.box_words import BoxAnswers, asks_box, score_box_answers
from panollava.evaluation.predictions import Prediction


def answers(scenes: int = 24, level: int = 1) -> list[Prediction]:
    """The right answers to the questions of some scenes, those for a box among them."""
    source = WorldSource(split="test", scenes=scenes, level=level, kinds=["where", "box"])
    return [
        Prediction(q.sample_id, q.image_id, q.question_type, q.question, q.references[0], q.references, 0.1)
        for q in source.questions()
    ]


def scored(predictions: list[Prediction]) -> BoxAnswers:
    found = score_box_answers(predictions)
    assert found is not None
    return found


def test_right_answers_have_every_point() -> None:
    found = scored(answers())
    assert (found.questions, found.boxes) == (24, 24)
    assert found.scores.mean_iou is not None
    assert found.scores.mean_iou.value == pytest.approx(1.0)
    assert found.scores.with_equal_scores.ap.value == pytest.approx(1.0)
    assert found.median_error_deg == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(("level", "least"), [(1, 0.95), (2, 0.92), (3, 0.92)])
def test_whole_degrees_cost_a_few_percent(level: int, least: float) -> None:
    """The IoU of a true box with its text: .963, .939 and .932 on average at levels 1, 2 and 3."""
    source = WorldSource(split="test", scenes=60, level=level)
    true = np.concatenate([scene_boxes(source.scene(index)).boxes for index in range(60)])
    told = np.array([parse_box(box_text(box)) for box in true])
    overlap = iou(told, true)
    assert least < overlap.mean() < 0.98
    assert overlap.min() > 0.8


def test_questions_about_one_picture_count_together() -> None:
    """The same answers four times are no further evidence, and a picture that is unknown is one of its own."""
    right = [one for one in answers(12) if asks_box(one)]
    half = [replace(one, prediction="gone") if at % 2 else one for at, one in enumerate(right)]
    four = [replace(one, sample_id=f"{one.sample_id} {at}") for one in half for at in range(4)]
    apart = [replace(one, image_id="") for one in four]
    once, together, alone = (scored(one).scores for one in (half, four, apart))
    for name in ("recall", "mean_iou", "count_error"):
        first, same, narrower = (getattr(one, name) for one in (once, together, alone))
        assert (same.low, same.high) == pytest.approx((first.low, first.high))
        assert narrower.high - narrower.low < 0.7 * (same.high - same.low)
    widths = [one.with_equal_scores.ap50.high - one.with_equal_scores.ap50.low for one in (once, together, alone)]
    assert widths[1] == pytest.approx(widths[0], rel=0.05)
    assert widths[2] < 0.7 * widths[1]


def test_other_texts_are_missed_boxes() -> None:
    right = answers()
    asked = [number for number, one in enumerate(right) if asks_box(one)]
    half = list(right)
    for number in asked[::2]:
        half[number] = replace(right[number], prediction=f"at {right[number].prediction}")
    found = scored(half)
    assert found.boxes == 12
    assert found.scores.recall is not None
    assert found.scores.recall.value == pytest.approx(0.5)
    assert found.scores.precision is not None
    assert found.scores.precision.value == pytest.approx(1.0)
    nothing = scored([replace(one, prediction="") for one in right])
    assert nothing.boxes == 0
    assert nothing.median_error_deg is None
    assert nothing.metrics()["box/ap50"] == 0


def test_scores_order_the_answers() -> None:
    """With half of the answers wrong, an AP depends on whether the wrong ones are the unlikely ones."""
    sure, unsure = [], []
    for number, one in enumerate(one for one in answers() if asks_box(one)):
        is_wrong = number % 2 == 1
        one = replace(one, prediction="yaw 0, pitch 60, 1 x 1") if is_wrong else one
        sure.append(replace(one, log_probability=-2.0 if is_wrong else -0.1))
        unsure.append(replace(one, log_probability=-0.1 if is_wrong else -2.0))
    with_scores = [scored(each).scores.with_scores.ap50.value for each in (sure, unsure)]
    equal = [scored(each).scores.with_equal_scores.ap50.value for each in (sure, unsure)]
    assert with_scores[0] > 0.5 > with_scores[1]
    assert equal[0] == equal[1]


def test_without_probabilities_only_equal_scores_are_told() -> None:
    found = scored(answers())
    assert found.record()["with_scores"] is None
    assert "unavailable" in found.lines()[1]
    json.dumps(found.record(), allow_nan=False)
    partly = [replace(one, log_probability=-0.1) for one in answers()][:-2] + answers()[-2:]
    assert not scored(partly).has_scores


def test_there_is_nothing_to_report_without_such_questions() -> None:
    assert score_box_answers([one for one in answers() if one.kind == "where"]) is None
