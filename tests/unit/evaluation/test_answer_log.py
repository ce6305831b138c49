"""Answers that are kept while they are given: read back as they were, also after a cut line and from before turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from panollava.evaluation.predictions import AnswerLog, Prediction


def test_answers_come_back_as_they_were(tmp_path: Path, answer: Callable[..., Prediction]) -> None:
    given = [answer("red", "red", "rot"), answer("ja", "ja", history=(("Was?", "red"), ("Sure?", "no")))]
    log = AnswerLog(tmp_path, {"seed": 1})
    log.add(given)
    with log.path.open("a") as stream:
        stream.write('{"sample_id": "s3", "pre')
    again = AnswerLog(tmp_path, {"seed": 1})
    assert list(again.answers.values()) == given
    other = AnswerLog(tmp_path, {"seed": 2})
    assert (other.answers, other.other, again.other) == ({}, {"seed": 1}, None)
    head, *lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert head == {"settings": {"seed": 1}}
    assert [len(line.pop("history")) for line in lines] == [0, 2]
    log.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [one.history for one in AnswerLog(tmp_path, {"seed": 1}).answers.values()] == [(), ()]
    again.discard()
    assert list(tmp_path.iterdir()) == []
