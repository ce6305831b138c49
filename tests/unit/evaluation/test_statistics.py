"""Intervals and tests against formulas, exact enumeration and their own promises."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panollava.evaluation import statistics
from panollava.evaluation.statistics import (
    Comparison,
    compare_pairs,
    holm,
    mean_interval,
    rounded,
    student,
)

GENERATOR = np.random.default_rng(5)


def compare(first, second, groups, **options) -> Comparison:
    """One pair."""
    return compare_pairs([(first, second, groups)], **options)[0]


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


@pytest.mark.parametrize("kind", ["all questions of a picture alike", "half alike", "of their own", "uneven"])
def test_intervals_of_right_and_wrong_cover_the_truth_at_the_edge_too(kind):
    """95 % of the time up to the noise of 500 trials, whether or not the questions about a picture go together."""
    own = np.random.default_rng(1)
    for share, pictures in itertools.product((0.5, 0.9, 0.98), (10, 30, 100)):
        covered = []
        for _ in range(500):
            sizes = own.integers(1, 10, pictures) if kind == "uneven" else np.full(pictures, 5)
            right = own.random((pictures, 1)).repeat(9, axis=1) < share
            single = own.random((pictures, 9)) < share
            if kind != "all questions of a picture alike":
                right = np.where(own.random((pictures, 1)) < (0.0 if kind == "of their own" else 0.4), right, single)
            asked = np.arange(9)[None] < sizes[:, None]
            found = mean_interval(right[asked], np.repeat(np.arange(pictures), sizes).astype(str))
            covered.append(found.low <= share <= found.high)
        assert np.mean(covered) >= 0.92, (share, pictures)


@pytest.mark.parametrize("top", [1.0, 10.0])
@given(data=st.data())
def test_every_interval_is_possible_and_says_something(top, data):
    """It holds the score, lies within what the score can be, and is never of no width."""
    pictures = data.draw(st.integers(1, 12))
    values = st.sampled_from([0.0, top]) | st.floats(0, top)
    scores = data.draw(st.lists(values, min_size=pictures, max_size=3 * pictures))
    found = mean_interval(scores, [str(number % pictures) for number in range(len(scores))], top=top)
    if pictures < 5:
        assert found.low is None
        assert found.high is None
        assert "(" not in str(found)
    else:
        assert 0 <= found.low <= found.value <= found.high <= top
        assert found.low < found.high


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_pictures_that_all_agree_count_as_one_answer_each(right):
    """Nine pictures of ten questions, all right or all wrong: Wilson's interval of nine answers."""
    found = mean_interval([right] * 90, [str(number % 9) for number in range(90)])
    far = 1.96**2 / (9 + 1.96**2)
    assert (found.low, found.high) == pytest.approx((0, far) if right == 0 else (1 - far, 1), abs=1e-4)


def test_a_score_is_shown_on_its_own_scale():
    scores, groups = [0.5, 0.5, 0.5, 1.0, 0.0], list("abcde")
    assert str(mean_interval(scores, groups)).startswith("50.0 % (")
    assert str(mean_interval(scores[:4], groups[:4])) == "62.5 %"
    assert str(mean_interval([2.5] * 4, groups[:4], top=10)) == "2.500"
    assert mean_interval([0.01, 0.02, 0.03, 0.04, 0.5], groups, top=math.inf).low > 0


def test_the_interval_covers_the_truth_in_nineteen_of_twenty_cases():
    covered = 0
    for trial in range(200):
        own = np.random.default_rng(trial)
        difficulty = own.beta(4, 2, 60)
        scores = (own.random((60, 5)) < difficulty[:, None]).astype(float).ravel()
        found = mean_interval(scores, [str(number // 5) for number in range(300)])
        covered += found.low <= 4 / 6 <= found.high
    assert 180 <= covered <= 199


def each_swap(differences: np.ndarray, swaps: int) -> np.ndarray:
    """Absolute mean differences of every swap, those of one pair, drawn row by row, in descending order."""
    size = len(differences)
    if 2 ** (size - 1) <= swaps:
        signs = np.array(list(itertools.product((1, -1), repeat=size - 1)))
        signs = np.concatenate([signs, np.ones((len(signs), 1))], axis=1)
    else:
        generator = np.random.default_rng(0)
        signs = np.stack([np.ones(size), *(generator.integers(0, 2, size) * 2 - 1 for _ in range(swaps - 1))])
    return np.sort(np.abs((signs * differences).mean(axis=1)))[::-1]


def test_many_pairs_have_the_p_values_and_critical_values_of_single_tests(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some with all swaps and some with random ones, in several blocks."""
    rng, pairs = np.random.default_rng(0), []
    for size in (9, 40):
        groups = [f"{at:02}" for at in range(size)]
        for shift in (0.0, 0.1, 0.2, 0.4, 0.8):
            first, second = rng.random((2, size))
            pairs.append((first, second + shift, groups))
    tests: list[Any] = []

    class Kept(statistics._Test):
        def __init__(self, *values: Any) -> None:
            super().__init__(*values)
            tests.append(self)

    monkeypatch.setattr(statistics, "_Test", Kept)
    monkeypatch.setattr(statistics, "_BLOCK", 5000)
    monkeypatch.setattr(statistics, "_SILENT_S", 0.0)
    with caplog.at_level("INFO"):
        found = compare_pairs(pairs, top=2.0, swaps=1000)
    assert "p-values of 5 pairs: 100 % of the swaps." in caplog.text
    assert "intervals of" in caplog.text
    every = [each_swap(second - first, 1000) for first, second, _ in pairs]
    expected = [
        float((swapped >= abs((second - first).mean()) - 1e-9).mean())
        for swapped, (first, second, _) in zip(every, pairs, strict=True)
    ]
    assert [one.p_value for one in found] == expected
    assert [one.adjusted_p for one in found] == holm(expected)[0]
    assert 0 < sum(one.is_distinguishable for one in found) < len(found)
    with_interval = 0
    for test, level, swapped in zip(tests, holm(expected)[1], every, strict=True):
        if test.has_interval:
            with_interval += 1
            assert test._largest[0] == pytest.approx(swapped[math.ceil(level * len(swapped) - 1e-9) - 1], abs=1e-14)
    assert with_interval >= 8


def test_what_is_kept_does_not_grow_with_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """All swaps of 500 pairs would be 80 MB."""
    monkeypatch.setattr(statistics, "_BLOCK", 200_000)
    rng, groups = np.random.default_rng(0), [str(at) for at in range(30)]
    pairs = [(first, second, groups) for first, second in rng.random((500, 2, 30))]
    tracemalloc.start()
    compare_pairs(pairs, swaps=20_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


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
    assert compare(first, second, groups).p_value == pytest.approx(exact)


def test_a_model_is_not_distinguishable_from_itself():
    scores = GENERATOR.random(50)
    same = compare(scores, scores, [str(number) for number in range(50)])
    assert (same.difference.value, same.difference.low, same.difference.high) == (0, None, None)
    assert same.p_value is None
    assert not same.is_distinguishable
    assert same.groups_needed is None


def test_a_clear_difference_is_seen_and_has_its_sign():
    first = (GENERATOR.random(400) < 0.5).astype(float)
    second = np.maximum(first, (GENERATOR.random(400) < 0.3).astype(float))
    groups = [str(number // 4) for number in range(400)]
    found = compare(first, second, groups)
    assert found.is_distinguishable
    assert found.difference.low > 0
    assert compare(second, first, groups).difference.value == -found.difference.value
    assert found.detectable < found.difference.value
    assert found.groups_needed < 100


def test_the_detectable_difference_is_seen_in_four_of_five_cases():
    seen, trials, groups = 0, 100, [str(number) for number in range(150)]
    detectable = compare(*np.random.default_rng(0).normal(0, 1, (2, 150)), groups).detectable
    for trial in range(1, trials + 1):
        first, second = np.random.default_rng(trial).normal(0, 1, (2, 150))
        seen += compare(first, second + detectable, groups).is_distinguishable
    assert 0.65 <= seen / trials <= 0.93


def test_same_seed_same_numbers():
    scores, groups = GENERATOR.random(30), [str(number // 3) for number in range(30)]
    assert mean_interval(scores, groups) == mean_interval(scores, groups)


@settings(max_examples=150)
@given(data=st.data(), top=st.sampled_from([1.0, 10.0]), pictures=st.integers(1, 30), models=st.integers(2, 5))
def test_an_interval_never_contradicts_its_verdict(data, top, pictures, models):
    """With any number of pairs, scores, sizes of pictures: 0 is in the interval where there is no difference to see."""
    seed, share = data.draw(st.integers(0, 2**31)), data.draw(st.floats(0, 1))
    own = np.random.default_rng(seed)
    groups = [str(each) for each in own.integers(0, pictures, 3 * pictures)]
    kind = data.draw(st.sampled_from(["right", "graded", "same"]))
    scores = top * own.random((models, len(groups))) ** own.integers(1, 5, (models, 1))
    if kind != "graded":
        scores = top * (scores < top * share * own.random((models, 1)) ** 0.3)
    if kind == "same":
        scores = scores[own.integers(0, 2, models)]
    pairs = list(itertools.combinations(scores, 2))
    found = compare_pairs([(*pair, groups) for pair in pairs], top=top)
    for one, (first, second) in zip(found, pairs, strict=True):
        assert one.difference.value == pytest.approx(np.mean(second - first))
        assert one.difference.low is not None or not one.is_distinguishable or len(set(second - first)) < 3
        if one.difference.low is None:
            continue
        low, high = (float(rounded(end, 1)) for end in (one.difference.low, one.difference.high))
        assert -top <= one.difference.low <= one.difference.value <= one.difference.high <= top
        assert one.difference.low < one.difference.high
        assert (low <= 0 <= high) is not one.is_distinguishable
        assert (float(rounded(one.adjusted_p, 4, 0.05)) < 0.05) is one.is_distinguishable
        assert one.is_distinguishable or one.groups_needed is None or one.groups_needed > one.groups
    assert holm([1.0 if one.p_value is None else one.p_value for one in found])[0] == [
        1.0 if one.adjusted_p is None else one.adjusted_p for one in found
    ]


def test_the_interval_of_a_difference_covers_it():
    covered = 0
    for trial in range(200):
        own = np.random.default_rng(trial)
        hard = own.random((40, 1)) < 0.3
        first, second = (own.random((2, 40, 4)) < np.where(hard, 0.5, [[[0.9]], [[0.97]]])).reshape(2, -1)
        found = compare(first.astype(float), second.astype(float), [str(number // 4) for number in range(160)])
        covered += found.difference.low <= 0.7 * 0.07 <= found.difference.high
    assert covered >= 184


@pytest.mark.parametrize(("pictures", "pairs", "least"), [(3, 1, 6), (5, 1, 6), (6, 1, 6), (7, 10, 9), (9, 10, 9)])
def test_few_pictures_cannot_show_any_difference(pictures, pairs, least):
    """All answers of one model right and all of the other wrong is the largest difference there is."""
    groups = [str(number) for number in range(pictures)]
    found = compare_pairs([(np.zeros(pictures), np.ones(pictures), groups)] * pairs)
    assert {one.is_distinguishable for one in found} == {pictures >= least}
    assert found[0].least_groups == least
    assert found[0].groups_needed >= (least if pictures >= least else max(least, pictures + 1))
    if pictures >= least:
        assert 0 < found[0].difference.low < found[0].difference.high == 1


@pytest.mark.parametrize(
    ("level", "freedom", "expected"), [(0.05, 1, 12.706), (0.05, 4, 2.776), (0.05, 29, 2.045), (0.01, 9, 3.250)]
)
def test_students_quantile_is_that_of_its_tables(level, freedom, expected):
    assert student(level, freedom) == pytest.approx(expected, abs=5e-4)


def test_rounding_never_moves_a_number_over_a_limit():
    assert rounded(0.04, 1, sign="+") == "+0.04"
    assert rounded(2e-17, 1, sign="+") == rounded(-2e-17, 1, sign="+") == "+0.0"  # of sums in another order
    assert rounded(-0.0004, 1, sign="+") == "-0.0004"
    assert rounded(0.049999, 4, 0.05) == "0.049999"
    assert (rounded(0.0, 1, sign="+"), rounded(12.34, 1, sign="+")) == ("+0.0", "+12.3")


@pytest.mark.parametrize("scores", [[], [1.0]])
def test_scores_that_do_not_fit_are_refused(scores):
    with pytest.raises(ValueError, match="one for each"):
        mean_interval(scores, ["a", "b"])
    with pytest.raises(ValueError, match="same questions"):
        compare(scores, [*scores, 1.0], ["a"])
