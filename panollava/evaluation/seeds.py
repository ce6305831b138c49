"""Differences of settings over seeds of their training: the test, and which differences a number of seeds can show.

A setting is what models have in common that differ by the seed of their training alone.
"""

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from panollava.evaluation.statistics import LEVEL, Interval, holm, student, student_p

POWER = 0.8  # probability with which a difference is to be found
MOST_SEEDS = 1_000_000  # up to which the number that a difference needs is told
_ROUNDING = 1e-6  # share of a score's range up to which means differ by rounding: results keep six digits of a score
_ANGLES, _ROOTS = 32, 96  # points of the integral over the two settings' estimated variances


@dataclass(frozen=True)
class SeedComparison:
    """Two settings, compared by the scores of their seeds.

    There is no p-value, and the interval has no ends, where a setting has one seed, or where the seeds of each setting
    score the same, so that nothing is known of their spread.
    """

    difference: Interval  # mean score of the second less that of the first, at the level at which it was tested
    p_value: float | None
    adjusted_p: float | None  # after Holm's correction for the number of pairs
    seeds: tuple[int, int]
    spread: float | None  # standard deviation between the seeds of a setting, over both; None where it is unknown
    level: float  # at which this pair was tested

    @property
    def is_distinguishable(self) -> bool:
        """Whether the difference is significant at 5 % over all pairs."""
        return self.adjusted_p is not None and self.adjusted_p < LEVEL

    @property
    def detectable(self) -> float | None:
        """The smallest difference that as many seeds show with a power of 80 %; None where the spread is unknown."""
        return None if self.spread is None or min(self.seeds) < 2 else visible(min(self.seeds), self.spread, self.level)

    @property
    def seeds_needed(self) -> int | None:
        """Seeds of each setting that show this difference with a power of 80 %, more than there are if none is shown.

        None where that is unknown, the difference is one of rounding, or it takes ``MOST_SEEDS`` or more.
        """
        if self.spread is None or abs(self.difference.value) <= _ROUNDING * self.difference.top:
            return None
        needed = seeds_needed(self.spread, self.difference.value, self.level)
        if needed == MOST_SEEDS:
            return None
        return needed if self.is_distinguishable else max(needed, min(self.seeds) + 1)


def compare_seeds(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], *, top: float = 1.0
) -> list[SeedComparison]:
    """Second settings against first ones, each by the scores of its seeds, with Holm's correction for their number.

    Student's test with a variance of each setting's own: settings that have learnt spread less than those that have
    not, and a common variance would call too many differences significant. The seeds of two settings are not paired:
    models with the same seed share the order of their data and, unless their parts have the same shapes, no weights.

    Source: Welch 1947, The generalization of `Student's' problem when several different population variances are
        involved; Satterthwaite 1946 for the degrees of freedom.
    """
    errors = [_error(*pair) for pair in pairs]
    values = [statistics.fmean(second) - statistics.fmean(first) for first, second in pairs]
    p_values = [
        None if error is None else student_p(abs(value) / error[0], error[1])
        for value, error in zip(values, errors, strict=True)
    ]
    adjusted, levels = holm([1.0 if p is None else p for p in p_values])
    found = []
    for pair, value, error, p, after, level in zip(pairs, values, errors, p_values, adjusted, levels, strict=True):
        low = high = None
        if error is not None:
            half = student(level, error[1]) * error[0]
            low, high = max(value - half, -top), min(value + half, top)
        spread = spread_of(pair)
        seeds = len(pair[0]), len(pair[1])
        difference = Interval(value, low, high, top)
        found.append(SeedComparison(difference, p, None if p is None else after, seeds, spread, level))
    return found


def _error(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """Standard error of a difference of means, and its degrees of freedom; None where the spread is unknown."""
    if min(len(first), len(second)) < 2:
        return None
    shares = [statistics.variance(one) / len(one) for one in (first, second)]
    if sum(shares) < 1e-18:
        return None
    freedom = sum(shares) ** 2 / sum(
        share**2 / (len(one) - 1) for share, one in zip(shares, (first, second), strict=True)
    )
    return math.sqrt(sum(shares)), freedom


def seed_interval(scores: Sequence[float], *, top: float = 1.0) -> Interval:
    """Mean over seeds with Student's 95 % interval, within 0 to ``top``; no ends where the spread is unknown."""
    value, spread = statistics.fmean(scores), spread_of([scores])
    if spread is None:
        return Interval(value, None, None, top)
    half = student(LEVEL, len(scores) - 1) * spread / math.sqrt(len(scores))
    return Interval(value, max(value - half, 0.0), min(value + half, top), top)


def spread_of(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation between the seeds of a setting, over all settings; None where none has two that differ."""
    squares = sum(statistics.variance(one) * (len(one) - 1) for one in groups if len(one) > 1)
    return math.sqrt(squares / sum(len(one) - 1 for one in groups)) if squares > 1e-18 else None


def visible(seeds: int, spread: float, level: float = LEVEL) -> float:
    """The smallest difference of two settings that ``compare_seeds`` finds with a power of 80 %; infinite for one seed.

    Args:
        seeds: of each setting.
        spread: standard deviation between the seeds of a setting, the same for both.
        level: of the test.
    """
    return math.inf if seeds < 2 else _effect(seeds, level) * spread * math.sqrt(2 / seeds)


def seeds_needed(spread: float, difference: float, level: float = LEVEL) -> int:
    """Seeds of each setting for which ``visible`` is no larger than a difference, at most ``MOST_SEEDS``."""
    counts = range(1, MOST_SEEDS)
    return 1 + bisect_left(counts, True, key=lambda seeds: visible(seeds, spread, level) <= abs(difference))


@lru_cache(maxsize=4096)
def _effect(seeds: int, level: float) -> float:
    """A difference in units of its standard error that is found with a power of 80 %.

    Given the two estimated variances the difference is normal. Of two settings with the same spread, the first one's
    share of the sum of both variances has a beta distribution, here that of the squared sine of an angle, and is
    independent of the sum, which has a chi-squared one.
    """
    from scipy.special import ndtr  # as in `student`

    freedom = seeds - 1
    angles = (np.arange(_ANGLES) + 0.5) / _ANGLES * math.pi / 4  # the other half is the same, with the settings swapped
    own = np.sin(angles) ** 2
    critical = np.array([student(level, freedom / (share**2 + (1 - share) ** 2)) for share in own.tolist()])
    half = 5 / math.sqrt(freedom)  # ten standard deviations
    roots = np.linspace(max(1e-6, 1 - half), 1 + half, _ROOTS)  # of the mean of both variances, the true one being 1
    log_density = (2 * freedom - 1) * np.log(roots) - freedom * roots**2
    density = np.exp(log_density - log_density.max())
    log_weights = (freedom - 1) * np.log(np.sin(2 * angles))
    weights = np.exp(log_weights - log_weights.max())
    weights = np.outer(weights / weights.sum(), density / density.sum())
    bounds = np.outer(critical, roots)

    def power(effect: float) -> float:
        return float((weights * ndtr(effect - bounds)).sum())

    low, high = 0.0, 4.0
    while power(high) < POWER:
        low, high = high, 2 * high
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle) < POWER else (low, middle)
    return high
