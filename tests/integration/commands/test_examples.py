"""The example scripts run, end to end, with little to do."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from types import ModuleType

import pytest
from support import ROOT
from transformers import AutoModelForImageTextToText

from panollava.checkpoint import BEST, find_checkpoint, read_state
from panollava.logs import configure_console
from panollava.model.api import PanoLlava

FOLDER = ROOT / "experiments" / "examples"


def example(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tried() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {"basic_usage", "custom_training"}


def test_basic_usage(in_recorded: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="example"):
        example("basic_usage").main("runs/recorded")
    said = [record.getMessage() for record in caplog.records if record.name == "example"]
    assert len(said) == 6
    assert [("(right: " in line) for line in said] == [True] * 4 + [False] * 2
    assert said[4].startswith("what is behind?\n    ")


def test_custom_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    configure_console()
    example("custom_training").main("by_hand", scenes=16, epochs=1)
    said = capsys.readouterr().err
    assert "finetune step 2: validation loss" in said
    state = read_state(find_checkpoint(Path("by_hand")))
    assert f"Validation loss {state['validation_loss']:.4f} after" in said
    assert (Path("by_hand") / BEST).is_dir()
    assert PanoLlava.from_pretrained("by_hand/export").image_tokens == 4 * 16
    AutoModelForImageTextToText.from_pretrained("by_hand/export")
