"""The example scripts run, end to end, with little to do."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from types import ModuleType

import pytest
from support import ROOT
from transformers import AutoModelForImageTextToText

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
    example("custom_training").main("mine", count=6, epochs=1)
    said = capsys.readouterr().err
    assert "finetune step 1: validation loss" in said
    assert PanoLlava.from_pretrained("mine").metadata["stage"] == "finetune"
    assert PanoLlava.from_pretrained("mine/export").image_tokens == 9 * 16
    AutoModelForImageTextToText.from_pretrained("mine/export")


def test_custom_training_is_short() -> None:
    text = (FOLDER / "custom_training.py").read_text(encoding="utf-8")
    code = text.removeprefix(text[: text.index('"""', 3) + 3])
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
