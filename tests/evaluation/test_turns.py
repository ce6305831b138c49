"""Answers that turn with the panorama."""

from __future__ import annotations

import pytest

from panollava.evaluation.turns import turn_consistency

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
    result = turn_consistency(before, after, TURN.get)
    assert (result.count, result.share) == (4, 0.5)


def test_what_cannot_be_compared_is_refused(answer) -> None:
    with pytest.raises(ValueError, match="names a direction"):
        turn_consistency([answer("red", "red")], [], TURN.get)
    with pytest.raises(ValueError, match=r"1 questions were not asked .*\(a "):
        turn_consistency([answer("front", "front", sample_id="a")], [], TURN.get)
