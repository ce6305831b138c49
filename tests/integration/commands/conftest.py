"""A finished three-stage run with everything recorded, made once for the tests that look at it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.hostile import TRACING, UNPICKLED
from support.runs import QUICK, backbones, command

from panollava import train


@pytest.fixture(scope="session")
def talkative(backbone: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model whose weights are large enough that what it says depends on what it is asked."""
    folder = tmp_path_factory.mktemp("language") / "talkative"
    shutil.copytree(backbone("llama"), folder)
    file = folder / "model.safetensors"
    weights = {name: value * 6 if value.ndim == 2 else value for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def recorded_arguments(backbone: Callable[[str], Path], talkative: Path) -> list[str]:
    """The command line of ``recorded``."""
    quick = [*QUICK, "data.test_scenes=2", "stage.vision.epochs=2", "evaluation.max_new_tokens=8"]
    quick += [f"stage.{name}.max_text_length=200" for name in ("resampler", "finetune")]
    return [*backbones(backbone), f"language.name={talkative}", *quick, "experiment_name=recorded"]


@pytest.fixture(scope="session")
def recorded(recorded_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a run of all three stages, tracked with MLflow."""
    folder = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command(patch, train, *recorded_arguments) == 0
    return folder


@pytest.fixture
def in_recorded(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same, as the working directory; its results, which every test reads, must stay as training left them."""
    monkeypatch.chdir(recorded)
    before = sorted(recorded.glob("results/**"))
    yield recorded
    assert sorted(recorded.glob("results/**")) == before, "write elsewhere: results_dir=…"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Whatever unpickles is found out, in an empty working directory where nothing may explode."""
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments: Any, **_options: Any) -> None:
        UNPICKLED.append(f"torch.load {arguments[:1]}")
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", refuse)
    UNPICKLED.clear()
    TRACING[0] = True
    yield
    TRACING[0] = False
    assert UNPICKLED == []
    assert not Path("exploded").exists()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refused(module, *arguments)``: the message with which a command ends."""

    def run(module: object, *typed: str) -> str:
        capsys.readouterr()
        status = command(monkeypatch, module, *typed)
        captured = capsys.readouterr()
        said = captured.out + captured.err
        assert status == 1, said
        assert "Traceback" not in said
        return said

    return run
