"""How sure a score is: intervals, paired differences and what could have been seen, over pictures and not over rows.

Questions about one picture share its difficulties, so a picture with all its questions is one draw. Legend: ``Q``
questions, ``G`` groups (pictures or scenes), ``R`` resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
_BLOCK = 2_000
"""Resamples made at a time: they would not all fit into memory for a large test set."""

Z_TWO_SIDED_5, Z_POWER_80 = 1.959964, 0.841621
"""Normal quantiles of a two-sided test at 5 %, and of a power of 80 %."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """In percent."""
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class Comparison:
    """Two models on the same questions.

    Attributes:
        difference: mean score of the second less that of the first, with its interval.
        p_value: of a difference at least as large if it did not matter which model gave which answers.
        detectable: smallest difference that this many groups would have shown, in four of five cases.
    """

    difference: Interval
    p_value: float
    detectable: float

    @property
    def is_distinguishable(self) -> bool:
        """Whether chance alone is an unlikely reason, at 5 %."""
        return self.p_value < 0.05


def mean_interval(
    scores: Sequence[float] | np.ndarray, groups: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Mean score with a 95 % percentile bootstrap interval over groups.

    Args:
        scores: ``(Q,)``.
        groups: ``(Q,)``, which picture each belongs to.
        seed: of the resamples.
        resamples: how many.

    Raises:
        ValueError: there are no scores, or the two differ in length.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3; groups are drawn whole.
    """
    sums, counts = _by_group(scores, groups)
    means = _resampled_means(sums, counts, seed, resamples)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))


def interval_of(
    counts: np.ndarray,
    groups: Sequence[str],
    score: Callable[[np.ndarray], np.ndarray],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """A score that is made from sums, such as BLEU, with a 95 % percentile bootstrap interval over groups.

    Args:
        counts: ``(Q, C)``, what is summed.
        groups: ``(Q,)``, which picture each row belongs to.
        score: sums ``(R, C)`` -> scores ``(R,)``.
        seed: of the resamples.
        resamples: how many.
    """
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), counts.shape[1]))
    np.add.at(sums, place, counts)
    found = np.concatenate([score(times @ sums) for times in _draws(len(names), seed, resamples)])
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(score(sums.sum(axis=0, keepdims=True))[0]), float(low), float(high))


def compare(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    groups: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """The second model against the first, question by question.

    The interval is a paired bootstrap over groups, the p-value a permutation test in which all answers about a
    picture change sides together.

    Args:
        first: ``(Q,)``, scores of one model.
        second: ``(Q,)``, scores of the other on the same questions in the same order.
        groups: ``(Q,)``, which picture each question belongs to.
        seed: of the resamples.
        resamples: how many.

    Raises:
        ValueError: there are no scores, or the three differ in length.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, sections 13.3 and 15.2; Phipson and Smyth
        2010, Permutation p-values should never be zero (the one that is added above and below).
    """
    if len(first) != len(second):
        raise ValueError(f"Two models are compared on the same questions, not on {len(first)} and {len(second)}.")
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    sums, counts = _by_group(differences, groups)
    means = _resampled_means(sums, counts, seed, resamples)
    low, high = np.quantile(means, [0.025, 0.975])
    observed = sums.sum() / counts.sum()
    generator, extreme = np.random.default_rng(seed), 0
    for size in _blocks(resamples):
        signs = generator.integers(0, 2, (size, len(sums))) * 2 - 1
        extreme += int((np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12).sum())
    return Comparison(
        Interval(float(observed), float(low), float(high)),
        p_value=(extreme + 1) / (resamples + 1),
        detectable=(Z_TWO_SIDED_5 + Z_POWER_80) * float(means.std()),
    )


def groups_needed(comparison: Comparison, groups: int) -> int | None:
    """How many groups would show the observed difference in four of five cases; None where it is 0."""
    if comparison.difference.value == 0:
        return None
    ratio = comparison.detectable / abs(comparison.difference.value)
    return math.ceil(groups * ratio**2)


def _by_group(scores: Sequence[float] | np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the scores of each group, ``(G,)`` each."""
    values = np.asarray(scores, dtype=np.float64)
    if len(values) == 0 or len(values) != len(groups):
        raise ValueError(f"{len(values)} scores of {len(groups)} questions: give one for each, and at least one.")
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(place, weights=values), np.bincount(place).astype(np.float64)


def _resampled_means(sums: np.ndarray, counts: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """``(R,)``: means of as many groups, drawn with replacement."""
    draws = _draws(len(sums), seed, resamples)
    return np.concatenate([(times @ sums) / (times @ counts) for times in draws])


def _draws(groups: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each group is drawn, ``(R, G)``, some resamples at a time."""
    generator, share = np.random.default_rng(seed), np.full(groups, 1 / groups)
    for size in _blocks(resamples):
        yield generator.multinomial(groups, share, size=size)


def _blocks(resamples: int) -> list[int]:
    return [min(_BLOCK, resamples - start) for start in range(0, resamples, _BLOCK)]
