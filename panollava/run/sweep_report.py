"""The report of a sweep: a table, a picture, and which differences between its jobs are significant."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf
from safetensors import safe_open

from panollava.checkpoint import BEST, TRAINED, follow
from panollava.disk import read_document, write_file
from panollava.evaluation import comparison
from panollava.evaluation.comparison import Contender, Repeat
from panollava.evaluation.exact_match import is_correct
from panollava.evaluation.predictions import METRICS, Prediction, read_answers
from panollava.evaluation.statistics import Interval
from panollava.logs import LOG
from panollava.run.conditions import FINISHED, TEST_SET, differences, fingerprint, unequal
from panollava.run.evaluate import first_difference
from panollava.run.learning_report import (
    draw_curves,
    learning_numbers,
    learning_summary,
    run_learning,
    way_to_common_loss,
)
from panollava.run_folder import CONFIG, CURVE, STAGES
from panollava.stages import registry
from panollava.store.identity import FileIdentity
from panollava.sweep_folder import JobRecord, read_jobs
from panollava.training.learning import Learning, LearningCurve, read_curve

TABLE, NUMBERS, PICTURE = "sweep.md", "sweep.csv", "sweep.png"
MOST_COMPARED = 12
"""Jobs up to which every two are compared: corrected for their number, more pairs would rarely be significant."""
JOB_NUMBERS = ("seconds", "samples_per_second", "peak_memory_gb", "validation_loss")
"""Keys of each stage's state that the report shows."""


@dataclass(frozen=True)
class Job:
    """What a job of a sweep left on disk."""

    name: str  # of its folder
    config: Mapping[str, Any]  # of its last stage
    stages: Mapping[str, Mapping[str, Any]]  # state of each finished stage, by stage
    metrics: Mapping[str, Any]  # of its evaluation; empty without one
    predictions: Sequence[Prediction]  # empty without an evaluation
    parameters: int  # of its resampler
    learning: Learning | None = None  # whether it was still learning; None where its last stage gives no answers
    curves: Mapping[str, LearningCurve] = field(default_factory=dict)  # of each stage that gives answers

    @property
    def conditions(self) -> Mapping[str, Any]:
        """The conditions of its answers; empty where they are not recorded."""
        return self.metrics["settings"].get("conditions") or {}

    @property
    def image_tokens(self) -> int:
        """Tokens that a panorama takes in the language model."""
        return int(self.metrics["settings"]["image_tokens"])

    def numbers(self) -> dict[str, float]:
        """``<stage>_<number>`` of each stage, and the numbers of the evaluation."""
        found = {
            f"{stage}_{number}": float(state[number])
            for stage, state in self.stages.items()
            for number in JOB_NUMBERS
            if state.get(number) is not None
        }
        for stage, state in self.stages.items():
            found |= {f"{stage}_{name}": value for name, value in learning_numbers(state).items()}
        if self.metrics:
            found |= {"questions": self.metrics["count"], "exact_match": self.metrics["exact_match"]}
            if self.metrics["blank_exact_match"] is not None:
                found["blank"] = self.metrics["blank_exact_match"]
            found |= {"image_tokens": self.image_tokens, "latency_s": self.metrics["latency"]["mean_s"]}
        return found | {"resampler_parameters": self.parameters}

    def repeat(self, setting: Sequence[str]) -> Repeat:
        """Its answers, as one seed of a setting."""
        return Repeat(
            setting=tuple(setting),
            correct={one.sample_id: float(is_correct(one.prediction, one.references)) for one in self.predictions},
            scene_of={one.sample_id: one.image_id for one in self.predictions},
            facts={"image tokens": str(self.image_tokens), "parameters": f"{self.parameters:,}"},
        )


@dataclass(frozen=True)
class Row:
    """A job in the table."""

    job: str
    swept: Mapping[str, str]  # its values of the keys that the sweep varies
    status: str
    error: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    exact: Interval | None = None  # exact match, if it was evaluated
    learning: Learning | None = None
    curves: Mapping[str, LearningCurve] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its swept values, or its name where there are none."""
        return ", ".join(f"{key}={value}" for key, value in self.swept.items()) or self.job

    @property
    def setting(self) -> str:
        """Its swept values without the seed, or its name where there are none."""
        return ", ".join(f"{key}={value}" for key, value in self.swept.items() if key != "seed") or self.job


def sweep_report(folder: Path) -> list[Path]:
    """Writes ``sweep.md``, ``sweep.csv`` and ``sweep.png`` into a sweep's folder and returns their paths."""
    records = read_jobs(folder)
    found = {record.name: read_job(folder / record.name) for record in records}
    rows = _with_ways([_row(record, found[record.name]) for record in records])
    answered = [(record, job) for record in records if (job := found[record.name]) is not None and job.predictions]
    notes = learning_summary([row.learning for row in rows if row.learning is not None])
    parts = [_table(rows, f"Sweep {folder.name}"), *(f"{note}\n" for note in notes), *_compared(answered)]
    files: dict[str, str | bytes] = {TABLE: "\n".join(parts), NUMBERS: _csv(rows)}
    if any(row.numbers for row in rows):
        files[PICTURE] = _picture(rows)
    for name, content in files.items():
        write_file(folder / name, content)
    return [folder / name for name in files]


def read_job(folder: Path, workplace: Path = Path()) -> Job | None:
    """Reads a job's folder; None where none of its stages is finished.

    Args:
        workplace: folder in which the sweep was started, in which its results lie.
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
    now = fingerprint(best, FileIdentity(None)) if metrics and best else None
    if now is not None and metrics["settings"].get("fingerprint") not in (None, now):
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
        learning=run_learning(done, last) if metrics or state.get("learning") else None,
        curves={
            key.partition("/")[0]: read_curve(folder / key / CURVE)
            for key, one in done.items()
            if one.get("learning") is not None
        },
    )


def _resampler_parameters(stage_folder: Path) -> int:
    """Number of weights, from the header of the best checkpoint."""
    best = follow(stage_folder / BEST)
    if best is None:
        return 0
    with safe_open(best / TRAINED, framework="numpy") as tensors:
        names = [name for name in tensors.keys() if name.startswith("vision.resampler.")]  # noqa: SIM118
        shapes = [tensors.get_slice(name).get_shape() for name in names]
    return sum(math.prod(shape) for shape in shapes)


def _row(record: JobRecord, job: Job | None) -> Row:
    if job is None:
        return Row(record.name, record.swept, record.status, record.error)
    exact = None
    if job.metrics:
        exact = Interval(job.metrics["exact_match"], *(job.metrics["interval"] or (None, None)))
    numbers = job.numbers()
    return Row(record.name, record.swept, record.status, record.error, numbers, exact, job.learning, job.curves)


def _with_ways(rows: Sequence[Row]) -> list[Row]:
    """The rows with the way to the loss that all jobs have reached, in each stage."""
    numbers = {row.job: dict(row.numbers) for row in rows}
    for stage in dict.fromkeys(stage for row in rows for stage in row.curves):
        curves = {row.job: row.curves[stage] for row in rows if stage in row.curves}
        speeds = {row.job: row.numbers.get(f"{stage}_samples_per_second") for row in rows}
        for job, way in way_to_common_loss(curves, speeds).items():
            numbers[job] |= {f"{stage}_{name}": value for name, value in way.items()}
    return [replace(row, numbers=numbers[row.job]) for row in rows]


def _compared(answered: Sequence[tuple[JobRecord, Job]]) -> list[str]:
    """Markdown: tests of the differences between jobs or, over seeds, between settings."""
    if len(answered) < 2:
        return []
    (first, one), *others = answered
    for record, job in others:
        other_test = differences(one.conditions, {key: job.conditions.get(key) for key in TEST_SET})
        if difference := first_difference(one.predictions, job.predictions) or ", ".join(other_test):
            reason = f"{first.name} and {record.name} answered different questions ({difference})"
            return [f"{reason}, so the jobs are not compared with each other.\n"]
    notes = [
        f"{line}.\n" for line in unequal({record.name: job.conditions for record, job in answered if job.conditions})
    ]
    keys = [key for key in first.swept if key != "seed"]
    if any("seed" in record.swept for record, _ in answered):
        repeats = [job.repeat([record.swept[key] for key in keys]) for record, job in answered]
        return [*notes, comparison.settings_table(repeats, keys)]
    if len(answered) > MOST_COMPARED:
        hint = "python -m panollava.compare tests the differences of those it is given"
        return [*notes, f"More than {MOST_COMPARED} jobs: {hint}.\n"]
    contenders = [Contender(record.name, tuple(job.predictions), job.image_tokens) for record, job in answered]
    found = comparison.verdicts(contenders, "unicode")
    return [
        *notes,
        "\n".join([f"By exact match: {comparison.TESTS}", "", *(f"- {verdict}" for verdict in found)]) + "\n",
    ]


def _table(rows: Sequence[Row], title: str) -> str:
    """A line for each job, without empty columns."""
    columns: dict[str, list[str]] = {key: [row.swept.get(key, "") for row in rows] for key in _keys(rows)}
    columns |= {"status": [row.status for row in rows]}
    columns |= {"exact match": [str(row.exact) if row.exact else "" for row in rows]}
    columns |= {"still learning": [row.learning.verdict if row.learning else "" for row in rows]}
    shown = {"image_tokens": ("image tokens", 1, 0), "latency_s": ("ms an answer", 1000, 1)}
    for stage in _stages(rows):
        shown[f"{stage}_samples_per_second"] = (f"{stage} samples/s", 1, 1)
        shown[f"{stage}_seconds"] = (f"{stage} s", 1, 1)
        shown[f"{stage}_validation_loss"] = (f"{stage} validation loss", 1, 4)
        shown[f"{stage}_peak_memory_gb"] = (f"{stage} peak GB", 1, 2)
    for name, (head, factor, digits) in shown.items():
        columns[head] = [f"{factor * row.numbers[name]:.{digits}f}" if name in row.numbers else "" for row in rows]
    used = {head: cells for head, cells in columns.items() if any(cells)}
    lines = [f"# {title}", "", *comparison.markdown_lines([list(used), *zip(*used.values(), strict=True)])]
    failed = [f"- {row.job} failed: {row.error}" for row in rows if row.error]
    return "\n".join([*lines, *([""] if failed else []), *failed]) + "\n"


def _csv(rows: Sequence[Row]) -> str:
    """A line for each job, with every number in full."""
    keys, names = _keys(rows), list(dict.fromkeys(name for row in rows for name in row.numbers))
    ending = ["exact_match_low", "exact_match_high", "still_learning", "still_learning_why", "error"]
    lines: list[list[object]] = [["job", *keys, "status", *names, *ending]]
    for row in rows:
        ends: list[object] = [row.exact.low, row.exact.high] if row.exact else [None, None]
        ends += [row.learning.verdict, row.learning.why] if row.learning else [None, None]
        values = [row.numbers.get(name, "") for name in names]
        lines.append([row.job, *(row.swept.get(key, "") for key in keys), row.status, *values, *ends, row.error])
    return comparison.csv_text(lines)


def _picture(rows: Sequence[Row]) -> bytes:
    """PNG: exact match, time of an answer, the last stage's validation loss and speed, by job; and learning curves.

    A numeric swept key is the horizontal axis; the other keys make lines.
    """
    last = _stages(rows)[-1]
    panels = [
        ("exact match, %", {row.job: 100 * row.exact.value for row in rows if row.exact}),
        ("ms an answer", _values(rows, "latency_s", 1000)),
        (f"{last}: validation loss", _values(rows, f"{last}_validation_loss")),
        (f"{last}: samples/s", _values(rows, f"{last}_samples_per_second")),
    ]
    panels = [(label, values) for label, values in panels if values]
    axis = _numeric_key(rows)
    height = 3.6 if axis else 1.2 + 0.35 * len(rows)
    stages = list(dict.fromkeys(stage for row in rows for stage in row.curves))
    heights = [height, 3.6] if stages else [height]
    size = 4 * max(len(panels), len(stages)), sum(heights)
    figure = Figure(figsize=size, dpi=120, facecolor=comparison.PAPER, layout="constrained")
    upper, *lower = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    all_axes = list(upper.subplots(1, len(panels), squeeze=False, sharey=axis is None)[0])
    for axes, (label, values) in zip(all_axes, panels, strict=True):
        if axis is None:
            height_of = {row.job: height for height, row in enumerate(reversed(rows))}
            jobs = [row for row in rows if row.job in values]
            heights, numbers = [height_of[row.job] for row in jobs], [values[row.job] for row in jobs]
            axes.errorbar(numbers, heights, xerr=_bars(jobs, label), fmt="o", color=comparison.INK, capsize=4)
            axes.set_yticks(list(height_of.values()), [row.label for row in reversed(rows)])
            axes.set_xlabel(label)
            continue
        for name, members in _lines(rows, axis).items():
            jobs = sorted((row for row in members if row.job in values), key=lambda row: float(row.swept[axis]))
            along, numbers = [float(row.swept[axis]) for row in jobs], [values[row.job] for row in jobs]
            axes.errorbar(along, numbers, yerr=_bars(jobs, label), fmt="o-", capsize=4, label=name)
        axes.set_xlabel(axis)
        axes.set_ylabel(label)
    if axis is not None and any(_lines(rows, axis)):
        all_axes[0].legend(fontsize=8)
    for stage, axes in zip(stages, lower[0].subplots(1, len(stages), squeeze=False)[0] if lower else (), strict=True):
        draw_curves(axes, stage, [(row.setting, row.curves[stage]) for row in rows if stage in row.curves])
        all_axes.append(axes)
    return comparison.png(figure, *all_axes)


def _bars(jobs: Sequence[Row], label: str) -> list[list[float]] | None:
    return comparison.interval_bars([row.exact for row in jobs if row.exact]) if label.startswith("exact") else None


def _keys(rows: Sequence[Row]) -> list[str]:
    """The keys that the sweep varies."""
    return list(dict.fromkeys(key for row in rows for key in row.swept))


def _stages(rows: Sequence[Row]) -> list[str]:
    """Stages that any job has finished, in their order."""
    names = {name.removesuffix("_seconds") for row in rows for name in row.numbers if name.endswith("_seconds")}
    return [*(name for name in registry.STAGES if name in names), *sorted(names - registry.STAGES.keys())]


def _values(rows: Sequence[Row], name: str, factor: float = 1.0) -> dict[str, float]:
    return {row.job: factor * row.numbers[name] for row in rows if name in row.numbers}


def _numeric_key(rows: Sequence[Row]) -> str | None:
    """The first varied key, other than the seed, that is a number in all jobs."""
    for key in _keys(rows):
        values = {row.swept.get(key, "") for row in rows}
        with suppress(ValueError):
            numbers = [float(value) for value in values]
            if key != "seed" and len(numbers) > 1:
                return key
    return None


def _lines(rows: Sequence[Row], axis: str) -> dict[str, list[Row]]:
    """Jobs that differ only in the axis, by their common values."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        name = ", ".join(f"{key}={value}" for key, value in row.swept.items() if key != axis)
        found.setdefault(name, []).append(row)
    return found
