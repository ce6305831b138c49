"""Writes the tables and the picture of the study, out of ``contrasts.yaml`` and ``raw/``: ``python -m
experiments.decisive.report``.

``rows.csv`` has a line a job, ``table.md`` the arms and the verdicts on the written contrasts, ``decisive.png`` and
``.svg`` show both. Jobs that are missing are said to be.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

from experiments.decisive.results import Contrast, Result, Study, read_results, read_study
from panollava.disk import csv_text, write_file
from panollava.evaluation.comparison import FAST, INK, PAPER, difference_text, drawn, markdown_lines
from panollava.evaluation.seeds import SeedComparison, compare_seeds, seed_interval, spread_of, visible
from panollava.evaluation.statistics import LEVEL, Comparison, compare_pairs, rounded
from panollava.logs import counted

NOT_LEARNT = {"yes": "still learning", "unknown": "perhaps still learning"}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """A contrast with its tests over seeds and by picture, which are corrected for the number of all contrasts."""

    contrast: Contrast
    first: Sequence[Result]
    second: Sequence[Result]
    seeds: SeedComparison | None  # None while an arm has fewer than two seeds
    pictures: Comparison | None  # of the means over seeds
    wanted: int  # seeds that each arm shall have

    @property
    def word(self) -> str:
        """The verdict by seed."""
        if self.seeds is None or self.seeds.adjusted_p is None:
            return "not tested yet"
        if self.seeds.is_distinguishable:
            return "better" if self.seeds.difference.value > 0 else "worse"
        needed = self.seeds.seeds_needed
        return "cannot tell" if needed is None else f"cannot tell (would need {needed:,} seeds each)"

    @property
    def notes(self) -> str:
        """What bounds the verdict: jobs that are missing or were still learning."""
        found = []
        if lacking := sum(self.wanted - len(own) for own in (self.first, self.second)):
            found.append(f"{counted(lacking, 'job')} missing")
        arms = {self.contrast.first: self.first, self.contrast.second: self.second}
        found += learning_marks({name: [one.learning for one in own] for name, own in arms.items()})
        return "; ".join(found)


def learning_marks(verdicts: Mapping[str, Sequence[str]]) -> list[str]:
    """What bounds a verdict on arms, by whether each of their jobs was still learning: yes, no or unknown."""
    found = [
        f"{own.count(word)} of {len(own)} of {name} {said}"
        for name, own in verdicts.items()
        for word, said in NOT_LEARNT.items()
        if word in own
    ]
    words = {word for own in verdicts.values() for word in own}
    if "yes" in words:
        found.append(f"no verdict on quality: {FAST}")
    return [*found, f"perhaps {FAST}"] if "unknown" in words and "yes" not in words else found


def judge(study: Study, results: Sequence[Result]) -> list[Judged]:
    """Every written contrast; those that cannot be tested yet count in Holm's correction all the same."""
    own = {arm: [one for one in results if one.arm == arm] for arm in study.arms}
    is_ready = [min(len(own[one.first]), len(own[one.second])) > 1 for one in study.contrasts]
    open_by_seed, open_by_picture = ([0.0], [0.0]), (np.zeros(1), np.zeros(1))  # no p-value: they count as p = 1
    groups = [""]
    if results:
        groups = [str(picture) for picture, count in enumerate(results[0].asked) for _ in range(count)]
        open_by_picture = np.zeros(len(groups)), np.zeros(len(groups))
    by_seed, by_picture = [], []
    for one, ready in zip(study.contrasts, is_ready, strict=True):
        first, second = own[one.first], own[one.second]
        by_seed.append((_scores(first), _scores(second)) if ready else open_by_seed)
        of_pictures = (_by_question(first), _by_question(second)) if ready else open_by_picture
        by_picture.append((*of_pictures, groups))
    found = zip(compare_seeds(by_seed), compare_pairs(by_picture), strict=True)
    return [
        Judged(
            contrast=one,
            first=own[one.first],
            second=own[one.second],
            seeds=of_seeds if ready else None,
            pictures=of_pictures if ready else None,
            wanted=len(study.seeds),
        )
        for one, ready, (of_seeds, of_pictures) in zip(study.contrasts, is_ready, found, strict=True)
    ]


def _scores(results: Sequence[Result]) -> list[float]:
    """From the counts: the recorded score has six digits."""
    return [sum(one.right) / sum(one.asked) for one in results]


def _by_question(results: Sequence[Result]) -> np.ndarray:
    """``(Q,)``, the mean over seeds, with a picture's right answers spread evenly over its questions.

    The test by picture sums over the questions of a picture, so it is that of the answers themselves.
    """
    asked = np.array(results[0].asked)
    share = np.mean([one.right for one in results], axis=0) / asked
    return np.repeat(share, asked)


def markdown(study: Study, results: Sequence[Result], judged: Sequence[Judged]) -> str:
    """The verdicts, the arms, question types, and what was still learning."""
    named = {word: [one.name for one in results if one.learning == word] for word in NOT_LEARNT}
    learning, unknown = named.values()
    of_unknown = f" Not known of {counted(len(unknown), 'job')}: {', '.join(unknown)}." if unknown else ""
    parts = [
        f"{len(results)} of {len(study.jobs)} jobs have results. {counted(len(learning), 'job')} still learning when "
        f"training ended{': ' + ', '.join(learning) if learning else ''}.{of_unknown}{_unlike(results)}",
        "## The written contrasts",
        _tests(study, results),
        "\n".join(markdown_lines(_verdict_rows(judged))),
    ]
    if results:
        parts += ["## The arms", "\n".join(markdown_lines(_arm_rows(study, results)))]
        parts += ["## By question type", "\n".join(markdown_lines(_kind_rows(study, results)))]
    return "\n\n".join(parts) + "\n"


def _unlike(results: Sequence[Result]) -> str:
    """What jobs were made with that is not the same for all, in a sentence; empty where there is nothing."""
    parts = []
    for key in results[0].made_with if results else ():
        counts = Counter(one.made_with[key] or "not recorded" for one in results)
        if len(counts) > 1:
            shown = ", ".join(f"{value} ({counted(number, 'job')})" for value, number in counts.items())
            parts.append(f"{key} is {shown}")
    return f" The jobs were not all made alike: {'; '.join(parts)}." if parts else ""


def _tests(study: Study, results: Sequence[Result]) -> str:
    """How was tested, and what that can see."""
    count = len(study.contrasts)
    scores = [_scores([one for one in results if one.arm == arm]) for arm in study.arms]
    spread = spread_of([own for own in scores if own])
    seen = ""
    if spread is not None:
        smallest = visible(len(study.seeds), spread, LEVEL / count)
        seen = (
            f" The seeds of an arm have a standard deviation of {100 * spread:.2f} points: with {len(study.seeds)} of "
            f"them each, one contrast of {count} is found in 80 % of studies from {100 * smallest:.1f} points on."
        )
    return (
        "Second arm less first arm, exact match in points. p is of Welch's test over seeds, after Holm's correction "
        f"for all {count} contrasts, those without results included; the interval is at the level of its test. The "
        "verdict is by seed alone; by picture, a paired permutation test on the means over seeds says whether these "
        f"trained models differ.{seen}"
    )


def _verdict_rows(judged: Sequence[Judged]) -> list[list[str]]:
    rows = [["about", "second arm", "first arm", "difference over seeds", "p", "p by picture", "verdict", "notes"]]
    for one in judged:
        difference = p = p_picture = "–"
        if one.seeds is not None:
            difference, p = difference_text(one.seeds.difference), _p(one.seeds.adjusted_p)
            p_picture = "–" if one.pictures is None else _p(one.pictures.adjusted_p)
        arms = one.contrast.second, one.contrast.first
        rows.append([one.contrast.about, *arms, difference, p, p_picture, f"**{one.word}**", one.notes])
    return rows


def _p(value: float | None) -> str:
    return "–" if value is None else rounded(value, 4, LEVEL)


def _arm_rows(study: Study, results: Sequence[Result]) -> list[list[str]]:
    head = ["arm", "seeds", "exact match, %", "per seed, %", "image tokens", "parameters", "minutes", "still learning"]
    rows = [head]
    for arm in study.arms:
        if own := [one for one in results if one.arm == arm]:
            mean = seed_interval([one.exact_match for one in own])
            ends = "" if mean.low is None else f" ({mean.ends.replace(' to ', '–')})"
            each = ", ".join(f"{100 * one.exact_match:.1f}" for one in own)
            minutes = fmean(sum(one.seconds.values()) for one in own) / 60
            facts = [str(own[0].image_tokens), f"{own[0].resampler_parameters:,}", f"{minutes:.1f}"]
            marked, unknown = (sum(one.learning == word for one in own) for word in NOT_LEARNT)
            cell = f"{marked}, unknown {unknown}" if unknown else str(marked)
            rows.append([arm, str(len(own)), f"{100 * mean.value:.1f}{ends}", each, *facts, cell])
    return rows


def _kind_rows(study: Study, results: Sequence[Result]) -> list[list[str]]:
    kinds = sorted({kind for one in results for kind in one.kinds})
    rows = [["arm", *kinds]]
    for arm in study.arms:
        if own := [one for one in results if one.arm == arm]:
            shares = [fmean(one.kinds[kind][0] / one.kinds[kind][1] for one in own) for kind in kinds]
            rows.append([arm, *(f"{100 * share:.1f}" for share in shares)])
    return rows


def rows_csv(results: Sequence[Result]) -> str:
    """A line a job."""
    stages = list(dict.fromkeys(stage for one in results for stage in one.seconds))
    kinds = sorted({kind for one in results for kind in one.kinds})
    plain = ["arm", "seed", "exact_match", "image_tokens", "resampler_parameters", "latency_s"]
    last = ["learning", "learning_why", "commit", "processor"]
    head = [*plain, *kinds, *(f"{stage}_{end}" for stage in stages for end in ("seconds", "loss")), *last]
    rows: list[list[object]] = [
        [
            *(getattr(one, name) for name in plain),
            *(f"{one.kinds[kind][0] / one.kinds[kind][1]:.4f}" if kind in one.kinds else "" for kind in kinds),
            *(part.get(stage, "") for stage in stages for part in (one.seconds, one.losses)),
            *(getattr(one, name) for name in last),
        ]
        for one in results
    ]
    return csv_text([head, *rows])


def picture(study: Study, results: Sequence[Result], judged: Sequence[Judged]) -> dict[str, bytes]:
    """As ``drawn`` gives it: each arm's seeds and mean, and the difference of each contrast with its interval."""
    arms = [arm for arm in study.arms if any(one.arm == arm for one in results)]
    tested = [one for one in judged if one.seeds is not None]
    height = 1.4 + 0.3 * max(len(arms), len(judged))
    figure = Figure(figsize=(13, height), dpi=120, facecolor=PAPER, layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, arm in enumerate(reversed(arms)):
        own = [one for one in results if one.arm == arm]
        for one in own:
            face = "0.6" if one.learning == "no" else "none"
            left.plot(100 * one.exact_match, place, "o", color="0.6", markerfacecolor=face, markersize=5)
        left.plot(100 * fmean(one.exact_match for one in own), place, "|", color=INK, markersize=14, markeredgewidth=2)
    left.set_yticks(range(len(arms)), list(reversed(arms)))
    left.set_xlabel("exact match, %: seeds and mean\n(hollow: still learning, or unknown)")
    for place, contrast in enumerate(reversed(tested)):
        assert contrast.seeds is not None
        found = contrast.seeds.difference
        color = INK if contrast.seeds.is_distinguishable else "0.55"
        face = color if all(one.learning == "no" for one in (*contrast.first, *contrast.second)) else "none"
        right.plot(100 * found.value, place, "o", color=color, markerfacecolor=face)
        if found.low is not None and found.high is not None:
            right.plot([100 * found.low, 100 * found.high], [place, place], color=color, linewidth=1.5)
    right.set_yticks(
        range(len(tested)), [f"{one.contrast.second} less {one.contrast.first}" for one in reversed(tested)]
    )
    right.axvline(0, color="0.3", linewidth=0.8)
    right.set_xlabel(
        "points, with the interval of the corrected test\n(dark: the arms differ; hollow: with jobs still learning)"
    )
    return drawn(figure, left, right)


def write_report(study: Study) -> str:
    """Writes all files into the study's folder; returns the text of ``table.md``."""
    results = read_results(study)
    judged = judge(study, results)
    text = markdown(study, results, judged)
    write_file(study.folder / "table.md", text)
    if results:
        write_file(study.folder / "rows.csv", rows_csv(results))
        for kind, content in picture(study, results, judged).items():
            write_file(study.folder / f"decisive.{kind}", content)
    return text


def main() -> None:
    """Writes the report."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        logger.info("%s", write_report(read_study()))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
