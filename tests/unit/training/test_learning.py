"""Learning curves stay small and whole, and the verdict on them is not fooled by schedules, plateaus and noise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.toy_training import Toy, before_step, power_cut, steps

from panollava.checkpoint import LAST
from panollava.training.learning import (
    FALL,
    IMAGE_GAIN,
    LIMIT,
    ROOM,
    Learning,
    LearningCurve,
    decide,
    judge,
    judge_run,
    read_curve,
    remaining,
)
from panollava.training.loop import OptimiserStep
from panollava.training.options import OptimOptions

LOSSES = st.builds(
    lambda count, seed: [float(loss) for loss in np.random.default_rng(seed).exponential(size=(count,))],
    st.integers(1, 5 * LIMIT),
    st.integers(0, 2**32 - 1),
)


def curve_of(losses: list[float]) -> LearningCurve:
    """Steps of two samples at learning rate 1."""
    curve = LearningCurve()
    for place, loss in enumerate(losses, start=1):
        curve.step(2.0 * place, 1.0, loss)
    return curve


def scheduled(
    count: int, loss: Callable[[float, float], float], schedule: str = "cosine", peak: float = 1e-3
) -> LearningCurve:
    """A curve whose loss is a function of the summed learning rate and the present one, both as shares."""
    optim = OptimOptions(schedule=schedule)  # type: ignore[arg-type]
    rates = [optim.learning_rate(peak, step, count) for step in range(count)]
    curve, total = LearningCurve(), 0.0
    for step, rate in enumerate(rates):
        total += rate
        curve.step(16.0 * (step + 1), rate, loss((total - rate / 2) / sum(rates), rate / peak))
    return curve


@given(LOSSES)
def test_a_curve_is_bounded_and_loses_nothing(losses: list[float]) -> None:
    curve = curve_of(losses)
    count, points = len(losses), curve.points
    assert len(points) <= LIMIT
    assert len(points) >= min(count, LIMIT // 2)
    assert points[-1][:3] == (count, 2.0 * count, float(count))
    widths = np.diff([0, *(point.steps for point in points)])
    assert len({*widths[:-1]}) <= 1
    assert (widths[-1] <= widths).all()
    for width, point in zip(widths, points, strict=True):
        assert point.loss == pytest.approx(np.mean(losses[point.steps - width : point.steps]), rel=1e-9, abs=1e-9)


@given(LOSSES, st.data())
def test_a_curve_goes_on_where_a_checkpoint_left_it(losses: list[float], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(losses)))
    resumed = LearningCurve.of_json(json.loads(json.dumps(asdict(curve_of(losses[:at])))))
    for place, loss in enumerate(losses[at:], start=at + 1):
        resumed.step(2.0 * place, 1.0, loss)
    assert resumed == curve_of(losses)


def test_validations_are_bounded_and_lie_on_the_curve() -> None:
    curve = LearningCurve()
    for place in range(1, 5 * LIMIT):
        curve.step(place, 1.0, 0.0)
        curve.validation(float(place))
    assert LIMIT // 2 <= len(curve.validations) <= LIMIT
    assert curve.validations[-1].loss == 5 * LIMIT - 1
    assert all(point.steps == point.loss for point in curve.validations)


def test_a_curve_is_a_table_to_open_anywhere(tmp_path: Path) -> None:
    curve = curve_of([3.0, 2.0, 0.1 + 0.2])
    curve.validation(0.7)
    (tmp_path / "curve.csv").write_text(curve.csv())
    assert curve.csv().splitlines()[0] == "steps,samples,lr_sum,loss,validation_loss"
    assert len(curve.csv().splitlines()) == 5
    assert read_curve(tmp_path / "curve.csv") == curve
    assert read_curve(tmp_path / "none.csv") == LearningCurve()
    (tmp_path / "curve.csv").write_text("steps,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"curve\.csv is no learning curve"):
        read_curve(tmp_path / "curve.csv")


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"points": []},
        {"points": [], "validations": 3},
        {"points": [[1, 2.0, 3.0]], "validations": []},
        {"points": [[1, 2.0, 3.0, math.nan]], "validations": []},
        {"points": [[1.5, 2.0, 3.0, 4.0]], "validations": []},
        {"points": [[2, 2.0, 3.0, 4.0], [1, 2.0, 3.0, 4.0]], "validations": []},
        {"points": [[place, 0, 0, 0] for place in range(1, LIMIT + 2)], "validations": []},
    ],
)
def test_what_is_no_curve_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="learning curve"):
        LearningCurve.of_json(value)


@pytest.mark.parametrize("step", [2, 4, 5, 6])
def test_a_resumed_stage_has_the_curve_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = Toy(tmp_path / "whole").fit(steps(3), epochs=2, save_every_steps=1).progress
    assert whole.whole_curve is not None
    assert [point.steps for point in whole.curve.points] == list(range(1, 7))
    assert [point.steps for point in whole.curve.validations] == [3, 6]
    with monkeypatch.context() as patch:
        patch.setattr(OptimiserStep, "__call__", before_step(step, power_cut))
        with pytest.raises(RuntimeError, match="power cut"):
            Toy(tmp_path / "cut").fit(steps(3), epochs=2, save_every_steps=1)
    again = Toy(tmp_path / "cut")
    progress = again.checkpointer.restore(tmp_path / "cut" / LAST)
    assert again.fit(steps(3), progress, epochs=2).progress.curve == whole.curve


@given(
    st.floats(0, 3),
    st.sampled_from(["cosine", "linear", "constant"]),
    st.integers(60, 700),
    st.floats(1e-6, 1e2),
)
def test_a_power_law_is_found_whatever_the_schedule_and_the_length(
    exponent: float, schedule: str, count: int, scale: float
) -> None:
    curve = scheduled(count, lambda done, _: scale * done**-exponent, schedule)
    found = remaining(curve)
    assert found is not None
    assert found.value == pytest.approx(1 - 2**-exponent, abs=0.03)
    assert found.low <= found.value
    assert found.low == pytest.approx(found.value, abs=0.01)  # there is no noise


@pytest.mark.parametrize("count", [100, 300, 5000])
def test_the_fall_of_the_decay_is_not_taken_for_learning(count: int) -> None:
    """The loss stands and only falls with the learning rate, as after convergence; in steps it seems to end flat."""
    converged = scheduled(count, lambda _, rate: 0.5 + 0.3 * min(rate, 0.5))
    assert fall(converged) == pytest.approx(0, abs=0.02)
    assert judge(converged, 0.5, 2.0).verdict == "no"
    learning = scheduled(count, lambda done, _: done**-0.5)
    flat_at_the_end = [point.loss for point in learning.points[-len(learning.points) // 10 :]]
    assert flat_at_the_end[0] / flat_at_the_end[-1] < 1.02  # what the end of the curve shows
    assert judge(learning, 1.0, 3.0).verdict == "yes"


def fall(curve: LearningCurve) -> float:
    found = remaining(curve)
    assert found is not None
    return found.value


def noisy(seed: int, share: float) -> Callable[[float], float]:
    draw = np.random.default_rng(seed)
    return lambda value: float(value * np.exp(share * draw.normal()))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_verdict_stands_in_noise(seed: int, schedule: str) -> None:
    """A tenth of noise from step to step, a hundred steps."""
    noise = noisy(seed, 0.1)
    falls = scheduled(100, lambda done, _: noise(0.4 * done**-0.5), schedule)
    assert judge(falls, 0.4, 1.5).verdict == "yes"
    stands = scheduled(100, lambda done, _: noise(0.5 + 0.4 * math.exp(-60 * done)), schedule)
    assert judge(stands, 0.5, 2.0).verdict == "no"


def validated(curve: LearningCurve, losses: list[float]) -> LearningCurve:
    """The curve with validations at even distances, the last one at its end."""
    at = [round(curve.steps * place / len(losses)) for place in range(1, len(losses) + 1)]
    curve.validations += [
        next(point for point in curve.points if point.steps >= step)._replace(loss=loss)
        for step, loss in zip(at, losses, strict=True)
    ]
    return curve


STANDS = [
    0.605,
    0.171,
    0.114,
    0.108,
    0.097,
    0.101,
    0.094,
    0.087,
    0.088,
    0.086,
    0.085,
    0.086,
    0.086,
    0.086,
    0.085,
    0.085,
]
"""Validation losses of a job of sixteen epochs, whose training loss fell to 0.025."""


def test_a_stage_that_fits_its_training_data_alone_has_converged() -> None:
    def falling(scale: float) -> LearningCurve:
        return scheduled(320, lambda done, _: scale / done)

    assert judge(falling(0.025), 0.085, 0.6).verdict == "yes"  # the training loss alone
    found = judge(validated(falling(0.025), STANDS), 0.085, 0.6)
    assert found.verdict == "no"
    assert "took 0.0020 off the validation loss, while the training loss is 0.02" in found.why
    assert judge(validated(falling(0.075), STANDS), 0.085, 0.6).verdict == "yes"  # no worse than on training data
    half = STANDS[::2]
    still = [*half[:-2], half[-2] - FALL, half[-1] - 2 * FALL]
    assert (
        judge(validated(falling(0.025), still), still[-1], 0.6).verdict == "yes"
    )  # the second half took something off
    assert judge(validated(falling(0.025), [0.1, 0.09, 0.09]), 0.09, 0.6).verdict == "yes"  # too few validations
    assert judge(validated(falling(0.025), STANDS), 0.085, 0.09).verdict == "yes"  # learnt by heart, without pictures
    rising = [0.1, 0.09, 0.12, 0.15]
    assert judge(validated(falling(0.025), rising), 0.09, 0.6).verdict == "no"


def test_a_plateau_is_no_convergence() -> None:
    """The loss stands because the pictures are not used yet."""
    plateau = scheduled(200, lambda done, _: 0.6 + 1.4 * math.exp(-60 * done))
    found = judge(plateau, 0.60, 0.61)
    assert fall(plateau) < 0.05
    assert found.verdict == "yes"
    assert "hardly used" in found.why
    assert judge(plateau, 0.6, 3.0).verdict == "no"  # the same curve of a model that uses them


def test_a_small_loss_that_falls_steeply_has_nothing_left() -> None:
    saturated = scheduled(100, lambda done, _: 0.005 / done**2)
    assert fall(saturated) > 0.7
    for loss in (0.005, 0.0086):  # below what counts, and a little above it
        assert judge(saturated, loss, 4.0).verdict == "no"


def test_the_lower_end_is_a_standard_error_away() -> None:
    def flat(seed: int) -> LearningCurve:
        noise = noisy(seed, 0.2)
        return scheduled(100, lambda _, __: noise(1.0))

    found = [remaining(flat(seed)) for seed in range(60)]
    values, errors = zip(*((one.value, one.value - one.low) for one in found if one is not None), strict=True)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)


@pytest.mark.parametrize("seed", range(8))
def test_half_of_a_loss_that_is_noise_is_no_evidence(seed: int) -> None:
    """Near saturation single batches differ by half and more; a real fall is seen all the same."""
    noise = noisy(seed, 0.5)
    assert judge(scheduled(100, lambda _, __: noise(0.03)), 0.03, 4.0).verdict == "no"
    assert judge(scheduled(100, lambda done, _: noise(0.09 / done)), 0.09, 3.0).verdict == "yes"


def test_what_is_not_known_is_said() -> None:
    long = scheduled(100, lambda done, _: done**-0.5)
    for found, why in (
        (judge(None, 0.5, 2.0), "recorded none"),
        (judge(long, 0.5, None), "all validation pictures are the same"),
        (judge(curve_of([1.0] * 5), 0.5, 2.0), "points before the decay"),
        (Learning.of_record(None), "recorded no learning curve"),
    ):
        assert found.verdict == "unknown"
        assert why in found.why
    assert judge(None, 0.60, 0.61).verdict == "yes"  # its curve does not matter
    assert judge(None, FALL / 2, 4.0).verdict == "no"  # nor here


def test_the_record_comes_back() -> None:
    found = judge(scheduled(100, lambda done, _: done**-0.5), 0.5, 2.0)
    assert Learning.of_record(json.loads(json.dumps(found.record()))) == found
    assert Learning.of_record({**found.record(), "of a later version": 1}) == found
    assert found.image_gain == 0.75


@given(st.floats(0, 5), st.floats(-1, 1), st.floats(-1, 1))
def test_more_to_learn_never_makes_it_converged(loss: float, low: float, gain: float) -> None:
    """The verdict is monotonic in each measure."""
    if decide(loss, low, gain)[0] == "yes":
        assert decide(loss, low + 0.1, gain)[0] == "yes"
        assert decide(loss, low, min(gain, IMAGE_GAIN - 0.01))[0] == "yes"
        assert decide(loss * 1.1, low, gain)[0] == "yes"


def test_a_run_is_its_last_stage_and_what_earlier_ones_left() -> None:
    yes, no = Learning("yes", "slope"), Learning("no", "flat")
    assert judge_run({"resampler": (0.3, yes), "finetune": (ROOM / 2, no)}) == no
    assert judge_run({"resampler": (0.3, no), "finetune": (1.0, yes)}) == yes
    assert judge_run({"resampler": (0.3, no), "finetune": (1.0, no)}) == no
    found = judge_run({"resampler": (0.3, yes), "finetune": (2 * ROOM, no)})
    assert found == Learning("yes", "stage resampler: slope")
