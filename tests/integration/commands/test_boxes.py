"""``data=boxes``: the check names bad rows and draws the boxes, the gallery draws them, and a training learns them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support.box_folders import write_voc
from support.runs import QUICK, Backbone, backbones, command, run_train

from panollava import check, gallery
from panollava.crop.boxes import NOTHING
from panollava.data.box_files import write_coco
from panollava.data.boxes import PRESETS, BoxAnnotations, Conventions, parse_box
from panollava.data.world import WorldSource

Capture = pytest.CaptureFixture[str]
SPLITS = ("train", "val", "test")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: two scenes of the built-in world a split in ``data``, with boxes and masks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    (tmp_path / "data" / "masks").mkdir(parents=True)
    for split in SPLITS:
        world = WorldSource(split=split, scenes=2)
        for index in range(2):
            name, pixels = f"{split}{index}.png", world.places(index).pixels
            assert pixels is not None
            cv2.imwrite(f"data/{name}", world.panorama(index)[..., ::-1])
            Image.fromarray(np.where(pixels == NOTHING, 0, pixels + 1).astype(np.uint8)).save(f"data/masks/{name}")
    write(Conventions())
    return tmp_path


def write(conventions: Conventions, written: Callable[..., None] = write_coco, suffix: str = ".json") -> None:
    for split in SPLITS:
        world = WorldSource(split=split, scenes=2)
        pictures = {f"{split}{index}.png": world.places(index).boxes for index in range(2)}
        written(Path("data", f"{split}{suffix}"), BoxAnnotations(world.class_names, pictures), conventions)


def ran(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, module: object, *arguments: str
) -> tuple[int, list[str], str]:
    """Exit status, the lines of the report, and the error stream."""
    capsys.readouterr()
    status = command(monkeypatch, module, "data=boxes", *arguments)
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


def test_a_sound_data_set_is_drawn(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    status, lines, _ = ran(monkeypatch, capsys, check, "data.masks=data/masks", "num_workers=0", "full=true")
    assert (status, lines[-1]) == (0, "Nothing is wrong.")
    assert lines[0].startswith("train: 2 records, 2 pictures, ")
    assert lines[3] == (
        "Boxes of train: train0.png, train: train1.png, val: val0.png, val: val1.png, test: test0.png, test: "
        "test1.png: boxes.png"
    )
    with Image.open("boxes.png") as picture:
        right = np.asarray(picture)
    write(replace(PRESETS["indoor360"], pitch="latitude"))
    arguments = ["num_workers=0", "texts=0", "out=pictures/wrong.png"]
    status, lines, errors = ran(monkeypatch, capsys, check, *arguments)
    assert status == 0
    assert "train.json: all yaws are from 0 to 360 degrees" in errors
    assert "state data.origin=corner." in errors
    with Image.open("pictures/wrong.png") as picture:
        assert (np.asarray(picture)[: len(right)] != right).any()


def test_each_bad_row_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    document = json.loads(Path("data/train.json").read_text())
    document["annotations"][0]["bbox"][2] = 190
    document["annotations"][-1]["category_id"] = 99
    Path("data/train.json").write_text(json.dumps(document))
    Path("data/val0.png").write_bytes(Path("data/val0.png").read_bytes()[:200])
    Image.fromarray(np.full((256, 512), 77, np.uint8)).save("data/masks/test0.png")
    Image.fromarray(np.zeros((256, 510), np.uint8)).save("data/masks/test1.png")
    arguments = ["data.masks=data/masks", "num_workers=0", "texts=0"]
    status, lines, errors = ran(monkeypatch, capsys, check, *arguments)
    assert status == 1
    assert "bad entries or files: 2 in train, 1 in val, 2 in test" in errors
    for start, end in (
        ("data/train.json, annotation 1 (id 1): horizontal=190 is not an extent within (0, 180]", ""),
        (
            f"data/train.json, annotation {len(document['annotations'])} ",
            "none of the categories 1, 2, 3, 4, 5, 6, 7, 8",
        ),
        ("data/val.json, picture 1, val0.png: ", ""),
        ("data/test.json, picture 1, test0.png: the mask data/masks/test0.png has the index 77", ""),
        ("data/test.json, picture 2, test1.png: the mask data/masks/test1.png has 510x256 pixels", "512x256"),
    ):
        assert [line for line in lines if line.startswith(start) and line.endswith(end)], start
    status, lines, _ = ran(monkeypatch, capsys, check, *arguments, "data.on_error=skip", "splits=[val]")
    assert (status, lines[-1]) == (0, "Bad: 1 in val; data.on_error=skip leaves them out.")


def test_a_picture_that_cannot_be_written_is_refused_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    status, lines, errors = ran(monkeypatch, capsys, check, "out=boxes.jpg")
    assert (status, lines) == (1, [])
    assert "out=boxes.jpg: the picture is a PNG file" in errors
    status, _, _ = ran(monkeypatch, capsys, check, "out=null", "texts=0", "num_workers=0")
    assert status == 0
    assert not list(folder.glob("*.png"))


def test_the_gallery_draws_places(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    found = {}
    for name, arguments in {
        "plain": [],
        "boxes": ["places=true"],
        "masks": ["places=true", "data.masks=data/masks"],
        "other": ["places=true", "index=1", "split=test"],
    }.items():
        status, _, errors = ran(monkeypatch, capsys, gallery, "crop=resize", f"out={name}.png", *arguments)
        assert status == 0, errors
        with Image.open(f"{name}.png") as picture:
            found[name] = np.asarray(picture)
    assert "of data/test1.png" in errors
    names = list(found)
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            assert (found[one] != found[other]).any(), (one, other)
    status, _, errors = ran(monkeypatch, capsys, gallery, "index=2")
    assert (status, "index=2: the split train has the records 0 to 1" in errors) == (1, True)
    status, _, errors = ran(monkeypatch, capsys, gallery, "places=true", "image=data/val0.png")
    assert (status, "places=true draws boxes of a data set" in errors) == (1, True)


def test_the_gallery_draws_places_of_the_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, gallery, "crop=resize", "places=true", "data.seed=3") == 0
    assert "of a panorama of the built-in world" in capsys.readouterr().err
    Path("x.csv").write_text("url,query,annotation\ngallery.png,a,b\n")
    cv2.imwrite("gallery.png", WorldSource(split="train", scenes=1).panorama(0))
    status = command(monkeypatch, gallery, "data=csv", "data.train_csv=x.csv", "places=true", "out=y.png")
    assert (status, "places=true: data=csv has no boxes. Choose data=boxes" in capsys.readouterr().err) == (1, True)


def test_splits_with_other_classes_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    document = json.loads(Path("data/val.json").read_text())
    document["categories"][0]["name"] = "sofa"
    Path("data/val.json").write_text(json.dumps(document))
    status, _, errors = ran(monkeypatch, capsys, check, "texts=0", "num_workers=0")
    assert status == 1
    assert "the classes of val (sofa, " in errors
    assert "State the classes and their order with data.classes" in errors


def test_a_training_learns_the_boxes(folder: Path, backbone: Backbone) -> None:
    """Three stages and the questions of the test split, with panoramas rotated together with their answers.

    The boxes are files of a folder, of which the default tracker records a digest.
    """
    quick = [argument for argument in QUICK if not argument.startswith("data.")]
    write(PRESETS["pandora"], write_voc, "")
    folders = [f"data.{split}_boxes=data/{split}" for split in SPLITS]
    classes = ",".join(WorldSource(split="val", scenes=2).class_names)
    chosen = ["data=boxes", "data.preset=pandora", "data.augment=true", "trainer.max_steps=1", "data.image_dir=data"]
    masks = ["data.masks=data/masks", f"data.classes=[{classes}]"]
    run_train(*backbones(backbone), *quick, *chosen, *folders, *masks, "experiment_name=boxes")
    (path,) = (folder / "results").rglob("predictions.csv")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} <= {"box", "classes"}
    assert all(parse_box(row["reference"]) is not None for row in rows if row["kind"] == "box")
    assert {row["history"] for row in rows} == {""}
