"""What a sweep's folder shows when its last job is over: a table, a picture, and which differences are real."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import safe_open

from panollava.checkpoint import BEST, TRAINED, follow, write_file
from panollava.evaluation.answers import is_correct
from panollava.evaluation.comparison import Contender, verdicts
from panollava.evaluation.comparison_report import TESTS
from panollava.evaluation.predictions import Prediction
from panollava.evaluation.read_predictions import read_answers
from panollava.evaluation.results import METRICS
from panollava.evaluation.seeds import Repeat, settings_table
from panollava.evaluation.statistics import Interval
from panollava.evaluation.sweep_table import Row, markdown, picture, rows_csv
from panollava.logs import LOG
from panollava.run.conditions import ASKED, differences, fingerprint, unequal
from panollava.run.evaluate import Answers, first_difference
from panollava.run.run import FINISHED
from panollava.run_folder import CONFIG, STAGES
from panollava.store.identity import KnownPictures
from panollava.sweep_folder import JobRecord, read_jobs
from panollava.untrusted import read_document

JOB_NUMBERS = ("seconds", "samples_per_second", "peak_memory_gb", "validation_loss")
"""What is read of each stage's state."""


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes:
        name: its folder's.
        config: of its last stage.
        stages: state of each finished stage, by stage.
        metrics: of its evaluation; empty without one.
        predictions: likewise.
        parameters: of its resampler.
    """

    name: str
    config: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Any]
    predictions: Sequence[Prediction]
    parameters: int

    @property
    def answers(self) -> Answers:
        """Its answers, with what they depend on as far as that is recorded."""
        return Answers(self.predictions, self.image_tokens, self.metrics["settings"].get("conditions") or {})

    @property
    def image_tokens(self) -> int:
        """Tokens that a panorama takes in the language model, as its evaluation tells."""
        return int(self.metrics["settings"]["image_tokens"])

    def numbers(self) -> dict[str, float]:
        """``<stage>_<number>`` of each stage, and what the evaluation found."""
        found = {
            f"{stage}_{number}": float(state[number])
            for stage, state in self.stages.items()
            for number in JOB_NUMBERS
            if state.get(number) is not None
        }
        if self.metrics:
            found |= {"questions": self.metrics["count"], "exact_match": self.metrics["exact_match"]}
            if self.metrics["blank_exact_match"] is not None:
                found["blank"] = self.metrics["blank_exact_match"]
            found |= {"image_tokens": self.image_tokens, "latency_s": self.metrics["latency"]["mean_s"]}
        return found | {"resampler_parameters": self.parameters}

    def repeat(self, setting: Sequence[str]) -> Repeat:
        """Its answers as those of one seed of a setting."""
        return Repeat(
            setting=tuple(setting),
            correct={one.sample_id: float(is_correct(one.prediction, one.references)) for one in self.predictions},
            scene_of={one.sample_id: one.image_id for one in self.predictions},
            facts={"image tokens": str(self.image_tokens), "parameters": f"{self.parameters:,}"},
        )


def read_job(folder: Path, workplace: Path = Path()) -> Job | None:
    """Reads a job, or nothing where no stage of it is finished.

    Args:
        folder: the job's.
        workplace: folder in which the sweep was started; results lie below it.
    """
    path = folder / STAGES
    states = read_document(path)["stages"] if path.is_file() else {}
    done = {key: state for key, state in states.items() if state["status"] == FINISHED}
    if not done:
        return None
    last, state = list(done.items())[-1]
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / last / CONFIG))
    results = workplace / state["evaluated"] if state.get("evaluated") else None
    metrics = read_document(results / METRICS) if results and (results / METRICS).is_file() else {}
    best = follow(folder / last / BEST)
    if (
        metrics
        and best
        and metrics["settings"].get("fingerprint") not in (None, fingerprint(best, KnownPictures(None)))
    ):
        LOG.warning(
            "%s: its answers in %s are of earlier weights, and are left out of the report.", folder.name, results
        )
        metrics = {}
    predictions: Sequence[Prediction] = ()
    if results and metrics:
        try:
            predictions = read_answers(results, metrics)
        except (OSError, ValueError) as error:
            LOG.warning("%s: its evaluation is left out of the report: %s.", folder.name, str(error).rstrip("."))
            metrics = {}
    return Job(
        name=folder.name,
        config=config,
        stages={key.partition("/")[0]: one for key, one in done.items()},
        metrics=metrics,
        predictions=predictions,
        parameters=_resampler_parameters(folder / last),
    )


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def _resampler_parameters(stage_folder: Path) -> int:
    """Counted in the best checkpoint, of which only the head is read."""
    best = follow(stage_folder / BEST)
    if best is None:
        return 0
    with safe_open(best / TRAINED, framework="numpy") as tensors:
        names = [name for name in tensors.keys() if name.startswith("vision.resampler.")]  # noqa: SIM118
        shapes = [tensors.get_slice(name).get_shape() for name in names]
    return sum(math.prod(shape) for shape in shapes)


TABLE, NUMBERS, PICTURE = "sweep.md", "sweep.csv", "sweep.png"
MOST_COMPARED = 12
"""Jobs up to which every two are compared; the pairs of more would be many and, corrected for, say little."""


def sweep_report(folder: Path) -> list[Path]:
    """Writes ``sweep.md``, ``sweep.csv`` and ``sweep.png`` into a sweep's folder and returns them.

    Args:
        folder: the sweep's; every job in it counts, of whichever start.
    """
    records = read_jobs(folder)
    found = {record.name: read_job(folder / record.name) for record in records}
    rows = [_row(record, found[record.name]) for record in records]
    answered = [(record, job) for record in records if (job := found[record.name]) is not None and job.predictions]
    parts = [markdown(rows, f"Sweep {folder.name}"), *_compared(answered)]
    files: dict[str, str | bytes] = {TABLE: "\n".join(parts), NUMBERS: rows_csv(rows)}
    if any(row.numbers for row in rows):
        files[PICTURE] = picture(rows)
    for name, content in files.items():
        write_file(folder / name, content)
    return [folder / name for name in files]


def _row(record: JobRecord, job: Job | None) -> Row:
    if job is None:
        return Row(record.name, record.swept, record.status, record.error)
    exact = None
    if job.metrics:
        exact = Interval(job.metrics["exact_match"], *(job.metrics["interval"] or (None, None)))
    return Row(record.name, record.swept, record.status, record.error, job.numbers(), exact)


def _compared(answered: Sequence[tuple[JobRecord, Job]]) -> list[str]:
    """Markdown: every two settings on the same questions."""
    if len(answered) < 2:
        return []
    (first, one), *others = answered
    for record, job in others:
        asked = differences(one.answers.conditions, {key: job.answers.conditions.get(key) for key in ASKED})
        if difference := first_difference(one.predictions, job.predictions) or ", ".join(asked):
            reason = f"{first.name} and {record.name} were not asked the same ({difference})"
            return [f"{reason}, so the jobs are not compared with each other.\n"]
    known = {record.name: conditions for record, job in answered if (conditions := job.answers.conditions)}
    notes = [f"{line}.\n" for line in unequal(known)]
    keys = [key for key in answered[0][0].swept if key != "seed"]
    if any("seed" in record.swept for record, _ in answered):
        return [
            *notes,
            settings_table([job.repeat([record.swept[key] for key in keys]) for record, job in answered], keys),
        ]
    if len(answered) > MOST_COMPARED:
        return [
            *notes,
            f"More than {MOST_COMPARED} jobs: python -m panollava.compare tests the differences of those it is "
            "given.\n",
        ]
    contenders = [Contender(record.name, tuple(job.predictions), job.image_tokens) for record, job in answered]
    found = verdicts(contenders, "unicode")
    return [*notes, "\n".join([f"By exact match: {TESTS}", "", *(f"- {verdict}" for verdict in found)]) + "\n"]
