"""Predictions and scores on disk: one folder an evaluation, complete or not there at all."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from panollava.checkpoint import tidy, write_json
from panollava.disk import writing
from panollava.evaluation.answers import AnswerReport, is_correct
from panollava.evaluation.predictions import Prediction, answers_digest
from panollava.evaluation.statistics import mean_interval

COLUMNS = (
    "sample_id",
    "image_id",
    "kind",
    "turn",
    "history",
    "question",
    "prediction",
    "references",
    "reference",
    "correct",
    "latency_s",
)


PREDICTIONS, METRICS = "predictions.csv", "metrics.json"
_BEGUN = ".writing_"
"""How the names of folders begin that are not complete."""


@dataclass(frozen=True)
class ResultFiles:
    """Where an evaluation was written."""

    folder: Path
    predictions: Path
    metrics: Path


def write_results(
    root: Path,
    experiment: str,
    predictions: Sequence[Prediction],
    report: AnswerReport,
    *,
    captions: Mapping[str, object] | None = None,
    settings: Mapping[str, object] | None = None,
    now: datetime | None = None,
    key: str = "",
    goes_on: bool = False,
) -> ResultFiles:
    """Writes `<root>/eval_results/<experiment>/predictions_<timestamp>/{predictions.csv, metrics.json}`.

    Args:
        root: the results folder.
        experiment: experiment name; may hold "/" where jobs of a sweep lie in folders of their own.
        predictions: what the model answered.
        report: their scores.
        captions: caption scores, and how they were made.
        settings: what else belongs to the record (checkpoint, data set, crop, seed).
        now: the time in the folder's name; a second evaluation within it gets `_2`, and so on.
        key: tells evaluations apart that may run side by side; see ``AnswerLog``.
        goes_on: whether the answers are of an evaluation of this key that was stopped; the folder is then the one
            that it had written, if it had come so far.

    Raises:
        ValueError: `experiment` is not a path below the results folder.
        DiskError: it could not be written.
    """
    parent = result_folder(root, experiment)
    now = now or datetime.now()
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        if goes_on:
            for leftover in parent.glob(f"{_BEGUN}{key}_*"):
                shutil.rmtree(leftover)
        temporary = Path(tempfile.mkdtemp(prefix=f"{_BEGUN}{key}_", dir=parent))
        try:
            os.chmod(temporary, 0o755)  # mkdtemp makes folders that nobody else may read
            _write_predictions(temporary / PREDICTIONS, predictions)
            record = {"captions": dict(captions or {}), "settings": dict(settings or {})}
            _write_metrics(temporary / METRICS, experiment, predictions, report, record, now)
            folder = _written_before(temporary, parent) if goes_on else None
            if folder is None:
                folder = _move(temporary, parent / f"predictions_{now:%Y%m%d_%H%M%S}")
            else:
                shutil.rmtree(temporary)
                tidy(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return ResultFiles(folder, folder / PREDICTIONS, folder / METRICS)


def write_measures(root: Path, experiment: str, measures: Mapping[str, float], settings: Mapping[str, object]) -> Path:
    """Writes `<root>/eval_results/<experiment>/measures_<timestamp>.json`: what a stage is measured by without answers.

    Args:
        root: the results folder.
        experiment: experiment name.
        measures: by name.
        settings: what was measured, on what.
    """
    path = result_folder(root, experiment) / f"measures_{datetime.now():%Y%m%d_%H%M%S}.json"
    document = {"experiment_name": experiment, "measures": dict(measures), "settings": dict(settings)}
    write_json(path, json.loads(json.dumps(document, default=str), parse_constant=str))
    return path


def result_folder(root: Path, experiment: str) -> Path:
    """Where the evaluations of an experiment are written.

    Raises:
        ValueError: `experiment` is not a path below the results folder.
    """
    parts = PurePosixPath(experiment.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts or Path(experiment).is_absolute():
        raise ValueError(f"experiment_name={experiment!r} is not a folder name below {root}; use a plain name.")
    return root.joinpath("eval_results", *parts)


def latency_summary(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Latency per answer in seconds, the 95 % interval of its mean over pictures (None where they are too few), and how
    it was measured.
    """
    values = sorted(each.latency_s for each in predictions)
    images = [each.image_id for each in predictions]
    mean = mean_interval([each.latency_s for each in predictions], images, top=math.inf)
    return {
        "mean_s": mean.value,
        "mean_s_interval": None if mean.low is None else [mean.low, mean.high],
        "median_s": statistics.median(values),
        "p95_s": values[math.ceil(0.95 * len(values)) - 1],
        "measured_as": "time of a batch divided by the number of its questions",
    }


def _write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    # The byte-order mark makes spreadsheets read UTF-8; the csv module quotes line breaks and keeps "" empty.
    with path.open("w", encoding="utf-8-sig", errors="backslashreplace", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for each in predictions:
            writer.writerow(
                (
                    each.sample_id,
                    each.image_id,
                    each.kind,
                    each.turn,
                    each.written_history,
                    each.question,
                    each.prediction,
                    json.dumps(each.references, ensure_ascii=False),
                    each.references[0],
                    "true" if is_correct(each.prediction, each.references) else "false",
                    f"{each.latency_s:.6f}",
                )
            )
        _to_disk(stream)


def _write_metrics(
    path: Path,
    experiment: str,
    predictions: Sequence[Prediction],
    report: AnswerReport,
    record: Mapping[str, object],
    now: datetime,
) -> None:
    # A path or a NaN among the settings must not cost the evaluation: they are written as text.
    plain = json.loads(json.dumps(dict(record), default=str), parse_constant=str)
    content = {
        "experiment_name": experiment,
        "created": now.isoformat(timespec="seconds"),
        **asdict(report),
        "answers": answers_digest(predictions),
        "latency": latency_summary(predictions),
        **plain,
    }
    with path.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        json.dump(content, stream, indent=2, ensure_ascii=False, allow_nan=False)
        _to_disk(stream)


def _to_disk(stream: TextIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _written_before(temporary: Path, parent: Path) -> Path | None:
    """The finished folder of the same evaluation, None without one: no other took each answer the same microseconds."""
    answers = (temporary / PREDICTIONS).read_bytes()
    for folder in parent.glob("predictions_*"):
        if (folder / METRICS).is_file() and (folder / PREDICTIONS).read_bytes() == answers:
            metrics = [json.loads((one / METRICS).read_text(encoding="utf-8")) for one in (temporary, folder)]
            if len({json.dumps({**one, "created": None}, sort_keys=True) for one in metrics}) == 1:
                return folder
    return None


def _move(temporary: Path, target: Path) -> Path:
    """Gives the finished folder its name, or the next free one when two end in the same second."""
    number = 1
    while True:
        free = target if number == 1 else target.with_name(f"{target.name}_{number}")
        if not free.exists():
            try:
                return temporary.rename(free)
            except OSError:
                if not free.exists():
                    raise
        number += 1
