"""Asks a run the items of a public benchmark, and records its answers with both forms of the scores."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from panollava.crop.crop import Crop
from panollava.data.csv import LISTED_PROBLEMS
from panollava.evaluation.benchmarks.protocol import Benchmark, Item
from panollava.evaluation.benchmarks.report import BenchmarkReport, score_benchmark
from panollava.evaluation.benchmarks.source import BenchmarkSource
from panollava.evaluation.exact_match import score_answers
from panollava.evaluation.predictions import PREDICTIONS, Prediction
from panollava.evaluation.results import BENCHMARK, latency_summary, write_results
from panollava.logs import counted
from panollava.model.api import PanoLlava
from panollava.run.conditions import answer_conditions, model_conditions
from panollava.run.config_check import EvaluationOptions
from panollava.run.data import DIGEST_LENGTH, check_questions
from panollava.run.evaluate import PICTURE, answer_logs, answer_twice, draw_answers, track_samples
from panollava.run.restore import Restored
from panollava.run.tools import Tools
from panollava.store.identity import FileIdentity
from panollava.tracking.tracker import Dataset, Tracker

SCORES = "benchmark.json"
"""File of both forms of the scores, beside the predictions."""
_THREADS = 8
"""Threads that check pictures, as for data sets in files."""


@dataclass(frozen=True)
class BenchmarkFiles:
    """A set and where its files are."""

    benchmark: Benchmark
    path: Path
    images: Path | None

    @cached_property
    def items(self) -> list[Item]:
        """See ``Benchmark.read``."""
        return self.benchmark.read(self.path, self.images)

    def digest(self, known: FileIdentity) -> str:
        """Digest of the files that hold the items, wherever the set's folder is."""
        files = self.benchmark.files(self.path)
        root = self.path if self.path.is_dir() else self.path.parent
        found = known.identify_all(files)
        content = {file.relative_to(root).as_posix(): found[file] for file in files}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGEST_LENGTH]

    def check_pictures(self, crop: Crop) -> None:
        """Refuses pictures that cannot be panoramas, without decoding them; ValueError with all reasons."""
        pictures = list(dict.fromkeys(one.picture for one in self.items))
        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            reasons = [reason for reason in pool.map(lambda picture: _wrong(crop, picture), pictures) if reason]
        if reasons:
            more = [f"and {len(reasons) - LISTED_PROBLEMS} more"] if len(reasons) > LISTED_PROBLEMS else []
            head = f"{len(reasons)} of {len(pictures)} pictures of {self.benchmark.name} cannot be used:"
            raise ValueError("\n  ".join([head, *reasons[:LISTED_PROBLEMS], *more]))


def _wrong(crop: Crop, picture: Path) -> str:
    try:
        crop.check(picture)
    except (OSError, ValueError) as error:  # collected, so that all bad pictures are named at once
        return str(error)
    return ""


@dataclass(frozen=True)
class BenchmarkResult:
    """A run's answers to a set, scored and written."""

    report: BenchmarkReport
    blank: BenchmarkReport | None  # of the answers to blank pictures
    count: int  # items of the set, of which the first may have been asked alone
    folder: Path  # of its files

    def summary(self, path: Path) -> str:
        """The tables of a terminal; ``path`` is that of the set."""
        asked, report = self.report.items, self.report
        lines = [f"{path}: {counted(asked, 'item')}, {counted(report.pictures, 'picture')}"]
        if asked < self.count:
            lines.append(f"These are {asked:,} of {self.count:,} items (max_samples): not the set's scores.")
        lines += ["", report.table()]
        if self.blank is not None:
            lines += ["", "The same with blank pictures:", "", self.blank.table()]
        return "\n".join(["", *lines, ""])


def answer_benchmark(
    run: Restored, asked: BenchmarkFiles, options: EvaluationOptions, tools: Tools, *, pano: PanoLlava
) -> BenchmarkResult:
    """Evaluates a checkpoint on a public benchmark, and records the result on disk and in the tracker.

    One generation gives both forms of the scores.

    Raises:
        ValueError: prompts with too many or unknown tokens for the model.
    """
    benchmark, source = asked.benchmark, BenchmarkSource(asked.benchmark, asked.items, pano.crop.read)
    identity, known = {"name": benchmark.name, "files": asked.digest(tools.known)}, tools.known
    tools.tracker.inputs([_described(asked, identity["files"])])
    of_model = model_conditions(pano, tools.compute)
    conditions = answer_conditions(run.checkpoint, run.settings, source, known, **of_model)
    conditions[BENCHMARK] = identity
    new_tokens = pano.generation.max_new_tokens
    check_questions(source, pano.prompt, pano.limits, image_tokens=pano.image_tokens, new_tokens=new_tokens)
    experiment = run.settings["experiment_name"]
    logs = answer_logs(options, experiment, conditions)
    answers, blind = answer_twice(pano, source, options, tools, logs)
    report, blank = (
        None if each is None else score_benchmark(benchmark, source.answered(each)) for each in (answers, blind)
    )
    assert report is not None
    places = {"files": str(asked.path), "images": None if asked.images is None else str(asked.images)}
    settings = {
        **run.subject(known),
        "data": {"type": BENCHMARK, "name": benchmark.name, **places},
        "max_samples": options.max_samples,
        "image_tokens": pano.image_tokens,
        "conditions": conditions,
    }
    scores: dict[str, Any] = {"predictions": PREDICTIONS, **places, "words": benchmark.words}
    scores |= {"max_new_tokens": new_tokens, "items_of_set": len(asked.items), **report.record()}
    scores["blank"] = None if blank is None else blank.record()
    folder = write_results(
        Path(options.results_dir),
        experiment,
        answers,
        score_answers(answers, blind),
        settings=settings,
        further={SCORES: scores},
        key=logs[0].key,
        resumed=logs[0].resumed,
    )
    draw_answers(source, answers, folder / PICTURE)
    result = BenchmarkResult(report, blank, len(asked.items), folder)
    _track(result, answers, tools.tracker)
    for log in logs:
        log.discard()
    return result


def _described(asked: BenchmarkFiles, digest: str) -> Dataset:
    """The set as the tracker records it."""
    return Dataset(
        name=asked.benchmark.name,
        digest=digest,
        source_type="local",
        source=json.dumps({"uri": str(asked.path.resolve())}, ensure_ascii=False),
        profile=json.dumps({"num_rows": len(asked.items)}),
        context="test",
    )


def _track(result: BenchmarkResult, answers: list[Prediction], tracker: Tracker) -> None:
    """Metrics such as ``panospace/as_released/accuracy`` and ``panospace/blank/corrected/accuracy``."""
    name = result.report.benchmark
    values: dict[str, float] = {}
    for prefix, report in ((name, result.report), (f"{name}/blank", result.blank)):
        for form in () if report is None else ("as_released", "corrected"):
            found = getattr(report, form)
            scores = {score.replace(", ", "/").replace(" ", "_"): one.value for score, one in found.scores.items()}
            scores |= {count: getattr(found, count) for count in ("scored", "skipped", "unanswered", "unparsed")}
            values |= {f"{prefix}/{form}/{score}": float(value) for score, value in scores.items()}
    values[f"{name}/latency_mean_s"] = latency_summary(answers)["mean_s"]
    tracker.metrics(values, step=0)
    tracker.tags({"panollava.benchmark": name})
    tracker.folder(result.folder, "evaluation")
    tracker.text(result.report.table(), "evaluation/benchmark.md")
    track_samples(answers, tracker)
    tracker.flush()
