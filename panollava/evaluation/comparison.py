"""Comparisons on the same questions: models with their scores and every two of them, settings over seeds, and reports.

Legend: ``Q`` questions.
"""

import csv
import io
import itertools
import math
import re
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from panollava.evaluation.drawing import KOREAN, WIDE_FONTS, warn_of_missing_glyphs
from panollava.evaluation.measure import find_measure
from panollava.evaluation.metrics import EXACT, METRICS, AnswerSet, Metric, Scores, compute_scores, find_metric
from panollava.evaluation.predictions import Prediction, as_scored
from panollava.evaluation.statistics import LEVEL, Comparison, Interval, compare_pairs, mean_interval, rounded
from panollava.evaluation.words import Words
from panollava.logs import counted

INK, PAPER = "#1f4e79", "white"
TESTS = (
    "p-values of a paired permutation test over pictures, after Holm's correction for the number of pairs; each "
    "difference has the interval of the same test at the same level."
)
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
T_800 = {1: 1.376, 2: 1.061, 3: 0.978, 4: 0.941, 5: 0.920, 6: 0.906, 7: 0.896, 8: 0.889, 9: 0.883, 10: 0.879}
"""Student's t at 97.5 % and 80 %, by degrees of freedom."""


@dataclass(frozen=True)
class Contender:
    """A model to compare."""

    name: str
    predictions: tuple[Prediction, ...]
    image_tokens: int  # tokens that a panorama takes in its language model


@dataclass(frozen=True)
class Standing:
    """A model's scores."""

    name: str
    exact: Interval
    captions: Scores  # BLEU, ROUGE-L, CIDEr
    image_tokens: int  # per panorama
    latency_s: float  # mean time of an answer

    @property
    def scores(self) -> dict[str, Interval]:
        """All of them by name, exact match first."""
        return {EXACT: self.exact, **self.captions.scores}


@dataclass(frozen=True)
class Verdict:
    """Two models compared."""

    first: str
    second: str
    found: Comparison  # the second less the first, with the correction for the number of pairs
    pairs: int  # number of pairs

    def __str__(self) -> str:
        found, pictures = self.found, counted(self.found.groups, "picture")
        if found.adjusted_p is None:
            same = "the same score" if found.groups == 1 else "the same score on each"
            return f"{self.first} and {self.second} are not distinguishable: {same} of {pictures}"
        value = found.difference.value
        numbers = f"{difference_text(found.difference)}, p = {rounded(found.adjusted_p, 4, LEVEL)}"
        if found.is_distinguishable:
            return f"{self.second} is {'better' if value > 0 else 'worse'} than {self.first}: {numbers}"
        if found.groups < found.least_groups:
            among = f" among {self.pairs} pairs of runs" if self.pairs > 1 else ""
            why = f"{pictures} cannot show any difference at 5 %{among}, it takes {found.least_groups} at least"
        elif found.groups_needed is None:
            why = "their means are equal, so no number of pictures can be named that would distinguish them"
        else:
            why = f"some {found.groups_needed:,} pictures would be needed to distinguish them"
        return f"{self.first} and {self.second} are not distinguishable: {numbers}; {why}"


def standings(contenders: Sequence[Contender], words: Words, measure: str = EXACT) -> list[Standing]:
    """Each model's scores with their intervals over pictures; `words` is how caption scores split texts."""
    found, metrics = [], [find_metric(name, "") for name in METRICS if name != "CLIP-score"]  # without pictures
    if (metric := find_measure(measure)).name not in METRICS:
        metrics.append(metric)
    for one in contenders:
        scores = compute_scores(AnswerSet(as_scored(one.predictions), words), metrics)
        latency_s = float(np.mean([each.latency_s for each in one.predictions]))
        found.append(Standing(one.name, scores.scores.pop(EXACT), scores, one.image_tokens, latency_s))
    return found


def verdicts(contenders: Sequence[Contender], words: Words, measure: str = EXACT) -> list[Verdict]:
    """Every two models compared on their questions by a metric that scores each answer; see ``find_measure``.

    Raises ValueError for fewer than two models, other questions, or a measure that is unknown or undefined on these.
    """
    if len(contenders) < 2:
        raise ValueError("A comparison needs two runs: name another one.")
    metric = find_measure(measure)
    asked = [one.sample_id for one in contenders[0].predictions]
    images = [one.image_id for one in contenders[0].predictions]
    scores = {one.name: _scores(one, asked, words, metric) for one in contenders}
    pairs = list(itertools.combinations(scores, 2))
    found = compare_pairs([(scores[first], scores[second]) for first, second in pairs], images, top=metric.top)
    return [Verdict(first, second, each, len(pairs)) for (first, second), each in zip(pairs, found, strict=True)]


def difference_text(difference: Interval) -> str:
    """A difference with its interval: in points of a share, else on the score's own scale."""
    factor, digits, unit = (100, 1, " points") if difference.top == 1 else (1, 3, "")
    text = f"{rounded(factor * difference.value, digits, sign='+')}{unit}"
    if difference.low is None or difference.high is None:
        return text
    low, high = (rounded(factor * end, digits, sign="+") for end in (difference.low, difference.high))
    return f"{text} ({low} to {high})"


def _scores(contender: Contender, asked: Sequence[str], words: Words, metric: Metric) -> np.ndarray:
    """``(Q,)`` in the order of ``asked``."""
    by_id = {one.sample_id: one for one in contender.predictions}
    if by_id.keys() != set(asked):
        missing = sorted(set(asked) ^ by_id.keys())
        raise ValueError(
            f"{contender.name} answered other questions than the first run ({len(missing)} differ, such as "
            f"{missing[0]}): evaluate all on one test set, with csv_input= or world_seed=."
        )
    answers = AnswerSet(as_scored([by_id[one] for one in asked]), words)
    if why := metric.unavailable(answers).get(metric.name):
        raise ValueError(
            f"measure={metric.name!r} is unavailable on these questions: {why}. Compare by another measure."
        )
    return metric.per_answer(answers)


@dataclass(frozen=True)
class Repeat:
    """A model of one setting, trained with one seed."""

    setting: tuple[str, ...]  # values of the keys in which settings differ
    correct: Mapping[str, float]  # question -> 1 where the answer was right, else 0
    scene_of: Mapping[str, str]  # question -> image id
    facts: Mapping[str, str] = field(default_factory=dict)  # further columns, the same for all seeds of a setting


def settings_table(repeats: Sequence[Repeat], keys: Sequence[str]) -> str:
    """Markdown: scores of each setting over its seeds, and every two settings compared.

    `keys` names the values in ``Repeat.setting``. Raises ValueError where models answered different questions.
    """
    groups = {one.setting: [each for each in repeats if each.setting == one.setting] for one in repeats}
    facts = list(dict.fromkeys(name for one in repeats for name in one.facts))
    head = [*keys, "seeds", "exact match, %", "interval by scene", "per seed, %", *facts]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for setting, members in groups.items():
        questions, scores = _mean_scores(members)
        interval = mean_interval(scores, [members[0].scene_of[one] for one in questions])
        own = ", ".join(f"{score:.1f}" for score in sorted(_seed_scores(members)))
        cells = [*setting, str(len(members)), f"{100 * interval.value:.1f}", interval.ends, own]
        lines.append(f"| {' | '.join([*cells, *(members[0].facts.get(name, '') for name in facts)])} |")
    return "\n".join([*lines, "", *_compared(groups)]) + "\n"


def _compared(groups: Mapping[tuple[str, ...], Sequence[Repeat]]) -> list[str]:
    """Markdown lines: differences, with their variation over scenes and over seeds."""
    pairs = list(itertools.combinations(groups, 2))
    if not pairs:
        return []
    scores = {setting: _mean_scores(members) for setting, members in groups.items()}
    questions = next(iter(scores.values()))[0]
    for setting, (others, _) in scores.items():
        if questions != others:
            raise ValueError(f"{setting} answered other questions than the first: evaluate all on one test set.")
    scene_of = next(iter(groups.values()))[0].scene_of
    lines = [
        "| second less first, with its interval by scene | p by scene | distinguishable by scene "
        "| 95 % interval by seed, of this pair alone | least visible by seed |",
        "|---|---|---|---|---|",
    ]
    tested = [(scores[first][1], scores[second][1]) for first, second in pairs]
    found = compare_pairs(tested, [scene_of[one] for one in questions])
    for (first, second), one in zip(pairs, found, strict=True):
        half, least = _seed_spread(groups[first], groups[second])
        by_seed = "– | –"
        if math.isfinite(half):
            middle = 100 * one.difference.value
            by_seed = f"{max(middle - half, -100):+.1f} to {min(middle + half, 100):+.1f} | {least:.1f}"
        p = "the same scores" if one.adjusted_p is None else rounded(one.adjusted_p, 4, LEVEL)
        name = f"{' '.join(second)} − {' '.join(first)}: {difference_text(one.difference)}"
        lines.append(f"| {name} | {p} | {'yes' if one.is_distinguishable else 'no'} | {by_seed} |")
    return [*lines, "", f"By scene: {TESTS}"]


def _mean_scores(repeats: Sequence[Repeat]) -> tuple[list[str], list[float]]:
    """The questions in one order, and the share of the seeds that answered each correctly."""
    questions = sorted(repeats[0].correct)
    if any(one.correct.keys() != repeats[0].correct.keys() for one in repeats):
        raise ValueError(f"The seeds of {repeats[0].setting} answered different questions: use one test set.")
    return questions, [statistics.fmean(one.correct[question] for one in repeats) for question in questions]


def _seed_scores(repeats: Sequence[Repeat]) -> list[float]:
    """Exact match of each seed, in percent."""
    return [100 * statistics.fmean(one.correct.values()) for one in repeats]


def _seed_spread(first: Sequence[Repeat], second: Sequence[Repeat]) -> tuple[float, float]:
    """Half of the 95 % interval of a difference over seeds, and the smallest difference found in four of five studies.

    Student's t for two groups of equal variance, in points; infinite with a single seed each, and where the seeds of
    each setting score the same, which leaves the variance unknown.
    """
    scores = [_seed_scores(group) for group in (first, second)]
    freedom = sum(len(group) - 1 for group in scores)
    squares = sum((score - statistics.fmean(group)) ** 2 for group in scores for score in group)
    if freedom == 0 or squares < 1e-18:
        return math.inf, math.inf
    error = math.sqrt(squares / freedom * sum(1 / len(group) for group in scores))
    place = min(freedom, max(T_975))
    return T_975[place] * error, (T_975[place] + T_800[place]) * error


def markdown(
    standings: Sequence[Standing], verdicts: Sequence[Verdict], title: str, words: Words, measure: str = EXACT
) -> str:
    """Both tables, best measure first, and the verdicts in words; `words` is how caption scores split texts."""
    names = list(dict.fromkeys([measure, *(name for one in standings for name in one.scores)]))
    rows = [["run", *names, "image tokens", "ms an answer"]]
    for one in sorted(standings, key=lambda one: -one.scores[measure].value):
        scores = [str(one.scores.get(name, "–")) for name in names]
        rows.append([one.name, *scores, str(one.image_tokens), f"{1000 * one.latency_s:.1f}"])
    lines = [f"# {title}", "", *markdown_lines(rows), ""]
    lines += [f"Scores have 95 % intervals over pictures, from five pictures on; words={words}. {TESTS}", ""]
    missing = {f"- {name} is unavailable: {why}" for one in standings for name, why in one.captions.unavailable.items()}
    lines += [*sorted(missing), ""] if missing else []
    return "\n".join([*lines, *(f"- {verdict}" for verdict in verdicts)]) + "\n"


def standings_csv(standings: Sequence[Standing]) -> str:
    """A line a model: each score with the ends of its interval."""
    names = list(dict.fromkeys(name for one in standings for name in one.scores))
    header = ["run", *(f"{name}{end}" for name in names for end in ("", " low", " high")), "image tokens", "latency s"]
    ends = [[end for name in names for end in _ends(one.scores.get(name))] for one in standings]
    rows = [[one.name, *own, one.image_tokens, one.latency_s] for one, own in zip(standings, ends, strict=True)]
    return csv_text([header, *rows])


def verdicts_csv(verdicts: Sequence[Verdict]) -> str:
    """A line a pair of models."""
    header = ["first", "second", "difference", "low", "high", "p", "adjusted p", "detectable", "distinguishable"]
    rows = [
        [first, second, *_ends(one.difference), one.p_value, one.adjusted_p, one.detectable, one.is_distinguishable]
        for first, second, one in ((verdict.first, verdict.second, verdict.found) for verdict in verdicts)
    ]
    return csv_text([header, *rows])


def _ends(interval: Interval | None) -> list[float | None]:
    return [None, None, None] if interval is None else [interval.value, interval.low, interval.high]


def markdown_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, the header first."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return [lines[0], "| " + " | ".join(["---"] * len(rows[0])) + " |", *lines[1:]]


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """The content of a CSV file."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def scores_picture(standings: Sequence[Standing], measure: str = EXACT) -> bytes:
    """PNG: the measure with intervals, a line a model."""
    ordered = sorted(standings, key=lambda one: one.scores[measure].value)
    found = [one.scores[measure] for one in ordered]
    figure = Figure(figsize=(8, 1.4 + 0.4 * len(ordered)), dpi=120, facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    axes.errorbar(shown(found), range(len(ordered)), xerr=interval_bars(found), fmt="o", color=INK, capsize=4)
    axes.set_yticks(range(len(ordered)), [one.name for one in ordered])
    axes.set_xlabel(f"{score_label(measure, found)} (95 % interval over pictures)")
    return png(figure, axes)


def trade_off_picture(standings: Sequence[Standing], measure: str = EXACT) -> bytes:
    """PNG: the measure against image tokens, and against the time of an answer."""
    figure = Figure(figsize=(11, 4.5), dpi=120, facecolor=PAPER, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    found = [one.scores[measure] for one in standings]
    values, bars = shown(found), interval_bars(found)
    for axes, x, label in (
        (left, [float(one.image_tokens) for one in standings], "image tokens a panorama"),
        (right, [1000 * one.latency_s for one in standings], "ms an answer"),
    ):
        axes.errorbar(x, values, yerr=bars, fmt="o", color=INK, capsize=4)
        for one, place, value in zip(standings, x, values, strict=True):
            axes.annotate(one.name, (place, value), xytext=(6, 6), textcoords="offset points", fontsize=8)
        axes.set_xlabel(label)
        axes.margins(0.15)
    left.set_ylabel(score_label(measure, found))
    return png(figure, left, right)


def score_label(name: str, scores: Sequence[Interval]) -> str:
    """A score's name for an axis, with its unit."""
    return f"{name}, %" if all(one.top == 1 for one in scores) else name


def shown(intervals: Sequence[Interval]) -> list[float]:
    """Values for an axis: shares in percent, others on the score's own scale."""
    return [_factor(one) * one.value for one in intervals]


def interval_bars(intervals: Sequence[Interval]) -> list[list[float]]:
    """Lengths of error bars below and above the ``shown`` values; 0 where there is no interval."""
    below = [0.0 if one.low is None else _factor(one) * (one.value - one.low) for one in intervals]
    return [below, [0.0 if one.high is None else _factor(one) * (one.high - one.value) for one in intervals]]


def _factor(score: Interval) -> int:
    return 100 if score.top == 1 else 1


def png(figure: Figure, *axes: Axes) -> bytes:
    """The figure as a PNG file, its axes with a light grid and no upper and right spine."""
    for one in axes:
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        # Names may be in any script. Matplotlib would warn once for each missing glyph.
        warnings.simplefilter("always")
        figure.draw_without_rendering()  # makes the labels of the axes
        for text in figure.findobj(Text):
            text.set_fontfamily(_families())
        caught.clear()
        figure.savefig(stream, format="png")
    glyphs = [match for one in caught if (match := re.match(r"Glyph (\d+) .* missing from font", str(one.message)))]
    warn_of_missing_glyphs(chr(int(match[1])) for match in glyphs)
    return stream.getvalue()


@lru_cache(maxsize=1)
def _families() -> list[str]:
    """Matplotlib's own font, and the installed ones of ``drawing`` for other letters."""
    there = {Path(one.fname).name: one.name for one in fontManager.ttflist}
    fontManager.addfont(KOREAN)
    return ["DejaVu Sans", *(there[name] for name in WIDE_FONTS if name in there), "Noto Sans KR"]
