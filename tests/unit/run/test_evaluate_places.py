"""Where the detections of an evaluation are written."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from panollava.run import evaluate_places
from panollava.run.evaluate_places import DETECTIONS, METRICS, PICTURE

NAME = "detections_20260101_000000"


@pytest.fixture(autouse=True)
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_places, "datetime", SimpleNamespace(now=lambda: datetime(2026, 1, 1)))


def written(parent: Path) -> Path:
    document = {"boxes": None, "masks": None, "blank": None, "settings": {"folder": parent}}
    return evaluate_places._write(parent, "demo", {}, ("a", "b"), document, b"PNG")


def test_evaluations_of_a_second_have_a_folder_each(tmp_path: Path) -> None:
    folders = [written(tmp_path) for _ in range(3)]
    assert [one.name for one in folders] == [NAME, f"{NAME}_2", f"{NAME}_3"]
    assert {*tmp_path.iterdir()} == {*folders}
    for folder in folders:
        assert {one.name for one in folder.iterdir()} == {METRICS, DETECTIONS, PICTURE}
        document = json.loads((folder / METRICS).read_text("utf-8"))
        assert (document["classes"], document["settings"]) == (["a", "b"], {"folder": str(tmp_path)})


def test_an_evaluation_replaces_none_that_ended_while_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_another(*_: object) -> None:
        (tmp_path / NAME).mkdir()
        (tmp_path / NAME / METRICS).write_text("another's", encoding="utf-8")

    monkeypatch.setattr(evaluate_places, "write_detections", of_another)
    assert written(tmp_path) == tmp_path / f"{NAME}_2"
    assert (tmp_path / NAME / METRICS).read_text("utf-8") == "another's"


def test_an_evaluation_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluate_places, "write_detections", full)
    with pytest.raises(OSError, match="Free some space"):
        written(tmp_path / "demo")
    assert list((tmp_path / "demo").iterdir()) == []
