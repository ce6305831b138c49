"""Asking every question: order, limits, latency and what the log shows."""

from __future__ import annotations

import logging
import time

import pytest
import torch

from panollava.batch import Batch
from panollava.data.source import Question
from panollava.evaluation.results import evaluate


def _batches(sizes: list[int]):
    number = 0
    for size in sizes:
        questions = [
            Question(f"s{number + offset}", "scene", (), f"Which? {number + offset}", ("yes", "no"), "kind")
            for offset in range(size)
        ]
        number += size
        names = [question.sample_id for question in questions]
        yield (
            questions,
            Batch(names, torch.zeros(size, 1, 3, 2, 2), torch.zeros(size, 1, 11), torch.ones(size, 1)),
        )


def _echo(batch: Batch) -> list[str]:
    return [f"answer {name}" for name in batch.sample_ids]


def test_every_question_gets_its_own_answer_in_order() -> None:
    predictions = evaluate(_echo, _batches([2, 2, 1]))
    assert [each.prediction for each in predictions] == [f"answer s{index}" for index in range(5)]
    first = predictions[0]
    assert (first.sample_id, first.image_id, first.question) == ("s0", "scene", "Which? 0")
    assert (first.references, first.kind) == (("yes", "no"), "kind")


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_limit_stops_asking(limit) -> None:
    asked = []

    def generate(batch: Batch) -> list[str]:
        asked.append(len(batch))
        return _echo(batch)

    predictions = evaluate(generate, _batches([2, 2, 2]), max_samples=limit)
    assert [each.sample_id for each in predictions] == [f"s{index}" for index in range(limit)]
    assert len(asked) == (limit + 1) // 2


def test_latency_is_the_batch_time_over_its_size(monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def generate(batch: Batch) -> list[str]:
        clock[0] += 2.0
        return _echo(batch)

    predictions = evaluate(generate, _batches([4, 1]))
    assert [each.latency_s for each in predictions] == [0.5] * 4 + [2.0]


def test_the_log_shows_progress_and_some_answers(caplog) -> None:
    with caplog.at_level(logging.INFO):
        evaluate(_echo, _batches([2] * 4), total=8, log_interval=2, log_max_samples=3, name="blank pictures")
    progress = [message for message in caplog.messages if message.startswith("blank pictures:")]
    assert [message.split(",")[0] for message in progress] == [
        "blank pictures: 4/8 answers",
        "blank pictures: 8/8 answers",
    ]
    assert "s left" in progress[0]
    shown = [message.split()[0] for message in caplog.messages if "reference:" in message]
    assert shown == ["s2", "s3", "s6"]


def test_the_log_can_do_without_answers(caplog) -> None:
    with caplog.at_level(logging.INFO):
        evaluate(_echo, _batches([2]), log_interval=1, log_samples=False)
    assert [message for message in caplog.messages if "reference:" in message] == []
    assert caplog.messages[0].startswith("evaluation: 2 answers")


def test_a_wrong_number_of_answers_is_an_error_that_names_the_batch() -> None:
    with pytest.raises(ValueError, match=r"1 answers to 2 questions \(s0 "):
        evaluate(lambda batch: ["one"], _batches([2]))
