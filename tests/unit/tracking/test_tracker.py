"""The tracker that keeps nothing takes every call of the protocol."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import numpy as np
import pytest

from panollava.tracking.additional import CompositeTracker
from panollava.tracking.mlflow_tracker import MlflowTracker
from panollava.tracking.tensorboard_tracker import TensorBoardTracker
from panollava.tracking.tracker import NullTracker, Tracker, closing_status
from panollava.tracking.wandb_tracker import WandbTracker


def _signature(function: Any) -> inspect.Signature:
    """With evaluated annotations, of which numpy's are imported for type checks alone."""
    names = {**vars(sys.modules[function.__module__]), "np": np}
    return inspect.signature(function, globals=names, eval_str=True)


@pytest.mark.parametrize("tracker", [NullTracker, MlflowTracker, CompositeTracker, WandbTracker, TensorBoardTracker])
def test_every_tracker_takes_the_calls_of_the_protocol(tracker) -> None:
    for name, member in vars(Tracker).items():
        if inspect.isfunction(member) and (not name.startswith("_") or name in ("__enter__", "__exit__")):
            assert _signature(getattr(tracker, name)) == _signature(member), name


def test_the_null_tracker_lets_errors_through_and_keeps_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    def train() -> None:
        with NullTracker() as tracker:
            tracker.metrics({"loss": 1.0}, step=0)
            tracker.table([], "answers.json")
            assert tracker.run_id is None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED"), (OSError, "FAILED")],
)
def test_the_status_follows_from_the_exception(error, status) -> None:
    assert closing_status(error) == status
