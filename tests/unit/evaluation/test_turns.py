"""Answers that turn with the panorama."""

from __future__ import annotations

import math

import pytest

from panollava.evaluation.exact_match import rotation_consistency
from panollava.run.reevaluation import followed

TURN = {"front": "right", "right": "back", "back": "left", "left": "front"}


def test_only_answers_to_direction_questions_count(answer) -> None:
    before = [
        answer("front", "front", sample_id="a"),
        answer("left", "right", sample_id="b"),
        answer("back", "back", sample_id="c"),
        answer("red", "left", sample_id="d"),
        answer("red", "red", sample_id="e"),
    ]
    after = [
        answer("Right.", "right", sample_id="a"),
        answer("front", "back", sample_id="b"),
        answer("back", "left", sample_id="c"),
        answer("red", "front", sample_id="d"),
    ]
    result = rotation_consistency(before, after, TURN.get)
    assert result == (4, 0.5)


def test_without_directions_there_is_nothing_to_turn(answer) -> None:
    count, share = rotation_consistency([answer("red", "red")], [], TURN.get)
    assert "No right answer names a direction" in followed(count, share)
    assert followed(1, 0.5) == "Of 1 answer with a direction, 50.0 % follow the rotation."
    assert count == 0
    assert math.isnan(share)


def test_what_cannot_be_compared_is_refused(answer) -> None:
    with pytest.raises(ValueError, match=r"1 questions were not asked .*\(a "):
        rotation_consistency([answer("front", "front", sample_id="a")], [], TURN.get)
