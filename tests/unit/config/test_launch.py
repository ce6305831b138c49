"""Failures of launchers are told in a line, in Hydra's way."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException

from panollava.config.sweep import queued, watch_launcher


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A launcher that fails with what it is given; its ``launch``, as Hydra calls it."""

    class Failing:
        def launch(self, job_overrides: Any, initial_job_idx: int) -> list[Any]:
            if isinstance(job_overrides, Exception):
                raise job_overrides
            return [job_overrides, initial_job_idx]

    monkeypatch.setitem(Plugins.instance().class_name_to_class, "hydra_plugins.failing", Failing)  # type: ignore[arg-type]
    watch_launcher("hydra_plugins.failing", Path())
    watch_launcher("hydra_plugins.failing", Path())
    assert not hasattr(Failing.launch.__wrapped__, "__wrapped__")  # type: ignore[attr-defined]
    return Failing().launch


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BrokenProcessPool("A worker died"), "A process of the launcher was killed.*n_jobs"),
        (RuntimeError('Could not detect "srun"'), 'RuntimeError: Could not detect "srun"'),
    ],
)
def test_a_failure_is_hydras(launcher: Callable[..., Any], error: Exception, told: str) -> None:
    with pytest.raises(CompactHydraException, match=told):
        launcher(error, initial_job_idx=0)


def test_jobs_pass(launcher: Callable[..., Any]) -> None:
    assert launcher(["seed=1"], initial_job_idx=3) == [["seed=1"], 3]


def test_an_unknown_launcher_is_left_to_hydra() -> None:
    watch_launcher("hydra_plugins.nobody", Path())


def test_only_arrays_that_the_cluster_knows_are_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queued(["1", "2", "3"]) == []
    program = tmp_path / "squeue"
    program.write_text('#!/bin/sh\n[ "$3" = 1 ] && echo "1_0 pending"\n[ "$3" != 3 ]\n')
    program.chmod(0o755)
    assert queued(["1", "2", "3"]) == ["1"]
