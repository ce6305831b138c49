"""Comparisons on the same questions: models with their scores and every two of them, settings over seeds, and reports.

Legend: ``Q`` questions.
"""

import io
import itertools
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from panollava.disk import csv_text
from panollava.evaluation.drawing import KOREAN, WIDE_FONTS, warn_of_missing_glyphs
from panollava.evaluation.measure import Groups, find_measure
from panollava.evaluation.metrics import EXACT, METRICS, AnswerSet, Metric, Scores, compute_scores, find_metric
from panollava.evaluation.predictions import Prediction, as_scored
from panollava.evaluation.seeds import SeedComparison, compare_seeds, seed_interval
from panollava.evaluation.statistics import (
    LEVEL,
    Comparison,
    Interval,
    compare_pairs,
    mean_interval,
    rounded,
    sign_detectable,
)
from panollava.evaluation.words import Words
from panollava.logs import counted

INK, PAPER = "#1f4e79", "white"
FAST = "this ranks how fast, not how well"
TESTS = (
    "p-values of a paired permutation test over pictures, after Holm's correction for the number of pairs; each "
    "difference has the interval of the same test at the same level."
)
SEED_TESTS = (
    "p-values over seeds of Student's test with each setting's own variance (Welch's), by picture of a paired "
    "permutation test on the mean over seeds; both after Holm's correction for the number of pairs. Each difference "
    "has the intervals of the same tests at the same level. Settings differ where both tests are significant."
)


@dataclass(frozen=True)
class Contender:
    """A model to compare."""

    name: str
    predictions: tuple[Prediction, ...]
    image_tokens: int  # tokens that a panorama takes in its language model
    setting: Mapping[str, str] | None = None  # its values of the keys in which settings differ; None where unknown
    seed: str = ""  # of its training
    facts: Mapping[str, str] = field(default_factory=dict)  # further columns of its setting's table
    still_learning: bool | None = None  # whether it was when its training ended; None where that is unknown

    @property
    def label(self) -> str:
        """Name of its setting."""
        return ", ".join(f"{key}={value}" for key, value in (self.setting or {}).items())


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
    """Two models compared, or two settings with the seeds of their training."""

    first: str
    second: str
    found: Comparison  # the second less the first by picture, with the correction for the number of pairs
    pairs: int  # number of pairs
    seeds: SeedComparison | None = None  # the same over seeds; None of two models
    about: str = ""  # what two models show of settings, in words; empty of two settings
    still_learning: tuple[str, ...] = ()  # which of both were, or have a model that was, when training ended
    detectable: float | None = None  # smallest difference seen by picture with a power of 80 %; None if none can be

    @property
    def is_distinguishable(self) -> bool:
        """Whether the difference is significant at 5 % over all pairs: of settings over seeds and by picture."""
        return self.found.is_distinguishable and (self.seeds is None or self.seeds.is_distinguishable)

    def __str__(self) -> str:
        verdict = self._of_models() if self.seeds is None else self._of_settings(self.seeds)
        if not self.still_learning:
            return verdict
        were = "was" if len(self.still_learning) == 1 else "were"
        return f"{verdict}; {' and '.join(self.still_learning)} {were} still learning, so {FAST}"

    def _of_models(self) -> str:
        """The verdict on two trained models, which says that it is none on their settings."""
        found, pictures = self.found, counted(self.found.groups, "picture")
        alike = f"The trained models {self.first} and {self.second} are not distinguishable"
        if found.adjusted_p is None:
            each = "the same score" if found.groups == 1 else "the same score on each"
            return f"{alike}: {each} of {pictures}; {self.about}"
        if found.is_distinguishable:
            return f"Of these two trained models, {self._better}: {_with_p(found)}; {self.about}"
        return f"{alike}: {_with_p(found)}; {self._why_not_by_picture()}; {self.about}"

    def _of_settings(self, seeds: SeedComparison) -> str:
        """The verdict on two settings: by seed first, by picture second."""
        found, (one, other) = self.found, seeds.seeds
        by_picture = "the same score on each picture" if found.adjusted_p is None else _with_p(found)
        if seeds.adjusted_p is None:
            lone = [name for name, count in ((self.first, one), (self.second, other)) if count == 1]
            why = f"one seed of {' and '.join(lone)}" if lone else "the seeds of each score the same"
            models = "differ" if found.is_distinguishable else "are not distinguishable"
            return (
                f"About the settings {self.first} and {self.second} nothing is shown: {why}; these trained models "
                f"{models} by picture: {by_picture}"
            )
        count = f"{one} seeds each" if one == other else f"{one} and {other} seeds"
        over_seeds = f"{_with_p(seeds)}, {count}"
        if self.is_distinguishable:
            return f"{self._better} over seeds: {over_seeds}; by picture {by_picture}"
        alike = f"{self.first} and {self.second} are not distinguishable"
        if seeds.is_distinguishable:
            why = "" if found.adjusted_p is None else f"; {self._why_not_by_picture()}"
            return f"{alike} by picture: {by_picture}{why}; over seeds {over_seeds}"
        if (needed := seeds.seeds_needed) is not None:
            over_seeds += f"; some {needed:,} seeds each would be needed to distinguish them"
        models = ", where these trained models differ" if found.is_distinguishable else ""
        return f"{alike} over seeds: {over_seeds}; by picture{models} {by_picture}"

    @property
    def _better(self) -> str:
        return f"{self.second} is {'better' if self.found.difference.value > 0 else 'worse'} than {self.first}"

    def _why_not_by_picture(self) -> str:
        found = self.found
        if found.groups < found.least_groups:
            among = f" among {self.pairs} pairs of runs" if self.pairs > 1 else ""
            pictures = counted(found.groups, "picture")
            return f"{pictures} cannot show any difference at 5 %{among}, it takes {found.least_groups} at least"
        if found.groups_needed is None:
            return "their means are equal, so no number of pictures can be named that would distinguish them"
        return f"some {found.groups_needed:,} pictures would be needed to distinguish them"


def _with_p(found: Comparison | SeedComparison) -> str:
    """A difference, its interval and its p-value, which is not None."""
    assert found.adjusted_p is not None
    return f"{difference_text(found.difference)}, p = {rounded(found.adjusted_p, 4, LEVEL)}"


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
    """Every two settings compared or, where no setting has several seeds, every two models.

    The measure is a metric that scores each answer; see ``find_measure``. Raises ValueError for fewer than two models,
    other questions, or a measure that is unknown or undefined on these.
    """
    if len(contenders) < 2:
        raise ValueError("A comparison needs two runs: name another one.")
    metric, settings = find_measure(measure), by_setting(contenders)
    is_of_settings = len(settings) > 1
    members = settings if is_of_settings else {one.name: [one] for one in contenders}
    images = [one.image_id for one in contenders[0].predictions]
    scores = _all_scores(contenders, words, metric)
    of_all = {label: np.stack([scores[one.name] for one in own]) for label, own in members.items()}  # (seeds, Q)
    pairs = list(itertools.combinations(members, 2))
    by_question = {label: own.mean(axis=0) for label, own in of_all.items()}
    tested = [(by_question[first], by_question[second], images) for first, second in pairs]
    found = compare_pairs(tested, top=metric.top)
    over_seeds: Sequence[SeedComparison | None] = [None] * len(pairs)
    if is_of_settings:
        by_seed = {label: own.mean(axis=1).tolist() for label, own in of_all.items()}
        over_seeds = compare_seeds([(by_seed[first], by_seed[second]) for first, second in pairs], top=metric.top)
    learning = {label for label, own in members.items() if any(one.still_learning for one in own)}
    about = "" if is_of_settings else _about_settings(contenders)
    return [
        Verdict(
            *pair,
            found=each,
            pairs=len(pairs),
            seeds=of_seeds,
            about=about,
            still_learning=tuple(one for one in pair if one in learning),
            detectable=_detectable(each, len(images)),
        )
        for pair, each, of_seeds in zip(pairs, found, over_seeds, strict=True)
    ]


def _detectable(found: Comparison, questions: int) -> float | None:
    """The smallest difference that would be seen by picture; also where no picture, or each, differs."""
    if found.groups < found.least_groups:
        return None
    if found.difference.top != 1:
        return found.detectable or None
    return min(1.0, max(found.detectable, sign_detectable(found, questions)))


def by_setting(contenders: Sequence[Contender]) -> dict[str, list[Contender]]:
    """The models of each setting by its name, if a setting has several seeds; else nothing.

    Nothing either where settings are unknown, or a setting has two models of the same seed, which are no repetition.
    """
    found: dict[str, list[Contender]] = {}
    for one in contenders:
        found.setdefault(one.label, []).append(one)
    is_known = all(one.setting is not None for one in contenders)
    is_repeated = any(len(own) > 1 for own in found.values())
    is_each_once = all(len({one.seed for one in own}) == len(own) for own in found.values())
    return found if is_known and is_repeated and is_each_once else {}


def _about_settings(contenders: Sequence[Contender]) -> str:
    """What a comparison of models shows of their settings."""
    if by_setting(contenders):
        return "they are of one setting, with a seed each"
    why = "one seed each"
    names: dict[tuple[str, str], list[str]] = {}
    for one in contenders:
        names.setdefault((one.label, one.seed), []).append(one.name)
    if any(one.setting is None for one in contenders):
        why = "the config of a run is missing"
    elif twice := next((key for key, own in names.items() if len(own) > 1), None):
        label, seed = twice[0] or "the setting", f"seed {twice[1]}" if twice[1] else "no recorded seed"
        why = f"{label} has {len(names[twice])} models of {seed} ({', '.join(names[twice])}), name one of them"
    return f"about the settings nothing is shown: {why}"


def difference_text(difference: Interval) -> str:
    """A difference with its interval: in points of a share, else on the score's own scale."""
    factor, digits, unit = (100, 1, " points") if difference.top == 1 else (1, 3, "")
    text = f"{rounded(factor * difference.value, digits, sign='+')}{unit}"
    if difference.low is None or difference.high is None:
        return text
    low, high = (rounded(factor * end, digits, sign="+") for end in (difference.low, difference.high))
    return f"{text} ({low} to {high})"


def _all_scores(contenders: Sequence[Contender], words: Words, metric: Metric) -> dict[str, np.ndarray]:
    """Scores ``(Q,)`` of each model, in the order of the first one's questions."""
    asked = [one.sample_id for one in contenders[0].predictions]
    return {one.name: _scores(one, asked, words, metric) for one in contenders}


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


def settings_table(contenders: Sequence[Contender], words: Words, measure: str = EXACT) -> str:
    """Markdown: scores of each setting over its seeds, with intervals over seeds and over pictures.

    It is empty where ``by_setting`` finds no settings. Raises ValueError as ``verdicts`` does.
    """
    if not (settings := by_setting(contenders)):
        return ""
    metric = find_measure(measure)
    factor, digits, unit = (100, 1, ", %") if metric.top == 1 else (1, 3, "")
    scores = _all_scores(contenders, words, metric)
    images = [one.image_id for one in contenders[0].predictions]
    keys = list(contenders[0].setting or {})
    facts = list(dict.fromkeys(name for one in contenders for name in one.facts))
    head = [
        "seeds",
        f"{metric.name}{unit}",
        "interval by seed",
        "interval by picture",
        f"per seed{unit}",
        "image tokens",
    ]
    rows = [[*keys, *head, *facts]]
    for own in settings.values():
        of_seeds = np.stack([scores[one.name] for one in own])
        by_seed = seed_interval(of_seeds.mean(axis=1).tolist(), top=metric.top)
        by_picture = mean_interval(of_seeds.mean(axis=0), images, top=metric.top)
        each = ", ".join(f"{factor * score:.{digits}f}" for score in sorted(of_seeds.mean(axis=1).tolist()))
        cells = [str(len(own)), f"{factor * by_seed.value:.{digits}f}", by_seed.ends, by_picture.ends, each]
        values = [(own[0].setting or {})[key] for key in keys]
        rows.append([*values, *cells, str(own[0].image_tokens), *(own[0].facts.get(name, "") for name in facts)])
    return "\n".join(markdown_lines(rows)) + "\n"


def setting_scores(contenders: Sequence[Contender], words: Words, measure: str = EXACT) -> list[list[float]]:
    """Mean scores of the seeds of each setting that ``by_setting`` finds."""
    scores = _all_scores(contenders, words, find_measure(measure))
    return [[float(scores[one.name].mean()) for one in own] for own in by_setting(contenders).values()]


def verdict_lines(found: Sequence[Verdict], measure: str = EXACT) -> str:
    """Markdown: how was tested, and a line a verdict."""
    tests = SEED_TESTS if any(one.seeds is not None for one in found) else TESTS
    return "\n".join([f"By {measure}: {tests}", "", *(f"- {verdict}" for verdict in found)]) + "\n"


def markdown(standings: Sequence[Standing], judged: str, title: str, words: Words, measure: str = EXACT) -> str:
    """The table of scores, best measure first, and what follows from it; `words` is how caption scores split texts.

    `judged` is the Markdown of ``settings_table``, where there are settings, and of ``verdict_lines``.
    """
    names = list(dict.fromkeys([measure, *(name for one in standings for name in one.scores)]))
    rows = [["run", *names, "image tokens", "ms an answer"]]
    for one in sorted(standings, key=lambda one: -one.scores[measure].value):
        scores = [str(one.scores.get(name, "–")) for name in names]
        rows.append([one.name, *scores, str(one.image_tokens), f"{1000 * one.latency_s:.1f}"])
    lines = [f"# {title}", "", *markdown_lines(rows), ""]
    lines += [f"Scores have 95 % intervals over pictures, from five pictures on; words={words}.", ""]
    missing = {f"- {name} is unavailable: {why}" for one in standings for name, why in one.captions.unavailable.items()}
    lines += [*sorted(missing), ""] if missing else []
    return "\n".join([*lines, judged])


def standings_csv(standings: Sequence[Standing]) -> str:
    """A line a model: each score with the ends of its interval."""
    names = list(dict.fromkeys(name for one in standings for name in one.scores))
    header = ["run", *(f"{name}{end}" for name in names for end in ("", " low", " high")), "image tokens", "latency s"]
    ends = [[end for name in names for end in ends_of(one.scores.get(name))] for one in standings]
    rows = [[one.name, *own, one.image_tokens, one.latency_s] for one, own in zip(standings, ends, strict=True)]
    return csv_text([header, *rows])


def verdicts_csv(verdicts: Sequence[Verdict]) -> str:
    """A line a pair of models, or of settings with what was found over their seeds."""
    header = ["first", "second", "difference", "low", "high", "p", "adjusted p", "detectable", "distinguishable"]
    header += ["first seeds", "second seeds", "seed low", "seed high", "seed p", "seed adjusted p", "seed spread"]
    header.append("seed detectable")
    rows: list[list[object]] = []
    for verdict in verdicts:
        one, seeds = verdict.found, verdict.seeds
        numbers = [*ends_of(one.difference), one.p_value, one.adjusted_p, verdict.detectable]
        of_seeds: list[object] = [None] * 8
        if seeds is not None:
            ends = ends_of(seeds.difference)[1:]
            of_seeds = [*seeds.seeds, *ends, seeds.p_value, seeds.adjusted_p, seeds.spread, seeds.detectable]
        rows.append([verdict.first, verdict.second, *numbers, verdict.is_distinguishable, *of_seeds])
    return csv_text([header, *rows])


def ends_of(interval: Interval | None) -> list[float | None]:
    """Value, low and high end, as a line of a CSV has them."""
    return [None, None, None] if interval is None else [interval.value, interval.low, interval.high]


def group_tables(runs: Mapping[str, Groups], measure: str) -> str:
    """Markdown: for each column a table of the measure by run and group."""
    parts = []
    for name, members in next(iter(runs.values())).items():
        head = [f"{name}={value or 'empty'} ({one.count:,})" for value, one in members.items()]
        rows = [[run, *(str(one.scores[measure]) for one in groups[name].values())] for run, groups in runs.items()]
        parts += [f"{measure} by {name} (questions):", "", *markdown_lines([["run", *head], *rows]), ""]
    return "\n".join(parts)


def markdown_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, the header first."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return [lines[0], "| " + " | ".join(["---"] * len(rows[0])) + " |", *lines[1:]]


def scores_picture(standings: Sequence[Standing], measure: str = EXACT) -> dict[str, bytes]:
    """As ``drawn`` gives it: the measure with intervals, a line a model."""
    ordered = sorted(standings, key=lambda one: one.scores[measure].value)
    found = [one.scores[measure] for one in ordered]
    figure = Figure(figsize=(8, 1.4 + 0.4 * len(ordered)), dpi=120, facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    axes.errorbar(shown(found), range(len(ordered)), xerr=interval_bars(found), fmt="o", color=INK, capsize=4)
    axes.set_yticks(range(len(ordered)), [one.name for one in ordered])
    axes.set_xlabel(f"{score_label(measure, found)} (95 % interval over pictures)")
    return drawn(figure, axes)


def trade_off_picture(standings: Sequence[Standing], measure: str = EXACT) -> dict[str, bytes]:
    """As ``drawn`` gives it: the measure against image tokens, and against the time of an answer."""
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
    return drawn(figure, left, right)


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


def drawn(figure: Figure, *axes: Axes) -> dict[str, bytes]:
    """The figure as a PNG and as an SVG file, its axes with a light grid and no upper and right spine.

    Text of the SVG stays text, with the fonts of the PNG and whatever a viewer has for letters that these lack. The
    same figure gives the same bytes.
    """
    for one in axes:
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    files = {"png": io.BytesIO(), "svg": io.BytesIO()}
    with warnings.catch_warnings(record=True) as caught:
        # Names may be in any script. Matplotlib would warn once for each missing glyph.
        warnings.simplefilter("always")
        figure.draw_without_rendering()  # makes the labels of the axes
        for text in figure.findobj(Text):
            text.set_fontfamily(_families())
        caught.clear()
        figure.savefig(files["png"], format="png")
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "panollava"}):
            figure.savefig(files["svg"], format="svg", metadata={"Date": None})
    glyphs = [match for one in caught if (match := re.match(r"Glyph (\d+) .* missing from font", str(one.message)))]
    warn_of_missing_glyphs(chr(int(match[1])) for match in glyphs)
    return {kind: stream.getvalue() for kind, stream in files.items()}


@lru_cache(maxsize=1)
def _families() -> list[str]:
    """Matplotlib's own font, and the installed ones of ``drawing`` for other letters."""
    there = {Path(one.fname).name: one.name for one in fontManager.ttflist}
    fontManager.addfont(KOREAN)
    return ["DejaVu Sans", *(there[name] for name in WIDE_FONTS if name in there), "Noto Sans KR"]
