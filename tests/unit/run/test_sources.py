"""Opening the splits of a data set: one kind of file or several, and all their problems at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from panollava.crop.boxes import PictureBoxes, Places
from panollava.crop.crop import Crop
from panollava.crop.strategies import ResizeCrop
from panollava.data.csv import BadEntries
from panollava.data.world import WorldSource
from panollava.logs import LOG
from panollava.run.evaluate_places import as_learnt
from panollava.run.preflight import _examined
from panollava.run.sources import open_source, open_splits, without_boxes

CROP = Crop(ResizeCrop(), view_size=(32, 32))
ENTRY = {"image": "a.jpg", "conversations": [{"human": "q", "assistant": "a"}]}


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    """A section with a CSV, a JSON and a JSON Lines file."""
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((32, 64, 3), np.uint8))
    (tmp_path / "train.csv").write_text("image,question,answer\na.jpg,q,a\n", encoding="utf-8")
    (tmp_path / "val.json").write_text(json.dumps([ENTRY]), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text(json.dumps(ENTRY), encoding="utf-8")
    files = {"train_csv": "train.csv", "val_json": "val.json", "test_json": "test.jsonl"}
    paths = {key: str(tmp_path / name) for key, name in files.items()}
    return {"type": "files", "name": "mine", "dir": str(tmp_path), **paths, "image_dir": None, "on_error": "stop"}


def test_the_suffix_chooses_the_reader_of_each_split(data: dict[str, Any]) -> None:
    splits = open_splits(data, ("train", "val", "test"), CROP)
    assert [splits[name].record(0, 0).turns for name in ("train", "val", "test")] == [(("q", "a"),)] * 3
    ids = [splits[name].record(0, 0).sample_id for name in ("train", "val", "test")]
    assert ids == ["mine-train-row2", "mine-val-entry1", "mine-test-line1"]


def test_problems_of_all_splits_are_told_at_once(data: dict[str, Any]) -> None:
    Path(data["train_csv"]).write_text("image,question,answer\ngone.jpg,q,a\n", encoding="utf-8")
    Path(data["val_json"]).write_text("[{", encoding="utf-8")
    Path(data["test_json"]).unlink()
    with pytest.raises(ValueError, match=r"problems:(?s:.*)row 2, column image(?s:.*)line 1, column 3(?s:.*)no such"):
        open_splits(data, ("train", "val", "test"), CROP)
    with pytest.raises(BadEntries):  # one alone is raised as it is
        open_splits({**data, "val_json": data["train_csv"]}, ("train", "val"), CROP)


def test_what_is_left_out_is_logged(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(data["train_csv"]).open("a", encoding="utf-8") as file:
        file.write("a.jpg,,a\n")
    lines: list[str] = []
    monkeypatch.setattr(LOG, "warning", lambda text, *values: lines.append(text % values))
    assert len(open_source({**data, "on_error": "skip"}, "train", CROP)) == 1
    (line,) = lines
    assert "1 of 2 rows are bad (the header is row 1) and left out:\n  row 3, column question: the cell is" in line


def test_splits_that_share_pictures_are_told_of(data: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """By other folders, and as a copy of another name; pictures of one size alone are others."""
    root = Path(data["dir"])
    (root / "train").mkdir()
    (root / "copy.jpg").write_bytes((root / "a.jpg").read_bytes())
    for name, value in [("b.png", 100), ("c.png", 101)]:
        cv2.imwrite(str(root / name), np.full((32, 64, 3), value, np.uint8))
    assert (root / "b.png").stat().st_size == (root / "c.png").stat().st_size
    files = {"train/train.csv": "../a.jpg ../b.png", "val.csv": "copy.jpg", "test.csv": "a.jpg c.png"}
    for file, names in files.items():
        (root / file).write_text("url,query,annotation\n" + "".join(f"{name},q,a\n" for name in names.split()))
    paths = {f"{Path(file).stem}_csv": str(root / file) for file in files}
    section = {key: value for key, value in data.items() if not key.endswith("_json")} | paths
    lines: list[str] = []
    monkeypatch.setattr(LOG, "warning", lambda text, *values: lines.append(text % values))
    open_splits(section, ("train", "val", "test"), CROP)
    a, copy = root / "train/../a.jpg", root / "copy.jpg"
    assert lines == [
        f"Data mine: train and val share 1 picture, such as {a}, which val calls {copy}.",
        f"Data mine: train and test share 1 picture, such as {a}.",
        f"Data mine: val and test share 1 picture, such as {copy}, which test calls {root / 'a.jpg'}.",
    ]


class _Undrawn(WorldSource):
    """A world whose masks must not be drawn."""

    def places(self, index: int) -> Places:
        raise AssertionError("only boxes are needed")


class _Bare(_Undrawn):
    """A world that has boxes in its third scene alone."""

    def boxes(self, index: int) -> PictureBoxes:
        return super().boxes(index) if index == 2 else PictureBoxes(np.zeros((0, 5)), np.zeros(0, int))


def test_boxes_are_asked_for_without_masks() -> None:
    assert without_boxes(_Undrawn(split="test", scenes=3)) == ""
    _, pictures = _examined(_Undrawn(split="train", scenes=3))
    assert [len(one.boxes) > 0 for one in pictures] == [True] * 3


def test_a_split_without_a_box_is_named() -> None:
    bare = _Bare(split="test", scenes=4)
    assert without_boxes(bare) == without_boxes(bare, 3) == ""
    assert without_boxes(bare, 2).startswith("world-test (drawn): the first 2 of 4 pictures (max_samples=2) without")
    assert without_boxes(_Bare(split="test", scenes=2)).startswith(
        "world-test (drawn): 2 pictures without a single box"
    )


def test_an_unknown_class_is_told_without_keys_that_eval_lacks() -> None:
    assert as_learnt(["lamp"], ["chair", "lamp"]).tolist() == [1, -2, -1]
    with pytest.raises(ValueError, match=r"the class sofa is none that the stage has learnt \(chair\)") as error:
        as_learnt(["chair", "sofa"], ["chair"])
    assert "data.classes" not in str(error.value)
