"""A finished three-stage run with everything recorded, made once for the tests that look at it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from runs import QUICK, backbones, command

from panollava import train


@pytest.fixture(scope="session")
def recorded_arguments(backbone: Callable[[str], Path]) -> list[str]:
    """The command line of ``recorded``."""
    quick = [*QUICK, "data.test_scenes=2", "stage.vision.epochs=2", "evaluation.max_new_tokens=8"]
    return [*backbones(backbone), *quick, "experiment_name=recorded"]


@pytest.fixture(scope="session")
def recorded(recorded_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a run of all three stages, tracked with MLflow."""
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command(patch, train, *recorded_arguments) == 0
    return folder


@pytest.fixture
def in_recorded(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the working directory."""
    monkeypatch.chdir(recorded)
    return recorded
