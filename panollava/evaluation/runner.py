"""Asks a model every question of a set, with progress, time left and a look at the answers on the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

from annotated_types import Interval
from tqdm import tqdm

from panollava.batch import Batch
from panollava.data.source import Question
from panollava.evaluation.predictions import Prediction, answered

logger = logging.getLogger(__name__)


def evaluate(
    generate: Callable[[Batch], Sequence[str]],
    batches: Iterable[tuple[Sequence[Question], Batch]],
    *,
    total: int | None = None,
    max_samples: Annotated[int, Interval(ge=1)] | None = None,
    log_samples: bool = True,
    log_interval: Annotated[int, Interval(ge=1)] = 10,
    log_max_samples: Annotated[int, Interval(ge=0)] = 20,
    name: str = "evaluation",
    keep: Callable[[Sequence[Prediction]], None] | None = None,
) -> list[Prediction]:
    """Answers of a model to questions, in the order of the batches.

    Args:
        generate: turns a batch into one answer a sample.
        batches: questions with their collated batch, sample by sample the same.
        total: number of questions to come, for the time left.
        max_samples: stop after this many questions; the last batch is asked as a whole and cut.
        log_samples: whether answers are written to the log on the way.
        log_interval: batches between two lines of progress, and two looks at the answers.
        log_max_samples: answers written to the log in all.
        name: what the progress is called.
        keep: is given the answers of each batch as soon as they are there.

    Raises:
        ValueError: `generate` gave another number of answers than there were questions.
    """
    limits = [limit for limit in (total, max_samples) if limit is not None]
    expected = min(limits) if limits else None
    predictions: list[Prediction] = []
    logged = 0
    started = time.perf_counter()
    # A log file gets plain lines instead of a bar: `disable=None` shows the bar in a terminal only.
    with tqdm(total=expected, desc=name, unit="answer", disable=None, leave=False) as bar:
        for number, (questions, batch) in enumerate(batches, start=1):
            new = _answer(generate, questions, batch)
            if max_samples is not None:
                new = new[: max_samples - len(predictions)]
            predictions += new
            if keep is not None:
                keep(new)
            bar.update(len(new))
            if number % log_interval == 0:
                logger.info("%s", _progress(name, len(predictions), expected, time.perf_counter() - started))
                shown = new[: log_max_samples - logged] if log_samples else []
                logged += len(shown)
                for each in shown:
                    logger.info("%s", _line(each))
            if max_samples is not None and len(predictions) >= max_samples:
                break
    return predictions


def _answer(
    generate: Callable[[Batch], Sequence[str]], questions: Sequence[Question], batch: Batch
) -> list[Prediction]:
    began = time.perf_counter()
    answers = generate(batch)
    latency_s = (time.perf_counter() - began) / max(1, len(questions))
    if len(answers) != len(questions):
        raise ValueError(
            f"generate gave {len(answers)} answers to {len(questions)} questions "
            f"({questions[0].sample_id if questions else 'an empty batch'} …): one a sample is needed."
        )
    return [answered(question, answer, latency_s) for question, answer in zip(questions, answers, strict=True)]


def _progress(name: str, done: int, expected: int | None, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    if expected is None:
        return f"{name}: {done} answers, {rate:.1f}/s"
    return f"{name}: {done}/{expected} answers, {rate:.1f}/s, {(expected - done) / rate:.0f} s left"


def _line(prediction: Prediction) -> str:
    return (
        f"{prediction.sample_id} [{prediction.kind}] {prediction.question!r} -> {prediction.prediction!r} "
        f"(reference: {prediction.references[0]!r})"
    )
