"""Intervals and tests against formulas, exact enumeration and their own promises."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from panollava.evaluation.statistics import compare, groups_needed, mean_interval

GENERATOR = np.random.default_rng(5)


def test_interval_of_independent_questions_is_that_of_the_normal_approximation():
    scores = (GENERATOR.random(2000) < 0.7).astype(float)
    found = mean_interval(scores, [str(number) for number in range(2000)])
    error = math.sqrt(scores.mean() * (1 - scores.mean()) / 2000)
    assert found.value == pytest.approx(scores.mean())
    assert found.low == pytest.approx(scores.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(scores.mean() + 1.96 * error, abs=0.1 * error)


def test_questions_that_only_repeat_their_picture_make_nothing_surer():
    scores = (GENERATOR.random(100) < 0.7).astype(float)
    groups = [str(number) for number in range(100)]
    once = mean_interval(scores, groups)
    tenfold = mean_interval(np.repeat(scores, 10), [name for name in groups for _ in range(10)])
    assert tenfold.low == pytest.approx(once.low, abs=1e-9)
    assert tenfold.high == pytest.approx(once.high, abs=1e-9)


def test_the_interval_covers_the_truth_in_nineteen_of_twenty_cases():
    covered = 0
    for trial in range(200):
        own = np.random.default_rng(trial)
        difficulty = own.beta(4, 2, 60)
        scores = (own.random((60, 5)) < difficulty[:, None]).astype(float).ravel()
        found = mean_interval(scores, [str(number // 5) for number in range(300)], seed=trial, resamples=1000)
        covered += found.low <= 4 / 6 <= found.high
    assert 180 <= covered <= 199


def test_p_value_is_that_of_all_swaps():
    first = np.array([1, 0, 0, 1, 0, 1, 0, 0, 1, 0.0])
    second = np.array([1, 1, 0, 1, 1, 1, 1, 0, 1, 1.0])
    groups = list("aabbccddee")
    difference = (second - first).reshape(5, 2).sum(axis=1)
    swaps = [
        abs(sum(s * d for s, d in zip(signs, difference, strict=True)))
        for signs in itertools.product((1, -1), repeat=5)
    ]
    exact = np.mean([swap >= abs(difference.sum()) for swap in swaps])
    assert compare(first, second, groups).p_value == pytest.approx(exact, abs=0.015)


def test_a_model_is_not_distinguishable_from_itself():
    scores = GENERATOR.random(50)
    same = compare(scores, scores, [str(number) for number in range(50)])
    assert same.difference.value == same.difference.low == same.difference.high == 0
    assert same.p_value == 1
    assert not same.is_distinguishable
    assert groups_needed(same, 50) is None


def test_a_clear_difference_is_seen_and_has_its_sign():
    first = (GENERATOR.random(400) < 0.5).astype(float)
    second = np.maximum(first, (GENERATOR.random(400) < 0.3).astype(float))
    groups = [str(number // 4) for number in range(400)]
    found = compare(first, second, groups)
    assert found.is_distinguishable
    assert found.difference.low > 0
    assert compare(second, first, groups).difference.value == -found.difference.value
    assert found.detectable < found.difference.value
    assert groups_needed(found, 100) < 100


def test_the_detectable_difference_is_seen_in_four_of_five_cases():
    seen, trials, groups = 0, 100, [str(number) for number in range(150)]
    detectable = compare(*np.random.default_rng(0).normal(0, 1, (2, 150)), groups).detectable
    for trial in range(1, trials + 1):
        first, second = np.random.default_rng(trial).normal(0, 1, (2, 150))
        seen += compare(first, second + detectable, groups, resamples=1000).is_distinguishable
    assert 0.65 <= seen / trials <= 0.93


def test_same_seed_same_numbers():
    scores, groups = GENERATOR.random(30), [str(number // 3) for number in range(30)]
    assert mean_interval(scores, groups) == mean_interval(scores, groups)


@pytest.mark.parametrize("scores", [[], [1.0]])
def test_scores_that_do_not_fit_are_refused(scores):
    with pytest.raises(ValueError, match="one for each"):
        mean_interval(scores, ["a", "b"])
    with pytest.raises(ValueError, match="same questions"):
        compare(scores, [*scores, 1.0], ["a"])
