"""Failures of launchers are told in a line, in Hydra's way."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException

from panollava.config.launch import tell_failures


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A launcher that fails with what it is given; its ``launch``, as Hydra calls it."""

    class Failing:
        def launch(self, job_overrides: Any, initial_job_idx: int) -> list[Any]:
            if isinstance(job_overrides, Exception):
                raise job_overrides
            return [job_overrides, initial_job_idx]

    monkeypatch.setitem(Plugins.instance().class_name_to_class, "hydra_plugins.failing", Failing)  # type: ignore[arg-type]
    tell_failures("hydra_plugins.failing")
    once = Failing.launch
    tell_failures("hydra_plugins.failing")
    assert Failing.launch is once
    return Failing().launch


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BrokenProcessPool("A worker died"), "A process of the launcher was ended from outside.*n_jobs"),
        (RuntimeError('Could not detect "srun"'), 'RuntimeError: Could not detect "srun"'),
    ],
)
def test_a_failure_is_hydras(launcher: Callable[..., Any], error: Exception, told: str) -> None:
    with pytest.raises(CompactHydraException, match=told):
        launcher(error, initial_job_idx=0)


def test_jobs_pass(launcher: Callable[..., Any]) -> None:
    assert launcher(["seed=1"], initial_job_idx=3) == [["seed=1"], 3]


def test_an_unknown_launcher_is_left_to_hydra() -> None:
    tell_failures("hydra_plugins.nobody")
