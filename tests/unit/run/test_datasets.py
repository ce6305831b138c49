"""The digest of a split: the same for the same content, another for any other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support.box_folders import write_voc, write_yolo

from panollava.crop.boxes import PictureBoxes
from panollava.crop.crop import Crop
from panollava.data.boxes import BoxAnnotations, Conventions
from panollava.data.world import WorldSource
from panollava.run.data import describe_split, digest_of
from panollava.run.sources import open_source

WORLD = {"name": "world", "type": "world", "train_scenes": 4, "val_scenes": 2, "test_scenes": 2, "seed": 3}


def test_a_world_is_what_it_is_drawn_from() -> None:
    digests = {split: digest_of(WORLD, split) for split in ("train", "val", "test")}
    assert len(set(digests.values())) == 3
    assert digest_of({**WORLD, "name": "other", "test_scenes": 5}, "train") == digests["train"]
    assert digest_of({**WORLD, "level": 1}, "train") == digests["train"]
    for key, value in {"seed": 4, "train_scenes": 5, "turn_deg": 45.0, "level": 2}.items():
        assert digest_of({**WORLD, key: value}, "train") != digests["train"]
    described = describe_split(WORLD, "val", WorldSource(split="val", scenes=2, seed=3))
    assert (described.name, described.context, described.digest) == ("world-val", "validation", digests["val"])
    assert json.loads(described.profile) == {"num_rows": 2}
    assert json.loads(described.source)["tags"]["seed"] == "3"


@pytest.fixture
def data(tmp_path: Path) -> dict[str, object]:
    cv2.imwrite(str(tmp_path / "pano.png"), np.zeros((64, 128, 3), np.uint8))
    (tmp_path / "train.csv").write_text("url,query,annotation\npano.png,무슨 색?,검정\n", encoding="utf-8")
    return {"name": "mine", "type": "files", "train_csv": str(tmp_path / "train.csv")}


def test_a_file_is_its_bytes_wherever_it_lies(data, tmp_path) -> None:
    digest = digest_of(data, "train")
    copy = tmp_path / "elsewhere.csv"
    copy.write_bytes(Path(str(data["train_csv"])).read_bytes())
    assert digest_of({**data, "train_csv": str(copy)}, "train") == digest
    copy.write_bytes(copy.read_bytes() + b"pano.png,a,b\n")
    assert digest_of({**data, "train_csv": str(copy)}, "train") != digest
    source = open_source(data, "train", Crop.from_spec({"type": "resize"}, view_size=(8, 8)))
    described = describe_split(data, "train", source)
    assert json.loads(described.source) == {"uri": str(tmp_path / "train.csv")}
    assert (described.source_type, json.loads(described.profile)) == ("local", {"num_rows": 1})


@pytest.mark.parametrize(("write", "suffix"), [(write_voc, ".xml"), (write_yolo, ".txt")])
def test_a_folder_of_boxes_is_its_names_and_bytes(write: Any, suffix: str, tmp_path: Path) -> None:
    """Files that are no boxes, such as pictures beside them, do not count."""
    one = PictureBoxes(np.array([[10.0, 20.0, 30.0, 40.0, 0.0]]), np.zeros(1, int))
    for name, box in (("a", one), ("copy", one), ("changed", replace(one, boxes=one.boxes + 1))):
        write(tmp_path / name, BoxAnnotations(("chair",), {"p.png": box, "q.png": one}), Conventions())
    cv2.imwrite(str(tmp_path / "a" / "p.png"), np.zeros((64, 128, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "a" / "q.png"), np.zeros((64, 128, 3), np.uint8))
    data = {"name": "mine", "type": "annotated", "classes": ["chair"]}
    digests = {
        name: digest_of({**data, "train_boxes": str(tmp_path / name)}, "train") for name in ("a", "copy", "changed")
    }
    assert digests["a"] == digests["copy"] != digests["changed"]
    (tmp_path / "copy" / f"p{suffix}").rename(tmp_path / "copy" / f"r{suffix}")
    assert digest_of({**data, "train_boxes": str(tmp_path / "copy")}, "train") != digests["a"]
    data["train_boxes"] = str(tmp_path / "a")
    source = open_source(data, "train", Crop.from_spec({"type": "resize"}, view_size=(8, 8)))
    described = describe_split(data, "train", source)
    assert json.loads(described.source) == {"uri": str(tmp_path / "a")}
    assert (described.digest, json.loads(described.profile)) == (digests["a"], {"num_rows": 2})
