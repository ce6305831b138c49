"""Answers a split's questions with a model, scores them beside blank pictures, and writes the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from panollava.assemble.check import EvaluationOptions
from panollava.assemble.data import question_batches
from panollava.batch import Batch
from panollava.checkpoint import write_file
from panollava.data.records import Question, Source
from panollava.evaluation.answers import AnswerReport, score_answers
from panollava.evaluation.drawing import encode_png
from panollava.evaluation.pictures import answers_picture
from panollava.evaluation.predictions import Prediction
from panollava.evaluation.results import ResultFiles, write_results
from panollava.evaluation.runner import evaluate
from panollava.evaluation.table import markdown_table
from panollava.model.facade import PanoLlava
from panollava.tracking.tracker import Tracker

GREY = 128
SHOWN_ANSWERS = 12
PICTURE = "answers.png"


@dataclass
class Evaluation:
    """What came of an evaluation.

    Attributes:
        report: scores.
        predictions: answers, in the order of the questions.
        files: where they were written.
    """

    report: AnswerReport
    predictions: list[Prediction]
    files: ResultFiles


def evaluate_answers(
    pano: PanoLlava,
    source: Source,
    options: EvaluationOptions,
    *,
    experiment: str,
    tracker: Tracker,
    num_workers: int = 0,
    settings: dict[str, Any] | None = None,
) -> Evaluation:
    """Evaluates a model on a split and records the result on disk and in the tracker.

    Args:
        pano: the model.
        source: the split.
        options: ``evaluation.*``.
        experiment: names the folder below ``options.results_dir``.
        tracker: gets metrics, files, a table of answers and a picture.
        num_workers: processes that cut panoramas.
        settings: kept in ``metrics.json``: what was evaluated, on what.
    """
    predictions = answer_questions(pano, source, options, num_workers=num_workers, log_samples=options.log_samples)
    blind = None
    if options.blank:
        blind = answer_questions(pano, source, options, num_workers=num_workers, blank=True)
    report = score_answers(predictions, blind)
    files = write_results(Path(options.results_dir), experiment, predictions, report, settings=settings)
    _draw_answers(source, predictions, files.folder / PICTURE)
    _track(predictions, report, files, tracker)
    return Evaluation(report, predictions, files)


def answer_questions(
    pano: PanoLlava,
    source: Source,
    options: EvaluationOptions,
    *,
    num_workers: int = 0,
    blank: bool = False,
    log_samples: bool = False,
) -> list[Prediction]:
    """A model's answers to a split's questions.

    Args:
        pano: the model.
        source: the split.
        options: batch size, answer length, limits.
        num_workers: processes that cut panoramas.
        blank: hide every view behind plain grey.
        log_samples: write answers to the log on the way.
    """
    batches = question_batches(pano, source, options.batch_size, num_workers)
    return evaluate(
        lambda batch: pano.answer(batch, max_new_tokens=options.max_new_tokens),
        _blank(batches) if blank else batches,
        total=len(source.questions()),
        max_samples=options.max_samples,
        log_samples=log_samples,
        log_interval=options.log_interval,
        log_max_samples=options.log_max_samples,
        name=f"{source.name}, blank pictures" if blank else source.name,
    )


def _draw_answers(source: Source, predictions: Sequence[Prediction], path: Path) -> None:
    """A picture of the first panorama with the answers about it."""
    first = next(one for one in source.questions() if one.image_id == predictions[0].image_id)
    about_it = [one for one in predictions if one.image_id == first.image_id][:SHOWN_ANSWERS]
    write_file(path, encode_png(answers_picture(source.question_panorama(first), about_it)))


def _track(
    predictions: Sequence[Prediction],
    report: AnswerReport,
    files: ResultFiles,
    tracker: Tracker,
) -> None:
    tracker.metrics({f"test/{name}": value for name, value in report.metrics().items()}, step=0)
    tracker.folder(files.folder, "evaluation")
    tracker.text(markdown_table(report), "evaluation/table.md")
    rows = [
        {
            "question": one.question,
            "prediction": one.prediction,
            "reference": one.references[0],
            "kind": one.kind,
            "image": one.image_id,
        }
        for one in predictions[:: max(1, len(predictions) // 50)]
    ]
    tracker.table(rows, "sample_answers.json")


def _blank(batches: Iterator[tuple[Sequence[Question], Batch]]) -> Iterator[tuple[Sequence[Question], Batch]]:
    """The same questions about nothing: every view is plain grey."""
    for questions, batch in batches:
        batch.pixel_values = torch.full_like(batch.pixel_values, GREY)
        yield questions, batch
