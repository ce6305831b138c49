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
from panollava.disk import csv_text, read_document, write_file
from panollava.evaluation import comparison
from panollava.evaluation.comparison import Contender
from panollava.evaluation.measure import find_measure, recorded_scores
from panollava.evaluation.metrics import EXACT
from panollava.evaluation.predictions import METRICS, Prediction, read_answers
from panollava.evaluation.seeds import spread_of
from panollava.evaluation.statistics import Interval
from panollava.evaluation.words import Words
from panollava.logs import LOG
from panollava.run.conditions import FINISHED, TEST_SET, differences, fingerprint, unequal, unlike_times
from panollava.run.evaluate import first_difference
from panollava.run.learning_report import (
    draw_curves,
    is_learning,
    learning_summary,
    run_learning,
    way_to_common_loss,
)
from panollava.run.settings import settings_of, trained_with, unlike_training
from panollava.run.sweep_design import NUMBERS, Design, Spread, known_spread
from panollava.run_folder import CONFIG, CURVE, STAGES, found_path
from panollava.stages import registry
from panollava.store.identity import FileIdentity
from panollava.sweep_folder import JobRecord, read_jobs
from panollava.training.learning import Learning, LearningCurve, read_curve

TABLE, PICTURE = "sweep.md", "sweep"
MOST_COMPARED = 12
"""Settings up to which every two are compared: corrected for their number, more pairs would rarely be significant."""
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
    places: Mapping[str, float] = field(default_factory=dict)  # AP and mIoU of its stage that finds boxes
    stage: str = ""  # its last stage
    training: Mapping[str, Any] = field(default_factory=dict)  # as ``trained_with`` finds it

    @property
    def conditions(self) -> Mapping[str, Any]:
        """The conditions of its answers; empty where they are not recorded."""
        return self.metrics["settings"].get("conditions") or {}

    @property
    def scores(self) -> dict[str, Interval]:
        """All available scores of its evaluation; empty without one."""
        return recorded_scores(self.metrics)[1] if self.metrics else {}

    @property
    def measure(self) -> str:
        """Name of the score that ranks it, or the place of its class in another package; empty without evaluation."""
        if not self.metrics:
            return ""
        asked = self.metrics["settings"].get("scores", {}).get("measure", "")
        return asked if ":" in asked else recorded_scores(self.metrics)[0]

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
            learning = Learning.of_record(state.get("learning"))
            found |= {f"{stage}_{name}": value for name, value in learning.measures.items()}
        if self.metrics:
            found |= {"questions": self.metrics["count"]}
            for name, score in self.scores.items():
                column = name.replace(" ", "_")
                ends = {f"{column}_low": score.low, f"{column}_high": score.high}
                found |= {column: score.value, **{key: end for key, end in ends.items() if end is not None}}
            if self.metrics["blank_exact_match"] is not None:
                found["blank"] = self.metrics["blank_exact_match"]
            found |= {"image_tokens": self.image_tokens, "latency_s": self.metrics["latency"]["mean_s"]}
        return found | {**self.places, "resampler_parameters": self.parameters}

    def contender(self, setting: Mapping[str, str]) -> Contender:
        """Its answers, as those of one seed of a setting."""
        return Contender(
            self.name,
            tuple(self.predictions),
            self.image_tokens,
            setting=setting,
            seed=str(self.config["seed"]),
            facts={"parameters": f"{self.parameters:,}"},
            still_learning=is_learning(self.learning),
        )


@dataclass(frozen=True)
class Row:
    """A job in the table."""

    job: str
    swept: Mapping[str, str]  # its values of the keys that the sweep varies
    status: str
    error: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, Interval] = field(default_factory=dict)  # by name, if it was evaluated
    measure: str = EXACT  # name of the score that ranks the jobs of the sweep
    learning: Learning | None = None
    curves: Mapping[str, LearningCurve] = field(default_factory=dict)

    @property
    def measured(self) -> Interval | None:
        """The measure, if it was evaluated."""
        return self.scores.get(self.measure)

    @property
    def rank(self) -> float:
        """The measure; of a job that answers nothing AP, if it finds boxes."""
        return self.numbers.get("AP", -math.inf) if self.measured is None else self.measured.value

    @property
    def label(self) -> str:
        """Its swept values, or its name where there are none."""
        return ", ".join(f"{key}={value}" for key, value in self.swept.items()) or self.job

    @property
    def setting(self) -> str:
        """Its swept values without the seed, or its name where there are none."""
        return ", ".join(f"{key}={value}" for key, value in self.swept.items() if key != "seed") or self.job


def sweep_report(folder: Path) -> list[Path]:
    """Writes ``sweep.md``, ``sweep.csv`` and ``sweep.png`` and ``.svg`` into a sweep's folder; returns their paths."""
    records = read_jobs(folder)
    found = {record.name: read_job(folder / record.name) for record in records}
    measures = {job.measure: recorded_scores(job.metrics)[0] for job in found.values() if job and job.metrics}
    # Jobs of several measures, such as some from before there was the key, have exact match in common.
    type, measure = next(iter(measures.items())) if len(measures) == 1 else (EXACT, EXACT)
    rows = _with_ways([_row(record, found[record.name], measure) for record in records])
    answered = [(record, job) for record in records if (job := found[record.name]) is not None and job.predictions]
    notes = learning_summary([row.learning for row in rows if row.learning is not None])
    compared = _compared(answered, type, folder)
    parts = [_table(rows, f"Sweep {folder.name}"), *(f"{note}\n" for note in notes), *compared]
    if len(measures) > 1:
        names = ", ".join(sorted(measures.values()))
        parts.insert(1, f"The jobs were evaluated with different measures ({names}): they are ranked by {EXACT}.\n")
    files: dict[str, str | bytes] = {TABLE: "\n".join(parts), NUMBERS: _csv(rows)}
    if any(row.numbers for row in rows):
        files |= {f"{PICTURE}.{kind}": picture for kind, picture in _picture(rows).items()}
    for name, content in files.items():
        write_file(folder / name, content)
    return [folder / name for name in files]


def read_job(folder: Path, workplace: Path = Path()) -> Job | None:
    """Reads a job's folder; None where none of its stages is finished.

    Args:
        workplace: folder in which the sweep was started, if its results lie there and not above ``folder``.
    """
    path = folder / STAGES
    states = read_document(path)["stages"] if path.is_file() else {}
    done = {key: state for key, state in states.items() if state["status"] == FINISHED}
    if not done:
        return None
    finding = [key for key in done if (known := registry.STAGES.get(key.partition("/")[0])) and known.finds]
    last = next((key for key in reversed(done) if key not in finding), list(done)[-1])
    state: Mapping[str, Any] = {} if last in finding else done[last]
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / last / CONFIG))
    results = found_path(state["evaluated"], folder, workplace) if state.get("evaluated") else None
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
        stage=last.partition("/")[0],
        training=trained_with(folder / last, config),
        places=_place_numbers(folder, workplace, done[finding[-1]]) if finding else {},
        learning=run_learning(done, last) if metrics or state.get("learning") else None,
        curves={
            key.partition("/")[0]: read_curve(folder / key / CURVE)
            for key, one in done.items()
            if one.get("learning") is not None
        },
    )


def _place_numbers(folder: Path, workplace: Path, state: Mapping[str, Any]) -> dict[str, float]:
    """AP, AP50 and mIoU of the evaluation of a stage that finds boxes; empty without one."""
    path = found_path(state["evaluated"], folder, workplace) / METRICS if state.get("evaluated") else None
    if path is None or not path.is_file():
        return {}
    document = read_document(path)
    scores, masks = document["boxes"]["with_scores"], document["masks"]
    found = {"AP": scores["ap"]["value"], "AP50": scores["ap50"]["value"]}
    return found if masks is None else {**found, "mIoU": masks["by_solid_angle"]["value"]}


def _resampler_parameters(stage_folder: Path) -> int:
    """Number of weights, from the header of the best checkpoint."""
    best = follow(stage_folder / BEST)
    if best is None:
        return 0
    with safe_open(best / TRAINED, framework="numpy") as tensors:
        names = [name for name in tensors.keys() if name.startswith("vision.resampler.")]  # noqa: SIM118
        shapes = [tensors.get_slice(name).get_shape() for name in names]
    return sum(math.prod(shape) for shape in shapes)


def _row(record: JobRecord, job: Job | None, measure: str) -> Row:
    status = record.name, record.swept, record.status, record.error
    if job is None:
        return Row(*status)
    return Row(*status, job.numbers(), job.scores, measure, job.learning, job.curves)


def _with_ways(rows: Sequence[Row]) -> list[Row]:
    """The rows with the way to the loss that all jobs have reached, in each stage."""
    numbers = {row.job: dict(row.numbers) for row in rows}
    for stage in dict.fromkeys(stage for row in rows for stage in row.curves):
        curves = {row.job: row.curves[stage] for row in rows if stage in row.curves}
        speeds = {row.job: row.numbers.get(f"{stage}_samples_per_second") for row in rows}
        for job, way in way_to_common_loss(curves, speeds).items():
            numbers[job] |= {f"{stage}_{name}": value for name, value in way.items()}
    return [replace(row, numbers=numbers[row.job]) for row in rows]


def _compared(answered: Sequence[tuple[JobRecord, Job]], measure: str, folder: Path) -> list[str]:
    """Markdown: tests of the differences between jobs or, over seeds, between settings, by a measure."""
    # The answers of a job that failed or still runs are of an earlier start, which may have had fewer stages.
    left_out = [record.name for record, _ in answered if record.status != "finished"]
    notes = [f"Not compared, as their last start did not finish: {', '.join(left_out)}.\n"] if left_out else []
    answered = [(record, job) for record, job in answered if record.status == "finished"]
    if len(answered) < 2:
        return notes
    (first, one), *others = answered
    for record, job in others:
        other_test = differences(one.conditions, {key: job.conditions.get(key) for key in TEST_SET})
        if difference := first_difference(one.predictions, job.predictions) or ", ".join(other_test):
            reason = f"{first.name} and {record.name} answered different questions ({difference})"
            return [*notes, f"{reason}, so the jobs are not compared with each other.\n"]
    conditions = {record.name: job.conditions for record, job in answered if job.conditions}
    timing = {record.name: job.metrics["settings"].get("timing") or {} for record, job in answered}
    notes += [f"{line}.\n" for line in [*unequal(conditions), *unlike_times(timing)]]
    of_jobs, differing = _settings(answered)
    training = {record.name: job.training for record, job in answered}
    for line in unlike_training(training, [job.config for _, job in answered], of_jobs):
        LOG.warning("%s.", line)
        notes.append(f"{line}.\n")
    notes += [f"The settings differ in {', '.join(differing)}.\n"] if differing else []
    contenders = [job.contender(setting) for (_, job), setting in zip(answered, of_jobs, strict=True)]
    settings, words = comparison.by_setting(contenders), one.metrics["captions"].get("words", "unicode")
    try:
        table = comparison.settings_table(contenders, words, measure)
        design = _design(contenders, one, folder, words, measure)
        if len(settings if len(settings) > 1 else contenders) > MOST_COMPARED:
            hint = "python -m panollava.compare tests the differences of those it is given"
            verdicts = f"More than {MOST_COMPARED} {'settings' if len(settings) > 1 else 'jobs'}: {hint}.\n"
        else:
            verdicts = comparison.verdict_lines(comparison.verdicts(contenders, words, measure), measure)
    except ValueError as error:  # a measure that needs more than answers and references
        return [*notes, f"The differences are not tested: {error}\n"]
    return [*notes, *([table] if table else []), verdicts, design]


def _settings(answered: Sequence[tuple[JobRecord, Job]]) -> tuple[list[dict[str, str]], list[str]]:
    """Each job's setting, and all keys in which settings differ.

    That is its swept values; where starts of the sweep had other keys, or jobs with the same values differ, as in their
    epochs, it is what ``settings_of`` finds in the configs.
    """
    configs, differing = settings_of([job.config for _, job in answered], [job.stage for _, job in answered])
    swept = [
        {key.removeprefix("model."): value for key, value in record.swept.items() if key != "seed"}
        for record, _ in answered
    ]
    pairs = list(zip(swept, configs, strict=True))
    is_told = all(one == other for own, one in pairs for its, other in pairs if own == its)
    return swept if is_told and len({tuple(one) for one in swept}) == 1 else configs, differing


def _design(contenders: Sequence[Contender], job: Job, folder: Path, words: Words, measure: str) -> str:
    """What the sweep could see, with the spread between its own seeds where it has several."""
    settings, metric = comparison.by_setting(contenders), find_measure(measure)
    asked = len(job.predictions), len({one.image_id for one in job.predictions})
    design = Design(len(settings) or len(contenders), min(map(len, settings.values()), default=1), *asked)
    measured = spread_of(comparison.setting_scores(contenders, words, measure))
    if measured is None:
        spread = known_spread(folder.parent, job.config, metric.name, asked[0])
    else:
        spread = Spread(measured, "measured here")
    return "\n".join(design.lines(spread, metric.name, metric.top)) + "\n"


def _table(rows: Sequence[Row], title: str) -> str:
    """A line for each job, best measure first, without empty columns; beside another measure than exact match, all."""
    rows = sorted(rows, key=lambda row: row.rank, reverse=True)
    columns: dict[str, list[str]] = {key: [row.swept.get(key, "") for row in rows] for key in _keys(rows)}
    columns |= {"status": [row.status for row in rows]}
    measure = next((row.measure for row in rows if row.measured), EXACT)
    beside = [name for row in rows for name in row.scores] if measure != EXACT else []
    for name in dict.fromkeys([measure, *beside]):
        columns[name] = [str(score) if (score := row.scores.get(name)) else "" for row in rows]
    columns |= {"still learning": [row.learning.verdict if row.learning else "" for row in rows]}
    shown = {"AP": ("mAP %", 100, 1), "AP50": ("mAP50 %", 100, 1), "mIoU": ("mIoU %", 100, 1)}
    shown |= {"image_tokens": ("image tokens", 1, 0), "latency_s": ("ms an answer", 1000, 1)}
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
    lines: list[list[object]] = [
        ["job", *keys, "status", "measure", *names, "still_learning", "still_learning_why", "error"]
    ]
    for row in rows:
        values = [row.measure if row.measured else "", *(row.numbers.get(name, "") for name in names)]
        values += [row.learning.verdict, row.learning.why] if row.learning else ["", ""]
        lines.append([row.job, *(row.swept.get(key, "") for key in keys), row.status, *values, row.error])
    return csv_text(lines)


def _picture(rows: Sequence[Row]) -> dict[str, bytes]:
    """PNG and SVG: the measure, time of an answer, the last stage's loss and speed, by job; and learning curves.

    A numeric swept key is the horizontal axis; the other keys make lines.
    """
    last = _stages(rows)[-1]
    measured = {row.job: row.measured for row in rows if row.measured}
    label = comparison.score_label(next((row.measure for row in rows if row.measured), ""), list(measured.values()))
    panels = [
        (label, dict(zip(measured, comparison.shown(list(measured.values())), strict=True))),
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
            bars = _bars(jobs) if values is panels[0][1] and measured else None
            axes.errorbar(numbers, heights, xerr=bars, fmt="o", color=comparison.INK, capsize=4)
            axes.set_yticks(list(height_of.values()), [row.label for row in reversed(rows)])
            axes.set_xlabel(label)
            continue
        for name, members in _lines(rows, axis).items():
            jobs = sorted((row for row in members if row.job in values), key=lambda row: float(row.swept[axis]))
            along, numbers = [float(row.swept[axis]) for row in jobs], [values[row.job] for row in jobs]
            bars = _bars(jobs) if values is panels[0][1] and measured else None
            axes.errorbar(along, numbers, yerr=bars, fmt="o-", capsize=4, label=name)
        axes.set_xlabel(axis)
        axes.set_ylabel(label)
    if axis is not None and any(_lines(rows, axis)):
        all_axes[0].legend(fontsize=8)
    for stage, axes in zip(stages, lower[0].subplots(1, len(stages), squeeze=False)[0] if lower else (), strict=True):
        draw_curves(axes, stage, [(row.setting, row.curves[stage]) for row in rows if stage in row.curves])
        all_axes.append(axes)
    return comparison.drawn(figure, *all_axes)


def _bars(jobs: Sequence[Row]) -> list[list[float]]:
    return comparison.interval_bars([row.measured for row in jobs if row.measured])


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
