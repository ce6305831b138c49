"""A sweep as a table and a picture: what each job was given, and what came of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from panollava.evaluation.comparison_report import INK, PAPER, interval_bars, png
from panollava.evaluation.statistics import Interval

STAGES = ("vision", "resampler", "finetune")


@dataclass(frozen=True)
class Row:
    """A job's line.

    Attributes:
        job: its name.
        swept: its values of the keys that the sweep varies.
        status: how it ended.
        error: why it failed.
        numbers: what it measured, by name.
        exact: its exact match, if it answered.
    """

    job: str
    swept: Mapping[str, str]
    status: str
    error: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    exact: Interval | None = None

    @property
    def label(self) -> str:
        """What tells it from the others."""
        return ", ".join(f"{key}={value}" for key, value in self.swept.items()) or self.job


def markdown(rows: Sequence[Row], title: str) -> str:
    """A line a job, columns without any value left out."""
    keys = list(dict.fromkeys(key for row in rows for key in row.swept))
    columns: dict[str, list[str]] = {key: [row.swept.get(key, "") for row in rows] for key in keys}
    columns |= {"status": [row.status for row in rows]}
    columns |= {"exact match": [str(row.exact) if row.exact else "" for row in rows]}
    shown = {"image_tokens": ("image tokens", 1, 0), "latency_s": ("ms an answer", 1000, 1)}
    for stage in STAGES:
        shown[f"{stage}_samples_per_second"] = (f"{stage} samples/s", 1, 1)
        shown[f"{stage}_seconds"] = (f"{stage} s", 1, 1)
        shown[f"{stage}_validation_loss"] = (f"{stage} validation loss", 1, 4)
        shown[f"{stage}_peak_memory_gb"] = (f"{stage} peak GB", 1, 2)
    for name, (head, factor, digits) in shown.items():
        columns[head] = [f"{factor * row.numbers[name]:.{digits}f}" if name in row.numbers else "" for row in rows]
    used = {head: cells for head, cells in columns.items() if any(cells)}
    lines = [f"# {title}", "", _line(list(used)), _line(["---"] * len(used))]
    lines += [_line(cells) for cells in zip(*used.values(), strict=True)]
    failed = [f"- {row.job} failed: {row.error}" for row in rows if row.error]
    return "\n".join([*lines, *([""] if failed else []), *failed]) + "\n"


def rows_csv(rows: Sequence[Row]) -> str:
    """A line a job with every number as it is."""
    keys = list(dict.fromkeys(key for row in rows for key in row.swept))
    names = list(dict.fromkeys(name for row in rows for name in row.numbers))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["job", *keys, "status", *names, "exact_match_low", "exact_match_high", "error"])
    for row in rows:
        ends = [row.exact.low, row.exact.high] if row.exact else [None, None]
        values = [row.numbers.get(name, "") for name in names]
        writer.writerow([row.job, *(row.swept.get(key, "") for key in keys), row.status, *values, *ends, row.error])
    return stream.getvalue()


def picture(rows: Sequence[Row]) -> bytes:
    """PNG: exact match (or the last stage's validation loss), time of an answer and speed of training, by job.

    Where one of the varied keys has numbers, it is the horizontal axis and the other keys make lines.
    """
    last = next(stage for stage in reversed(STAGES) if any(f"{stage}_seconds" in row.numbers for row in rows))
    panels = [
        ("exact match, %", {row.job: 100 * row.exact.value for row in rows if row.exact}),
        ("ms an answer", _values(rows, "latency_s", 1000)),
        (f"{last}: validation loss", _values(rows, f"{last}_validation_loss")),
        (f"{last}: samples/s", _values(rows, f"{last}_samples_per_second")),
    ]
    panels = [(label, values) for label, values in panels if values]
    axis = _numeric_key(rows)
    height = 3.6 if axis else 1.2 + 0.35 * len(rows)
    figure = Figure(figsize=(4 * len(panels), height), dpi=120, facecolor=PAPER, layout="constrained")
    all_axes = list(figure.subplots(1, len(panels), squeeze=False, sharey=axis is None)[0])
    for axes, (label, values) in zip(all_axes, panels, strict=True):
        if axis is None:
            places = {row.job: place for place, row in enumerate(reversed(rows))}
            jobs = [row for row in rows if row.job in values]
            axes.errorbar(
                [values[row.job] for row in jobs],
                [places[row.job] for row in jobs],
                xerr=interval_bars([row.exact for row in jobs if row.exact]) if label.startswith("exact") else None,
                fmt="o",
                color=INK,
                capsize=4,
            )
            axes.set_yticks(list(places.values()), [row.label for row in reversed(rows)])
            axes.set_xlabel(label)
            continue
        for name, members in _lines(rows, axis).items():
            jobs = sorted((row for row in members if row.job in values), key=lambda row: float(row.swept[axis]))
            axes.errorbar(
                [float(row.swept[axis]) for row in jobs],
                [values[row.job] for row in jobs],
                yerr=interval_bars([row.exact for row in jobs if row.exact]) if label.startswith("exact") else None,
                fmt="o-",
                capsize=4,
                label=name,
            )
        axes.set_xlabel(axis)
        axes.set_ylabel(label)
    if axis is not None and any(_lines(rows, axis)):
        all_axes[0].legend(fontsize=8)
    return png(figure, *all_axes)


def _values(rows: Sequence[Row], name: str, factor: float = 1.0) -> dict[str, float]:
    return {row.job: factor * row.numbers[name] for row in rows if name in row.numbers}


def _numeric_key(rows: Sequence[Row]) -> str | None:
    """The first varied key, other than the seed, of which all jobs have numbers."""
    keys = dict.fromkeys(key for row in rows for key in row.swept if key != "seed")
    for key in keys:
        values = {row.swept.get(key, "") for row in rows}
        if len(values) > 1 and all(_is_number(value) for value in values):
            return key
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _lines(rows: Sequence[Row], axis: str) -> dict[str, list[Row]]:
    """Jobs that differ in nothing but the axis, by what they have in common."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        name = ", ".join(f"{key}={value}" for key, value in row.swept.items() if key != axis)
        found.setdefault(name, []).append(row)
    return found


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
