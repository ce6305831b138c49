"""Evaluations: asking a model every question of a set, and the folder of predictions and scores that comes of it."""

import csv
import json
import logging
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from annotated_types import Interval
from tqdm import tqdm

from panollava.batch import Batch
from panollava.checkpoint import tidy
from panollava.data.source import Question
from panollava.disk import flush, read_document, rename_free, temporary_folder, write_json, writing
from panollava.evaluation.box_words import BoxAnswers
from panollava.evaluation.exact_match import AnswerReport, is_correct
from panollava.evaluation.measure import Groups, groups_record
from panollava.evaluation.metrics import EXACT
from panollava.evaluation.predictions import METRICS, PREDICTIONS, Prediction, answers_digest
from panollava.evaluation.statistics import mean_interval

logger = logging.getLogger(__name__)
COLUMNS = ["sample_id", "image_id", "kind", "turn", "history", "question", "prediction", "references"]
COLUMNS += ["reference", "correct", "latency_s"]
BENCHMARK = "benchmark"
"""Condition of answers to a public benchmark: its name and the digests of its files."""
_BEGUN = ".writing_"  # prefix of the names of incomplete folders


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
    log_probabilities: Mapping[str, float] | None = None,
) -> list[Prediction]:
    """Answers of a model to questions, in the order of the batches.

    Args:
        generate: turns a batch into one answer per sample; any other number is a ValueError.
        batches: questions with their collated batch, in the same order.
        total: number of questions, for the time left.
        max_samples: stop after this many questions; the last batch is answered as a whole and cut.
        log_samples, log_max_samples: whether to write answers to the log, and how many at most.
        log_interval: batches between two lines of progress, which begin with `name`.
        keep: called with the answers of each batch.
        log_probabilities: of answers by sample id, which `generate` has filled when it returns.
    """
    expected = min((limit for limit in (total, max_samples) if limit is not None), default=None)
    predictions: list[Prediction] = []
    logged, started = 0, time.perf_counter()
    # `disable=None` shows the bar in a terminal only: a log file gets plain lines.
    with tqdm(total=expected, desc=name, unit="answer", disable=None, leave=False) as bar:
        for number, (questions, batch) in enumerate(batches, start=1):
            new = _answer(generate, questions, batch, {} if log_probabilities is None else log_probabilities)
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
                for one in shown:
                    said = f"{one.question!r} -> {one.prediction!r} (reference: {one.references[0]!r})"
                    logger.info("%s [%s] %s", one.sample_id, one.kind, said)
            if max_samples is not None and len(predictions) >= max_samples:
                break
    return predictions


def _answer(
    generate: Callable[[Batch], Sequence[str]],
    questions: Sequence[Question],
    batch: Batch,
    log_probabilities: Mapping[str, float],
) -> list[Prediction]:
    began = time.perf_counter()
    answers = generate(batch)
    latency_s = (time.perf_counter() - began) / max(1, len(questions))
    if len(answers) != len(questions):
        counts = f"{len(answers)} answers to {len(questions)} questions"
        first = questions[0].sample_id if questions else "an empty batch"
        raise ValueError(f"generate gave {counts} ({first} …): one a sample is needed.")
    return [
        Prediction(
            q.sample_id,
            q.image_id,
            q.question_type,
            q.question,
            answer,
            tuple(q.references),
            latency_s,
            q.history,
            log_probability=log_probabilities.get(q.sample_id),
        )
        for q, answer in zip(questions, answers, strict=True)
    ]


def _progress(name: str, done: int, expected: int | None, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    of_all, left = ("", "") if expected is None else (f"/{expected}", f", {(expected - done) / rate:.0f} s left")
    return f"{name}: {done}{of_all} answers, {rate:.1f}/s{left}"


def write_results(
    root: Path,
    experiment: str,
    predictions: Sequence[Prediction],
    report: AnswerReport,
    *,
    captions: Mapping[str, object] | None = None,
    measure: str = EXACT,
    groups: Groups | None = None,
    boxes: BoxAnswers | None = None,
    settings: Mapping[str, object] | None = None,
    further: Mapping[str, Mapping[str, Any]] | None = None,
    now: datetime | None = None,
    key: str = "",
    resumed: bool = False,
) -> Path:
    """Writes `<root>/eval_results/<experiment>/predictions_<timestamp>/{predictions.csv, metrics.json}`.

    The folder is complete or does not exist.

    Args:
        root: the results folder.
        experiment: experiment name; may hold "/" where jobs of a sweep lie in folders of their own.
        predictions, report, captions: the answers, their exact match, and the other scores and how they were computed.
        measure, groups: the name of the score that ranks models, and scores by group.
        boxes: scores of the answers that are boxes in words, where there are such questions.
        settings: what else belongs to the record (checkpoint, data set, crop, seed).
        further: JSON documents that are written beside, by file name.
        now: the time in the folder's name; a second evaluation within it gets `_2`, and so on.
        key: identifies evaluations that may run side by side; see ``AnswerLog``.
        resumed: the evaluation of this key was stopped before; if it had already written its folder, that one is kept.

    Raises:
        ValueError: `experiment` is not a path below the results folder.
        DiskError: the folder cannot be written.
    """
    parent = result_folder(root, experiment)
    now = now or datetime.now()
    if resumed:
        with writing(parent):
            for leftover in parent.glob(f"{_BEGUN}{key}_*"):
                shutil.rmtree(leftover)
    target = parent / f"predictions_{now:%Y%m%d_%H%M%S}"
    with temporary_folder(target, f"{_BEGUN}{key}_") as temporary:
        _write_predictions(temporary / PREDICTIONS, predictions)
        # A path or a NaN among the settings is written as text: it must not cost the evaluation.
        record = {"captions": dict(captions or {}), "settings": dict(settings or {})}
        content = {
            "experiment_name": experiment,
            "created": now.isoformat(timespec="seconds"),
            "measure": measure,
            **asdict(report),
            "groups": groups_record(groups or {}),
            **({} if boxes is None else {"boxes": boxes.record()}),
            "answers": answers_digest(predictions),
            "latency": latency_summary(predictions),
            **json.loads(json.dumps(record, default=str), parse_constant=str),
        }
        documents: dict[str, Mapping[str, Any]] = {METRICS: content, **(further or {})}
        for name, document in documents.items():
            text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
            (temporary / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        for name in (PREDICTIONS, *documents):
            flush(temporary / name)
        if resumed and (before := _written_before(temporary, parent)):
            shutil.rmtree(temporary)
            tidy(before)
            return before
        return rename_free(temporary, target)


def write_measures(root: Path, experiment: str, measures: Mapping[str, float], settings: Mapping[str, object]) -> Path:
    """Writes `<root>/eval_results/<experiment>/measures_<timestamp>.json`: a stage's measures without answers."""
    path = result_folder(root, experiment) / f"measures_{datetime.now():%Y%m%d_%H%M%S}.json"
    document = {"experiment_name": experiment, "measures": dict(measures), "settings": dict(settings)}
    write_json(path, json.loads(json.dumps(document, default=str), parse_constant=str))
    return path


def result_folder(root: Path, experiment: str) -> Path:
    """Where the evaluations of an experiment are written; ValueError for a path outside the results folder."""
    parts = PurePosixPath(experiment.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts or Path(experiment).is_absolute():
        raise ValueError(f"experiment_name={experiment!r} is not a folder name below {root}; use a plain name.")
    return root.joinpath("eval_results", *parts)


def newest_evaluation(roots: Iterable[Path], experiment: str, digest: str) -> dict[str, Any] | None:
    """The newest ``metrics.json`` of an experiment that is of the weights with this SHA-256; None without one.

    Answers to public benchmarks, whose scores are beside them, do not count.

    Args:
        roots: results folders to look into; those that do not exist are left out.
    """
    folders = [result_folder(root, experiment) for root in roots]
    files = {file.resolve() for folder in folders for file in folder.glob(f"predictions_*/{METRICS}")}
    found = [read_document(file) for file in files]
    settings = [one.get("settings", {}) for one in found]
    ours = [
        document
        for document, of_it in zip(found, settings, strict=True)
        if digest.startswith(of_it.get("fingerprint") or "none") and of_benchmark(of_it) is None
    ]
    return max(ours, key=lambda one: one.get("created", ""), default=None)


def of_benchmark(settings: Mapping[str, Any]) -> Any:
    """The public benchmark whose items an evaluation asked, from the settings it recorded; None for other questions."""
    conditions = settings.get("conditions")
    return conditions.get(BENCHMARK) if isinstance(conditions, Mapping) else None


def latency_summary(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Latency per answer in seconds, with the 95 % interval of its mean over pictures (None where they are too few)."""
    values = [each.latency_s for each in predictions]
    mean = mean_interval(values, [each.image_id for each in predictions], top=math.inf)
    return {
        "mean_s": mean.value,
        "mean_s_interval": None if mean.low is None else [mean.low, mean.high],
        "median_s": statistics.median(values),
        "p95_s": sorted(values)[math.ceil(0.95 * len(values)) - 1],
        "measured_as": "time of a batch divided by the number of its questions",
    }


def _write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    # The byte-order mark makes spreadsheets read UTF-8; the csv module quotes line breaks and keeps "" empty.
    with path.open("w", encoding="utf-8-sig", errors="backslashreplace", newline="") as stream:
        columns = [*COLUMNS, *(["score_by"] if any(each.groups for each in predictions) else [])]
        if any(each.log_probability is not None for each in predictions):
            columns.append("log_probability")
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        for each in predictions:
            row = {
                **vars(each),
                "turn": each.turn,
                "history": each.written_history,
                "references": json.dumps(each.references, ensure_ascii=False),
                "reference": each.references[0],
                "correct": "true" if is_correct(each.prediction, each.references) else "false",
                "latency_s": f"{each.latency_s:.6f}",
                "score_by": json.dumps(dict(each.groups), ensure_ascii=False),
            }
            writer.writerow(row)


def _written_before(temporary: Path, parent: Path) -> Path | None:
    """The finished folder of the same evaluation, found by its answers with their latencies to the microsecond."""
    answers = (temporary / PREDICTIONS).read_bytes()
    for folder in parent.glob("predictions_*"):
        if (folder / METRICS).is_file() and (folder / PREDICTIONS).read_bytes() == answers:
            metrics = [json.loads((one / METRICS).read_text(encoding="utf-8")) for one in (temporary, folder)]
            if len({json.dumps({**one, "created": None}, sort_keys=True) for one in metrics}) == 1:
                return folder
    return None
