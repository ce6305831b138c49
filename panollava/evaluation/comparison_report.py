"""A comparison as tables and pictures."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from panollava.evaluation.comparison import Standing, Verdict
from panollava.evaluation.drawing import KOREAN, WIDE_FONTS, tell_undrawn
from panollava.evaluation.scores import EXACT
from panollava.evaluation.statistics import Interval
from panollava.evaluation.words import Words

INK, PAPER = "#1f4e79", "white"
TESTS = (
    "p-values of a paired permutation test over pictures, after Holm's correction for the number of pairs; each "
    "difference has the interval of the same test at the same level."
)


def markdown(standings: Sequence[Standing], verdicts: Sequence[Verdict], title: str, words: Words) -> str:
    """Both tables and the verdicts in words; `words` is how caption scores split texts."""
    rows = table(standings)
    lines = [f"# {title}", "", _row(rows[0]), _row(["---"] * len(rows[0])), *map(_row, rows[1:])]
    lines += ["", f"Scores have 95 % intervals over pictures, from five pictures on; words={words}. {TESTS}", ""]
    missing = {f"- {name} is unavailable: {why}" for one in standings for name, why in one.captions.unavailable.items()}
    lines += [*sorted(missing), ""] if missing else []
    lines += [f"- {verdict}" for verdict in verdicts]
    return "\n".join(lines) + "\n"


def table(standings: Sequence[Standing]) -> list[list[str]]:
    """Header and a row a model, the best exact match first."""
    names = list(dict.fromkeys(name for one in standings for name in one.captions.scores))
    header = ["run", EXACT, *names, "image tokens", "ms an answer"]
    ordered = sorted(standings, key=lambda one: -one.exact.value)
    return [
        header,
        *(
            [
                one.name,
                str(one.exact),
                *(str(one.captions.scores[name]) if name in one.captions.scores else "–" for name in names),
                str(one.image_tokens),
                f"{1000 * one.latency_s:.1f}",
            ]
            for one in ordered
        ),
    ]


def standings_csv(standings: Sequence[Standing]) -> str:
    """A line a model: each score with its ends."""
    names = list(dict.fromkeys(name for one in standings for name in one.captions.scores))
    header = ["run", *(f"{name}{end}" for name in (EXACT, *names) for end in ("", " low", " high"))]
    rows = []
    for one in standings:
        scores = {EXACT: one.exact, **one.captions.scores}
        ends = [end for name in (EXACT, *names) for end in _ends(scores.get(name))]
        rows.append([one.name, *ends, one.image_tokens, one.latency_s])
    return _csv([[*header, "image tokens", "latency s"], *rows])


def verdicts_csv(verdicts: Sequence[Verdict]) -> str:
    """A line a pair of models."""
    header = ["first", "second", "difference", "low", "high", "p", "adjusted p", "detectable", "distinguishable"]
    rows = [
        [
            one.first,
            one.second,
            *_ends(one.found.difference),
            one.found.p_value,
            one.found.adjusted_p,
            one.found.detectable,
            one.found.is_distinguishable,
        ]
        for one in verdicts
    ]
    return _csv([header, *rows])


def scores_picture(standings: Sequence[Standing]) -> bytes:
    """PNG: exact match with intervals, a line a model."""
    ordered = sorted(standings, key=lambda one: one.exact.value)
    figure = Figure(figsize=(8, 1.4 + 0.4 * len(ordered)), dpi=120, facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    values = [100 * one.exact.value for one in ordered]
    axes.errorbar(
        values, range(len(ordered)), xerr=interval_bars([one.exact for one in ordered]), fmt="o", color=INK, capsize=4
    )
    axes.set_yticks(range(len(ordered)), [one.name for one in ordered])
    axes.set_xlabel("exact match, % (95 % interval over pictures)")
    return png(figure, axes)


def trade_off_picture(standings: Sequence[Standing]) -> bytes:
    """PNG: exact match against image tokens, and against the time of an answer."""
    figure = Figure(figsize=(11, 4.5), dpi=120, facecolor=PAPER, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    values = [100 * one.exact.value for one in standings]
    bars = interval_bars([one.exact for one in standings])
    for axes, x, label in (
        (left, [float(one.image_tokens) for one in standings], "image tokens a panorama"),
        (right, [1000 * one.latency_s for one in standings], "ms an answer"),
    ):
        axes.errorbar(x, values, yerr=bars, fmt="o", color=INK, capsize=4)
        for one, place, value in zip(standings, x, values, strict=True):
            axes.annotate(one.name, (place, value), xytext=(6, 6), textcoords="offset points", fontsize=8)
        axes.set_xlabel(label)
        axes.margins(0.15)
    left.set_ylabel("exact match, %")
    return png(figure, left, right)


def png(figure: Figure, *axes: Axes) -> bytes:
    """The figure as a file, its axes in the project's dress."""
    for one in axes:
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    with warnings.catch_warnings(record=True) as told:
        # Names may be of any script; a letter that no font has is a box, and needs no warning a letter.
        warnings.simplefilter("always")
        figure.draw_without_rendering()  # makes the labels of the axes
        for text in figure.findobj(Text):
            text.set_fontfamily(_families())
        told.clear()
        figure.savefig(stream, format="png")
    glyphs = [match for one in told if (match := re.match(r"Glyph (\d+) .* missing from font", str(one.message)))]
    tell_undrawn(chr(int(match[1])) for match in glyphs)
    return stream.getvalue()


@lru_cache(maxsize=1)
def _families() -> list[str]:
    """Matplotlib's own font, and those of ``drawing`` that are here, for the letters that it has not."""
    there = {Path(one.fname).name: one.name for one in fontManager.ttflist}
    fontManager.addfont(KOREAN)
    return ["DejaVu Sans", *(there[name] for name in WIDE_FONTS if name in there), "Noto Sans KR"]


def interval_bars(intervals: Sequence[Interval]) -> list[list[float]]:
    """Lengths below and above the values, in percent; 0 where there is no interval."""
    below = [0.0 if one.low is None else 100 * (one.value - one.low) for one in intervals]
    return [below, [0.0 if one.high is None else 100 * (one.high - one.value) for one in intervals]]


def _ends(interval: Interval | None) -> list[float | None]:
    """Empty cells where there is none."""
    return [None, None, None] if interval is None else [interval.value, interval.low, interval.high]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _csv(rows: Sequence[Sequence[object]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()
