"""Settings that were trained with several seeds each, compared on the same questions: two sources of chance."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from panollava.evaluation.comparison import difference_text
from panollava.evaluation.comparison_report import TESTS
from panollava.evaluation.statistics import LEVEL, compare_pairs, mean_interval, rounded

T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
T_800 = {1: 1.376, 2: 1.061, 3: 0.978, 4: 0.941, 5: 0.920, 6: 0.906, 7: 0.896, 8: 0.889, 9: 0.883, 10: 0.879}
"""Student's t at 97.5 % and 80 %, by degrees of freedom."""


@dataclass(frozen=True)
class Repeat:
    """A model of one setting and one seed.

    Attributes:
        setting: values of the keys that tell the settings apart.
        correct: question -> 1 where the answer was right.
        scene_of: question -> the picture it is about.
        facts: further columns, the same for all seeds of a setting.
    """

    setting: tuple[str, ...]
    correct: Mapping[str, float]
    scene_of: Mapping[str, str]
    facts: Mapping[str, str] = field(default_factory=dict)


def settings_table(repeats: Sequence[Repeat], keys: Sequence[str]) -> str:
    """Markdown: scores of each setting over its seeds, and every two settings compared.

    Args:
        repeats: the models.
        keys: names of what ``Repeat.setting`` holds.

    Raises:
        ValueError: they were not all asked the same questions.
    """
    groups: dict[tuple[str, ...], list[Repeat]] = {}
    for one in repeats:
        groups.setdefault(one.setting, []).append(one)
    facts = list(dict.fromkeys(name for one in repeats for name in one.facts))
    head = [*keys, "seeds", "exact match, %", "interval by scene", "per seed, %", *facts]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for setting, members in groups.items():
        questions, scores = mean_scores(members)
        interval = mean_interval(scores, [members[0].scene_of[one] for one in questions])
        own = sorted(100 * statistics.fmean(one.correct.values()) for one in members)
        cells = [
            *setting,
            str(len(members)),
            f"{100 * interval.value:.1f}",
            interval.ends,
            ", ".join(f"{score:.1f}" for score in own),
            *(members[0].facts.get(name, "") for name in facts),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_comparisons(groups)]) + "\n"


def _comparisons(groups: Mapping[tuple[str, ...], Sequence[Repeat]]) -> list[str]:
    """Markdown lines: differences with both their sources of chance, the scenes and the seeds."""
    pairs = list(itertools.combinations(groups, 2))
    if not pairs:
        return []
    scores = {setting: mean_scores(members) for setting, members in groups.items()}
    questions = next(iter(scores.values()))[0]
    for setting, (others, _) in scores.items():
        if questions != others:
            raise ValueError(f"{setting} was asked other questions than the first: give all the same test set.")
    scene_of = next(iter(groups.values()))[0].scene_of
    tested = [(scores[first][1], scores[second][1]) for first, second in pairs]
    lines = [
        "| second less first, with its interval by scene | p by scene | distinguishable by scene "
        "| 95 % interval by seed, of this pair alone | least visible by seed |",
        "|---|---|---|---|---|",
    ]
    found = compare_pairs(tested, [scene_of[one] for one in questions])
    for (first, second), one in zip(pairs, found, strict=True):
        half, least = seed_spread(groups[first], groups[second])
        by_seed, visible = "–", "–"
        if math.isfinite(half):
            low, high = (100 * one.difference.value + end for end in (-half, half))
            by_seed, visible = f"{max(low, -100):+.1f} to {min(high, 100):+.1f}", f"{least:.1f}"
        p = "the same scores" if one.adjusted_p is None else rounded(one.adjusted_p, 4, LEVEL)
        verdict = "yes" if one.is_distinguishable else "no"
        name = f"{' '.join(second)} − {' '.join(first)}"
        lines.append(f"| {name}: {difference_text(one.difference)} | {p} | {verdict} | {by_seed} | {visible} |")
    return [*lines, "", f"By scene: {TESTS}"]


def mean_scores(repeats: Sequence[Repeat]) -> tuple[list[str], list[float]]:
    """The questions in one order, and how often each was answered rightly over the seeds."""
    questions = sorted(repeats[0].correct)
    if any(one.correct.keys() != repeats[0].correct.keys() for one in repeats):
        raise ValueError(f"The seeds of {repeats[0].setting} were asked different questions: give all one test set.")
    return questions, [statistics.fmean(one.correct[question] for one in repeats) for question in questions]


def seed_spread(first: Sequence[Repeat], second: Sequence[Repeat]) -> tuple[float, float]:
    """Half of the 95 % interval of a difference over seeds, and the smallest that four of five such studies would see.

    Student's t for two groups of one variance, in points; infinite with a single seed each, and where the scores of all
    seeds are equal, so that they tell no variance.
    """
    scores = [[100 * statistics.fmean(one.correct.values()) for one in group] for group in (first, second)]
    freedom = sum(len(group) - 1 for group in scores)
    squares = sum((score - statistics.fmean(group)) ** 2 for group in scores for score in group)
    if freedom == 0 or squares < 1e-18:
        return math.inf, math.inf
    error = math.sqrt(squares / freedom * sum(1 / len(group) for group in scores))
    place = min(freedom, max(T_975))
    return T_975[place] * error, (T_975[place] + T_800[place]) * error
