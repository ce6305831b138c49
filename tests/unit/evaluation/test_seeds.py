"""Settings repeated over seeds: the test keeps its promises, and finds what it says it finds as often as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panollava.evaluation import seeds as seeds_module
from panollava.evaluation.seeds import MOST_SEEDS, compare_seeds, seed_interval, seeds_needed, spread_of, visible
from panollava.evaluation.statistics import student, student_p

RUNS = 3000


def found_share(seeds: int, spreads: tuple[float, float], difference: float, level: float) -> float:
    """Share of simulated studies in which Welch's test finds a difference."""
    own = np.random.default_rng(seeds)
    first = own.normal(0, spreads[0], (RUNS, seeds))
    second = own.normal(difference, spreads[1], (RUNS, seeds))
    shares = [one.var(axis=1, ddof=1) / seeds for one in (first, second)]
    freedom = sum(shares) ** 2 / sum(one**2 / (seeds - 1) for one in shares)
    t = (second.mean(axis=1) - first.mean(axis=1)) / np.sqrt(sum(shares))
    return float(np.mean([student_p(abs(one), df) < level for one, df in zip(t, freedom, strict=True)]))


@pytest.mark.parametrize("level", [0.05, 0.05 / 6])
@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
def test_four_of_five_studies_find_the_visible_difference(seeds: int, level: float) -> None:
    error = math.sqrt(0.8 * 0.2 / RUNS)
    shown = found_share(seeds, (0.03, 0.03), visible(seeds, 0.03, level), level)
    assert shown == pytest.approx(0.8, abs=4 * error)
    assert found_share(seeds, (0.03, 0.03), 0.8 * visible(seeds, 0.03, level), level) < 0.8 - 2 * error


@pytest.mark.parametrize("spreads", [(0.03, 0.03), (0.03, 0.003), (0.03, 0.0)])
def test_a_difference_that_is_not_there_is_found_as_rarely_as_promised(spreads: tuple[float, float]) -> None:
    """Also where one setting has learnt and always scores the same: a common variance would find one in ten."""
    for seeds in (3, 5):
        assert found_share(seeds, spreads, 0.0, 0.05) < 0.07


def test_the_visible_difference_of_many_seeds_is_that_of_the_normal_distribution() -> None:
    assert visible(400, 0.05) == pytest.approx((1.959964 + 0.841621) * 0.05 * math.sqrt(2 / 400), rel=5e-3)
    assert visible(1, 0.05) == math.inf


@given(spread=st.floats(0.001, 0.4), difference=st.floats(0.03, 1), pairs=st.integers(1, 66))
@settings(max_examples=15, deadline=None)
def test_the_seeds_that_are_needed_are_the_fewest(spread: float, difference: float, pairs: int) -> None:
    level = 0.05 / pairs
    needed = seeds_needed(spread, -difference, level)
    assert visible(needed, spread, level) <= difference < visible(needed - 1, spread, level)


def test_a_difference_of_rounding_needs_no_number_of_seeds() -> None:
    """Equal sums of right answers: as floats, and as results keep them with six digits."""
    exact = [[count / 97 for count in own] for own in ([51, 48, 51], [49, 50, 51])]
    kept = [[round(count / 891, 6) for count in own] for own in ([764, 770, 764], [763, 766, 769])]
    for first, second in (exact, kept):
        (found,) = compare_seeds([(first, second)])
        assert found.difference.value != 0
        assert found.seeds_needed is None


@pytest.mark.parametrize(("difference", "needed"), [(0.01, 17), (0.001, 1571), (1e-4, 156_997), (1e-7, MOST_SEEDS)])
def test_a_small_difference_is_answered_soon(difference: float, needed: int) -> None:
    """The numbers are those of counting up one by one; visible() is asked for a few dozen of them."""
    before = seeds_module._effect.cache_info().misses
    assert seeds_needed(0.01, difference) == needed
    assert seeds_module._effect.cache_info().misses - before < 50
    assert compare_seeds([([0.5, 0.52], [0.50001, 0.52001])])[0].seeds_needed is None


def test_the_comparison_is_that_of_another_program() -> None:
    """SciPy's ``ttest_ind(b, a, equal_var=False)``, with its confidence interval."""
    (found,) = compare_seeds([([0.91, 0.93, 0.925], [0.95, 0.88, 0.96, 0.97])])
    assert found.p_value == found.adjusted_p == pytest.approx(0.44387760363878, rel=1e-9)
    assert found.difference.low == pytest.approx(-0.0442020866725268, rel=1e-7)
    assert found.difference.high == pytest.approx(0.0808687533391932, rel=1e-7)
    assert found.seeds == (3, 4)
    assert not found.is_distinguishable
    assert found.seeds_needed > 4
    assert found.detectable == visible(3, found.spread) > found.difference.value


def test_more_seeds_are_needed_than_there_are_where_nothing_is_shown() -> None:
    """Welch's test sees less than one with a common spread where one setting alone spreads."""
    steady, loose = [0.0, 0.001, -0.001, 0.0005, -0.0005], [0.04, 0.08, 0.085, 0.035, 0.06]
    found = compare_seeds([(steady, loose), *[([0.0], [0.0])] * 14])[0]
    assert not found.is_distinguishable
    assert seeds_needed(found.spread, found.difference.value, found.level) == 5
    assert found.seeds_needed == 6


def test_pairs_share_the_risk_of_error() -> None:
    pair = ([0.5, 0.52, 0.51], [0.58, 0.55, 0.57])
    (alone,) = compare_seeds([pair])
    among = compare_seeds([pair, ([0.5, 0.6], [0.6, 0.5]), ([0.5, 0.9], [0.6, 0.5])])[0]
    assert among.adjusted_p == pytest.approx(3 * alone.adjusted_p)
    assert among.difference.low < alone.difference.low < alone.difference.high < among.difference.high


def test_nothing_is_said_of_one_seed_or_of_seeds_that_score_the_same() -> None:
    for pair in (([0.5], [0.9]), ([0.5], [0.9, 0.91]), ([0.5, 0.5], [0.9, 0.9])):
        (found,) = compare_seeds([pair])
        assert (found.p_value, found.difference.low, found.is_distinguishable) == (None, None, False)
    assert compare_seeds([([0.5], [0.9])])[0].spread is None
    assert spread_of([[0.1, 0.3], [0.5], [0.7, 0.9, 0.8]]) == pytest.approx(math.sqrt((0.02 + 0.02) / 3))
    assert seed_interval([0.4]).low is None


@given(data=st.data(), settings_=st.integers(2, 5))
@settings(max_examples=100, deadline=None)
def test_an_interval_never_contradicts_its_verdict(data: st.DataObject, settings_: int) -> None:
    score = st.floats(0, 1).map(lambda value: round(value, 4))
    groups = [data.draw(st.lists(score, min_size=1, max_size=5)) for _ in range(settings_)]
    pairs = [(groups[0], one) for one in groups[1:]]
    for found in compare_seeds(pairs):
        low, high = found.difference.low, found.difference.high
        assert (low is None) is (found.p_value is None)
        if low is not None:
            assert -1 <= low <= found.difference.value <= high <= 1
            assert (low > 0 or high < 0) is found.is_distinguishable


@pytest.mark.parametrize("t", [1e-6, 0.3, 1.0, 2.5, 40.0])
def test_p_values_are_those_of_the_closed_forms(t: float) -> None:
    """Of Student's distribution with 1 and 2 degrees of freedom, and of the normal one that it approaches."""
    assert student_p(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-9)
    assert student_p(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)
    assert student_p(t, 1e9) == pytest.approx(math.erfc(t / math.sqrt(2)), rel=1e-4, abs=1e-300)


@given(level=st.floats(1e-9, 0.9), freedom=st.floats(1, 1e5))
def test_quantiles_are_the_inverse_of_p_values(level: float, freedom: float) -> None:
    assert student_p(student(level, freedom), freedom) == pytest.approx(level, rel=1e-7)
