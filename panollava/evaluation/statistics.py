"""Intervals of scores and tests of paired differences, over pictures and not over questions.

Questions about one picture are not independent, so a picture with all its questions is one sample. Legend: ``Q``
questions, ``G`` groups (pictures or scenes), ``R`` ways to swap two models' answers.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from panollava.logs import LOG, counted

LEVEL = 0.05  # risk that an interval misses the truth, or that a comparison sees a difference where there is none
FEWEST = 5  # groups below which there is no interval
SWAPS = 10_000  # number of random swaps where there are more; p-values are then multiples of its inverse
_BLOCK = 4_000_000  # signs, or differences of pairs, at once: all of them would not fit into memory
_SILENT_S = 10.0  # seconds after which the progress of tests is logged
_ROUNDING = 1e-9  # share of a score's range below which a difference is one of rounding
_DOUBT = 2  # weight, in groups, of the assumption that all answers of a group are alike
_EDGE = 1e-3  # share of a score's range from its ends within which the variance over groups is not used


@dataclass(frozen=True)
class Interval:
    """A value with its interval; no ends where there are too few pictures, or a difference is the same on all."""

    value: float
    low: float | None
    high: float | None
    top: float = 1.0  # the highest possible value; 1 for a share, which is shown in percent

    def __str__(self) -> str:
        """In percent where it is a share, else on its own scale."""
        value = f"{100 * self.value:.1f} %" if self.top == 1 else f"{self.value:.3f}"
        return f"{value} ({self.ends})" if self.low is not None else value

    @property
    def ends(self) -> str:
        """The interval on the scale of ``str``, a dash where there is none."""
        if self.low is None or self.high is None:
            return "–"
        factor, digits = (100, 1) if self.top == 1 else (1, 3)
        return f"{factor * self.low:.{digits}f} to {factor * self.high:.{digits}f}"


@dataclass(frozen=True)
class Comparison:
    """Two models on the same questions.

    The interval is at the level at which this pair was tested. It holds 0 where ``is_distinguishable`` is false, and
    never where it is true. There is none where there are too few groups for any difference to be significant, where the
    models do not differ, and where the difference is the same in all groups.
    """

    difference: Interval  # mean score of the second less that of the first
    p_value: float | None  # of a difference at least as large; None where both have the same score in each group
    adjusted_p: float | None  # the same after Holm's correction for the number of pairs
    detectable: float  # smallest difference that this many groups show with a power of 80 %
    groups: int  # number of groups
    least_groups: int  # with fewer, no difference is significant at this level

    @property
    def is_distinguishable(self) -> bool:
        """Whether the difference is significant at 5 % over all pairs."""
        return self.adjusted_p is not None and self.adjusted_p < LEVEL

    @property
    def groups_needed(self) -> int | None:
        """Groups that show this difference with a power of 80 %, more than there are if it is not significant."""
        if abs(self.difference.value) <= _ROUNDING * self.difference.top:
            return None
        needed = max(self.least_groups, math.ceil(self.groups * (self.detectable / self.difference.value) ** 2))
        return needed if self.is_distinguishable else max(needed, self.groups + 1)


def mean_interval(scores: Sequence[float] | np.ndarray, groups: Sequence[str], *, top: float = 1.0) -> Interval:
    """Mean of scores ``(Q,)`` from 0 to ``top``, which may be infinite, with a 95 % interval; see ``interval_of``.

    Raises ValueError where there are no scores, or the two differ in length.
    """
    values = np.asarray(scores, dtype=np.float64)
    counts = np.stack([values, np.ones(len(values))], axis=1)
    is_share = bool(np.isin(values, (0.0, top)).all())
    return interval_of(counts, groups, lambda sums: sums[:, 0] / sums[:, 1], top=top, is_share=is_share)


def interval_of(
    counts: np.ndarray,
    groups: Sequence[str],
    score: Callable[[np.ndarray], np.ndarray],
    *,
    top: float = 1.0,
    value: float | None = None,
    is_share: bool = False,
) -> Interval:
    """A score of sums, with its 95 % interval over groups.

    Wilson's interval for a share, with the number of independent answers whose variance equals that of the jackknife
    over groups, and with Student's quantile because that variance is estimated. It lies within the range of the score.
    Where the groups do not differ (all right, all wrong) the variance is unknown, and each group counts as one answer.
    Near such an end few groups determine it: for right and wrong answers the variance is a weighted mean of the
    estimate, once for each group with the rarer kind, and of that of groups that are wholly right or wrong, ``_DOUBT``
    times.

    Args:
        counts: ``(Q, C)``, to be summed.
        groups: ``(Q,)``, which picture each row belongs to.
        score: sums ``(R, C)`` -> scores ``(R,)`` from 0 to ``top``.
        top: the highest possible score; infinite where there is none.
        value: the score of all, where ``score`` only approximates it.
        is_share: the first column is 0 where an answer is wrong and ``top`` where it is right.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference; Korn and Graubard 1998,
        Confidence intervals for proportions with small expected number of positive counts (the effective number of
        answers, Student's quantile); Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 11.5
        (jackknife); Kish 1965, Survey Sampling, section 11.7 (the number of groups, where they are not of one size).
    """
    sums, sizes = _by_group(counts, groups), _by_group(np.ones((len(counts), 1)), groups)[:, 0]
    if value is None:
        value = float(score(sums.sum(axis=0, keepdims=True))[0])
    value = min(max(value, 0.0), top)
    if len(sums) < FEWEST:
        return Interval(value, None, None, top)
    variance = float((len(sums) - 1) * score(sums.sum(axis=0) - sums).var())
    alike = sizes.sum() ** 2 / (sizes**2).sum()
    most = value * (1 - value / top)
    if is_share:
        rarer = min(np.sum(sums[:, 0] > 0), np.sum(sums[:, 0] < top * sizes))
        variance = max(variance, most * top / len(counts))
        variance = (rarer * variance + _DOUBT * max(variance, most * top / alike)) / (rarer + _DOUBT)
    # Ends are where the square of the distance from the value is `scale` times end * (1 - end / top).
    if most > (0.0 if math.isinf(top) else _EDGE * top) and variance > (_ROUNDING * value) ** 2:
        scale = student(LEVEL, len(sums) - 1) ** 2 * variance / most
    elif math.isinf(top):
        return Interval(value, None, None, top)
    else:
        scale = normal(LEVEL) ** 2 * top / alike
    middle, shrink = value + scale / 2, 1 + scale / top
    half = math.sqrt(max(0.0, middle**2 - shrink * value**2))
    low, high = (middle - half) / shrink, (middle + half) / shrink
    return Interval(value, min(max(low, 0.0), value), max(min(high, top), value), top)


def compare_pairs(
    pairs: Sequence[tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray, Sequence[str] | np.ndarray]],
    *,
    top: float = 1.0,
    swaps: int | None = None,
) -> list[Comparison]:
    """Second models against first ones, question by question, with Holm's correction for the number of pairs.

    A permutation test that swaps the two models' answers to all questions about a picture: every permutation where
    there are at most `swaps`, so that the p-value is exact, else so many random ones. The interval holds the
    differences that the test does not reject, at the level at which Holm's procedure tested this pair.

    Args:
        pairs: scores ``(Q,)`` of one model, those of the other on the same questions in the same order, and which
            picture each question belongs to.
        top: largest score.
        swaps: random swaps of each test; None for enough that a quarter of the smallest level can be reached.

    Raises:
        ValueError: there are no scores, or those of a pair differ in length.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure; Efron and Tibshirani 1993, An
        Introduction to the Bootstrap, section 15.2; Phipson and Smyth 2010, Permutation p-values should never be zero
        (the observed difference counts as one of the random swaps).
    """
    tests, swaps = [], SWAPS * math.ceil(len(pairs) / 50) if swaps is None else swaps
    numbers: dict[int, np.ndarray] = {}  # of the groups of each question; most pairs have the same ones
    for first, second, groups in pairs:
        if len(first) != len(second):
            raise ValueError(f"Two models are compared on the same questions, not on {len(first)} and {len(second)}.")
        differences = np.asarray(second, dtype=np.float64) - np.asarray(first)
        if id(groups) not in numbers:
            numbers[id(groups)] = np.unique(np.asarray(groups), return_inverse=True)[1]
        tests.append(_Test(differences, numbers[id(groups)], top, swaps))
    # Which of the largest swaps an interval needs is known after all p-values: so they are drawn twice, and not kept.
    for own, means in _swapped_means([one for one in tests if one.differs], "p-values"):
        for one, reached in zip(own, (means >= [one.bound for one in own]).sum(axis=0).tolist(), strict=True):
            one.reached += reached
    adjusted, levels = holm([1.0 if one.p_value is None else one.p_value for one in tests])
    for one, level in zip(tests, levels, strict=True):
        one.level = level
    for own, means in _swapped_means([one for one in tests if one.has_interval], "intervals"):
        for one, its in zip(own, means.T, strict=True):
            one.keep_largest(its)
    return [one.comparison(p) for one, p in zip(tests, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> tuple[list[float], list[float]]:
    """p-values corrected for their number, and the level at which each was tested.

    The smallest is multiplied by their number, the next by one less, and so on, and none is smaller than the one before
    it. The first that is not rejected and all after it are tested at its level.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, levels = [0.0] * len(p_values), [LEVEL] * len(p_values)
    highest, tested = 0.0, len(p_values)
    for rank, place in enumerate(order):
        if highest < LEVEL:
            tested = len(p_values) - rank
        highest = max(highest, min(1.0, p_values[place] * (len(p_values) - rank)))
        adjusted[place], levels[place] = highest, LEVEL / tested
    return adjusted, levels


class _Test:
    """The permutation test of one pair of models: its p-value, and its interval at the level at which it is tested."""

    def __init__(self, differences: np.ndarray, groups: np.ndarray, top: float, swaps: int) -> None:
        sums = _by_group(differences[:, None], groups)[:, 0]
        self._top, self._size = top, len(sums)
        self._value = float(sums.sum() / len(differences))
        # Mean square of the groups' contributions to the difference, and its largest possible value.
        self._square = float(self._size * (sums**2).sum() / len(differences) ** 2)
        self._most = max(top**2, self._square)
        self.parts = sums / len(differences)  # (G,), whose sum is the difference
        self.differs = bool(np.abs(sums).max() > _ROUNDING * top)
        self.ways = min(2 ** (self._size - 1), swaps)  # R
        self.bound = abs(self._value) - _ROUNDING * top
        self.reached = 0  # ways with a difference of `bound` or more
        self.level = LEVEL
        self._largest = np.zeros(0)  # differences of all ways, ascending: those up to the critical one

    @property
    def p_value(self) -> float | None:
        """None where no group differs."""
        return self.reached / self.ways if self.differs else None

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval at this level."""
        return self.differs and self._share(self._value) != 0 and self._size >= least_groups(self.level)

    def keep_largest(self, means: np.ndarray) -> None:
        """Takes the differences of some ways ``(R,)``."""
        most = math.ceil(self.level * self.ways - _ROUNDING)
        if len(self._largest) == most:
            means = means[means > self._largest[0]]
        if len(means):
            self._largest = np.sort(np.concatenate([self._largest, means]))[-most:]

    def comparison(self, adjusted: float) -> Comparison:
        """The comparison, with its interval."""
        level, share = self.level, self._share(self._value)
        spread = math.sqrt(share * (self._most - self._value**2) / max(1, self._size - 1))
        found = Comparison(
            Interval(self._value, None, None, self._top),
            p_value=self.p_value,
            adjusted_p=None if self.p_value is None else adjusted,
            detectable=(normal(level) + normal(0.4)) * spread,
            groups=self._size,
            least_groups=least_groups(level),
        )
        if not self.has_interval:
            return found
        low, high = self._ends(adjusted < LEVEL)
        return replace(found, difference=Interval(self._value, low, high, self._top))

    def _ends(self, is_rejected: bool) -> tuple[float, float]:
        """The differences that the test does not reject, with the variance of a bounded score as in ``interval_of``.

        The critical value is the quantile of the swaps, or Student's where it is larger (where few groups differ, the
        swaps have few distinct values), unless Student's alone would not reject a difference of 0.
        """
        critical = self._statistic(float(self._largest[0]))
        student_critical = student(self.level, self._size - 1) ** 2
        if not is_rejected or student_critical < self._statistic(self._value):
            critical = max(critical, student_critical)
        scale = critical * self._share(self._value) / (self._size - 1)
        half = math.sqrt(max(0.0, scale * (self._most * (1 + scale) - self._value**2)))
        low, high = ((self._value + end) / (1 + scale) for end in (-half, half))
        if not is_rejected:  # also with rounding errors
            low, high = min(low, 0.0), max(high, 0.0)
        return max(low, -self._top), min(high, self._top)

    def _statistic(self, mean: float) -> float:
        """Squared ratio of a mean to its standard error; monotonic in the mean, so both order the swaps alike."""
        share = self._share(mean)
        return math.inf if share == 0 else (self._size - 1) * mean**2 / (self._most * share)

    def _share(self, mean: float) -> float:
        """Variance of the groups where the difference is `mean`, as a share of the largest possible one."""
        if self._most - mean**2 <= _ROUNDING * self._most:
            return 1.0
        share = (self._square - mean**2) / (self._most - mean**2)
        return share if share > _ROUNDING else 0.0


def least_groups(level: float) -> int:
    """Groups without which no difference is significant: 2 of the ``2 ** G`` swaps leave all groups on one side."""
    return math.floor(1 - math.log2(level)) + 1


def sign_detectable(found: Comparison, questions: int) -> float:
    """Smallest mean difference that is seen with a power of 80 % where few pictures differ, and all in one direction.

    Then ``Comparison.detectable``, which rests on the spread, is too small, and 0 where no picture differs. Each
    picture is taken to differ in one question, with a probability for which ``least_groups`` of them differ in 80 % of
    all sets. 1 where there are fewer pictures than that.
    """
    from scipy.special import bdtri  # as in `student`

    if found.groups < found.least_groups:
        return 1.0
    return float(bdtri(found.least_groups - 1, found.groups, 0.2)) * found.groups / questions


def normal(level: float) -> float:
    """Two-sided quantile of the normal distribution."""
    return statistics.NormalDist().inv_cdf(1 - level / 2)


@lru_cache(maxsize=4096)
def student(level: float, freedom: float) -> float:
    """Two-sided quantile of Student's distribution, for any number of degrees of freedom above 0."""
    from scipy.special import stdtrit  # here, as it is not needed for --help and the check of a config

    return -float(stdtrit(freedom, level / 2))


def student_p(t: float, freedom: float) -> float:
    """Two-sided p-value of Student's t, for any number of degrees of freedom above 0."""
    from scipy.special import stdtr  # as above

    return 2 * float(stdtr(freedom, -t))


def rounded(value: float, digits: int, limit: float = 0.0, sign: str = "") -> str:
    """A number with `digits` digits, or more where rounding would move it onto or across `limit`."""
    if math.isclose(value, limit, rel_tol=1e-9, abs_tol=1e-12):  # equal but for the rounding of sums
        value = limit
    text = f"{value:{sign}.{digits}f}"
    is_same_side = (value > limit) == (float(text) > limit) and (value < limit) == (float(text) < limit)
    return text if is_same_side or digits > 12 else rounded(value, digits + 1, limit, sign)


def _by_group(counts: np.ndarray, groups: Sequence[str] | np.ndarray) -> np.ndarray:
    """Sums ``(G, C)`` of the rows ``(Q, C)`` of each group."""
    if len(counts) == 0 or len(counts) != len(groups):
        raise ValueError(f"{len(counts)} scores of {len(groups)} questions: give one for each, and at least one.")
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), counts.shape[1]))
    np.add.at(sums, place, counts)
    return sums


def _swapped_means(tests: Sequence[_Test], what: str) -> Iterator[tuple[list[_Test], np.ndarray]]:
    """Tests with as many groups, and absolute mean differences ``(r, tests)`` of some ways to swap, until all are done.

    All tests with as many groups are swapped in the same ways: one product of matrices is much faster than one each.
    """
    last = time.monotonic()
    of_size: dict[int, list[_Test]] = {}
    for one in tests:
        of_size.setdefault(len(one.parts), []).append(one)
    for size, own in of_size.items():
        parts, done = np.stack([one.parts for one in own], axis=1), 0
        for signs in _signs(size, own[0].ways, max(1, _BLOCK // max(size, len(own)))):
            yield own, np.abs(signs @ parts)
            done += len(signs)
            if time.monotonic() - last > _SILENT_S:
                last = time.monotonic()
                LOG.info("%s of %s: %d %% of the swaps.", what, counted(len(own), "pair"), 100 * done // own[0].ways)


def _signs(size: int, ways: int, step: int) -> Iterator[np.ndarray]:
    """Signs ``(r, size)`` of `ways` ways to swap, at most `step` at once: all there are, or random ones.

    The first swaps nothing. The random ones do not depend on `step`.
    """
    if ways == 2 ** (size - 1):  # the last group is never swapped: swapping all changes the sign alone
        for start in range(0, ways, step):
            yield 1.0 - 2.0 * (np.arange(start, min(start + step, ways))[:, None] >> np.arange(size) & 1)
        return
    yield np.ones((1, size))
    generator = np.random.default_rng(0)  # the same ways for all tests, and each time
    for start in range(1, ways, step):
        yield 2.0 * generator.integers(0, 2, (min(step, ways - start), size)) - 1.0


def finite(value: Any) -> Any:
    """The same with None for infinite numbers, which JSON does not have: the highest count error has no bound."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
