"""What reports say of learning: the run's verdict from its states, the way to a common loss, and the drawn curves."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure

from panollava.run.learning_report import (
    FAST,
    common_loss,
    draw_curves,
    learning_notes,
    learning_summary,
    run_learning,
    samples_to,
    way_to_common_loss,
)
from panollava.training.learning import Learning, LearningCurve


def state(verdict: str, loss: float = 0.5) -> dict[str, Any]:
    return {"validation_loss": loss, "learning": {"verdict": verdict, "why": "because"}}


def curve(*losses: float, samples: float = 10.0) -> LearningCurve:
    found = LearningCurve()
    for place, loss in enumerate(losses, start=1):
        found.step(samples * place, 1e-3, loss)
    return found


def test_a_run_is_judged_by_the_stages_up_to_its_last() -> None:
    vision = {"validation_loss": 20.0, "learning": None}
    states = {"vision/x": vision, "resampler/x": state("yes"), "finetune/x": state("no", 0.01)}
    assert run_learning(states, "vision/x") is None
    for last, verdict in (("resampler/x", "yes"), ("finetune/x", "no")):
        found = run_learning(states, last)
        assert found is not None
        assert found.verdict == verdict
    states["finetune/x"] = state("no", 0.5)
    found = run_learning(states, "finetune/x")
    assert found is not None
    assert (found.verdict, found.why) == ("yes", "stage resampler: because")
    states["finetune/x"]["status"] = "running"  # goes on with more epochs
    found = run_learning(states, "finetune/x")
    assert found is not None
    assert (found.verdict, found.why) == ("unknown", "stage finetune has not finished")
    for older in ({}, {"finetune/x": {"validation_loss": 0.5}}):
        found = run_learning(older, "finetune/x")
        assert found is not None
        assert found.verdict == "unknown"


def test_other_settings_of_the_folder_do_not_count() -> None:
    """Nor does the order in which the folder's stages were started."""
    states = {"resampler/mlp": state("yes"), "finetune/mlp": state("no"), "finetune/bimamba": state("no")}
    found = run_learning(states, "finetune/bimamba")
    assert found is not None
    assert found.verdict == "no"
    states = {"finetune/x": state("no", 0.3), "resampler/x": state("yes"), "mine/x": state("no", 0.3)}
    for last in ("finetune/x", "mine/x"):  # also a stage of another package
        found = run_learning(states, last)
        assert found is not None
        assert (found.verdict, found.why) == ("yes", "stage resampler: because")
    found = run_learning({"mine/x": state("yes"), "finetune/x": state("no", 0.3)}, "finetune/x")
    assert found is not None
    assert found.why == "stage mine: because"
    states = {"finetune/mlp": state("no", 0.01), "resampler/x": state("yes"), "finetune/x": state("no", 0.01)}
    found = run_learning(states, "finetune/x")
    assert found is not None
    assert found.verdict == "no"


def test_notes_name_runs_and_the_summary_counts_them() -> None:
    found = {name: Learning(verdict, f"why {name}") for name, verdict in (("a", "yes"), ("b", "no"), ("c", "unknown"))}  # type: ignore[arg-type]
    first, second = learning_notes(found)
    assert first.startswith("a was still learning when its training ended (why a)")
    assert FAST in first
    assert second.startswith("It is not known whether c ")
    first, second = learning_summary(list(found.values()))
    assert first.startswith(f"Still learning when training ended: 1 of 3 jobs. So {FAST}")
    assert second.startswith("Of 1 of 3 jobs it is not known")
    assert learning_notes({"b": found["b"]}) == learning_summary([found["b"]]) == []


def test_the_common_loss_is_one_that_all_reached() -> None:
    fast, slow = curve(5.0, 2.0, 1.0), curve(6.0, 5.0, 3.0, samples=5.0)
    assert common_loss([fast, slow]) == 3.0
    assert common_loss([fast]) is None
    assert common_loss([fast, LearningCurve()]) is None
    assert (samples_to(fast, 3.0), samples_to(slow, 3.0), samples_to(slow, 2.0)) == (20.0, 15.0, None)
    assert way_to_common_loss({"a": fast, "b": slow}, {"a": 4.0, "b": None}) == {
        "a": {"common_loss": 3.0, "samples_to_common_loss": 20.0, "seconds_to_common_loss": 5.0},
        "b": {"common_loss": 3.0, "samples_to_common_loss": 15.0},
    }
    assert way_to_common_loss({"a": fast}, {"a": 4.0}) == {}


@pytest.mark.parametrize(("lowest", "scale"), [(1.0, "log"), (4.0, "linear"), (0.0, "linear")])
def test_curves_are_drawn_with_a_colour_for_each_setting(lowest: float, scale: str) -> None:
    axes = Figure().subplots()
    draw_curves(axes, "finetune", [("mlp", curve(5.0, lowest)), ("mlp", curve(5.0, 4.5)), ("qformer", curve(5.0, 4.0))])
    *lines, common = axes.lines
    assert [line.get_ydata()[-1] for line in lines] == [lowest, 4.5, 4.0]  # type: ignore[index]
    assert common.get_ydata()[0] == 4.5  # type: ignore[index]
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["mlp", "qformer", "reached by all"]
    assert axes.get_yscale() == scale
