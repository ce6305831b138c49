"""Concerns about a stage: raised when there is reason, told once, and kept while they hold."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from support.toy_training import ScriptedStage, Toy, ToyStage, steps

from panollava.logs import LOG
from panollava.training.loop import STILL_STEPS, STILL_VALIDATIONS, TrainingMonitor


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """What is warned of, also where an earlier test has taken the log for itself."""
    monkeypatch.setattr(LOG, "propagate", True)
    with caplog.at_level(logging.WARNING, "panollava"):
        yield caplog


class Worried(ToyStage):
    """Has a concern when `loss` is above one."""

    def concern(self, metrics: Mapping[str, float]) -> str | None:
        """See above."""
        return f"{metrics['loss']} is too much" if metrics["loss"] > 1 else None


def test_a_loss_that_moves_is_no_concern(told: pytest.LogCaptureFixture) -> None:
    monitor = TrainingMonitor(ToyStage())
    for step in range(5 * STILL_STEPS):
        monitor.step(3.0 + 1e-4 * (step % 2), 0.1, 1e-3)
        monitor.validation({"loss": 2.0 - 1e-4 * step})
    assert monitor.concerns == []
    assert told.messages == []


def test_a_loss_that_stands_still_over_steps_is_told_once(told: pytest.LogCaptureFixture) -> None:
    monitor = TrainingMonitor(ToyStage())
    for step in range(3 * STILL_STEPS):
        monitor.step(24.75, 0.0, 1e-3)
        assert bool(monitor.concerns) is (step + 1 >= STILL_STEPS)
    (message,) = told.messages
    assert message.startswith("Stage toy: the loss has been 24.75 in each of the last 20 steps")
    assert "gradient norm 0.0e+00, lr 1.0e-03" in message
    assert "stage.toy.lr" in message
    monitor.step(20.0, 0.1, 1e-3)
    assert monitor.concerns == []


def test_a_loss_that_stands_still_over_validations_is_told(told: pytest.LogCaptureFixture) -> None:
    monitor = TrainingMonitor(ToyStage())
    for loss in [3.0] * (STILL_VALIDATIONS - 1) + [2.0] * STILL_VALIDATIONS:
        assert monitor.concerns == []
        monitor.validation({"loss": loss})
    (concern,) = monitor.concerns
    assert "validation loss has been 2 in each of the last 3 validations" in concern
    assert told.messages == [f"Stage toy: {concern}"]


def test_a_stage_s_own_concern_is_told_once_and_kept_up_to_date(told: pytest.LogCaptureFixture) -> None:
    monitor = TrainingMonitor(Worried())
    for loss in (0.5, 2.0, 3.0):
        monitor.validation({"loss": loss})
    assert monitor.concerns == ["3.0 is too much"]
    assert told.messages == ["Stage toy: 2.0 is too much"]
    monitor.validation({"loss": 0.5})
    assert monitor.concerns == []


def test_what_holds_at_the_end_is_part_of_the_result(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    assert Toy(tmp_path / "fine", ScriptedStage([3.0, 2.0, 1.0])).fit(steps(2), epochs=3).concerns == []
    assert told.messages == []
    stuck = Toy(tmp_path / "stuck", ScriptedStage([2.0] * 4)).fit(steps(2), epochs=4)
    assert len(stuck.concerns) == 1
    assert "last 4 validations" in stuck.concerns[0]
    assert "last 3 validations" in told.messages[0]


def test_a_caveat_stands_beside_the_numbers(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    stage = ToyStage()
    stage.caveat = "they prove nothing"
    with told.at_level(logging.INFO, "panollava"):
        Toy(tmp_path, stage).fit(steps(2))
    assert any("validation loss" in message and message.endswith("; they prove nothing") for message in told.messages)
