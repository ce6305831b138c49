"""Files of boxes as splits: records, places, conventions, masks, and which pictures are left out and why."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from support.box_folders import write_voc, write_yolo

from panollava.component import find_component
from panollava.crop.boxes import IGNORED, NOTHING, PictureBoxes, as_boxes
from panollava.crop.crop import Crop
from panollava.crop.strategies import ResizeCrop
from panollava.data.annotated import AnnotatedSource
from panollava.data.box_files import write_coco
from panollava.data.boxes import PRESETS, BoxAnnotations, Conventions, box_text, parse_box
from panollava.data.csv import BadEntries
from panollava.data.source import DataSource, PlacesSource, Question
from panollava.data.world import WorldSource
from panollava.run.conditions import places_digest
from panollava.run.sources import without_boxes

CROP = Crop(ResizeCrop(), view_size=(32, 32))
NAMES = ("chair", "lamp", "plant")
BOXES = as_boxes(
    [[92.4, -4, 20, 21, 0], [-180, 30, 40, 30, 0], [33, 90, 60, 40, 0], [179.9, -88, 10, 12, 0], [5, 6, 7, 8, 0]]
)
SAMPLE = BoxAnnotations(
    NAMES,
    {
        "a.png": PictureBoxes(BOXES, np.array([0, 1, 2, 2, 1])),  # one chair, two lamps, two plants
        "b.png": PictureBoxes(BOXES[[0, 4, 1, 2]], np.array([1, 1, 0, 0])),  # no class has a single box
        "c.png": PictureBoxes(BOXES[:0], np.zeros(0, int)),
    },
    dict.fromkeys(("a.png", "b.png", "c.png"), (32, 64)),
)
WAYS = {
    "coco": (lambda folder, conventions: write_coco(folder / "x.json", SAMPLE, conventions), "x.json"),
    "voc": (lambda folder, conventions: write_voc(folder / "xml", SAMPLE, conventions), "xml"),
    "yolo": (lambda folder, conventions: write_yolo(folder / "txt", SAMPLE, conventions), "txt"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds the three pictures, and ``x.json`` with their boxes."""
    for at, name in enumerate(SAMPLE.pictures):
        cv2.imwrite(str(tmp_path / name), np.full((32, 64, 3), 10 * at, np.uint8))
    write_coco(tmp_path / "x.json", SAMPLE, Conventions())
    return tmp_path


def source(path: Path, **options: Any) -> AnnotatedSource:
    return AnnotatedSource(path=str(path), reader=CROP.read, check=CROP.check, name="set", **options)


def changed(folder: Path, key: str, at: int, **values: Any) -> Path:
    """The file with other values of one of its images, annotations or categories."""
    document = json.loads((folder / "x.json").read_text())
    document[key][at].update(values)
    (folder / "x.json").write_text(json.dumps(document))
    return folder / "x.json"


def test_it_is_both_kinds_of_source(folder: Path) -> None:
    assert find_component("data", "annotated", "Source", DataSource) is AnnotatedSource
    data = source(folder / "x.json")
    assert isinstance(data, PlacesSource)
    assert data.class_names == NAMES
    assert len(data) == 3
    assert data.panorama(2).mean() == 20
    again = pickle.loads(pickle.dumps(data))
    assert again.record(0, 0) == data.record(0, 3)
    assert [len(data.boxes(at).boxes) for at in range(3)] == [5, 4, 0]


def test_a_conversation_is_made_of_the_boxes(folder: Path) -> None:
    data = source(folder / "x.json")
    assert data.record(0, 0).sample_id == "set-picture1"
    assert [data.record(at, 0).turns for at in range(3)] == [
        (("where exactly is the chair?", "yaw 92, pitch -4, 20 x 21"),),
        (("which things are here?", "chair, lamp"),),
        (("which things are here?", "nothing"),),
    ]
    three = source(folder / "x.json", classes=["plant", "chair"])
    assert three.class_names == ("plant", "chair")
    assert three.record(1, 0).turns == (("which things are here?", "chair"),)


def test_a_crowd_is_no_target(folder: Path) -> None:
    """Its class is there, but not at one place; its pixels do not count, unless its class is left out."""
    path = changed(folder, "annotations", 0, iscrowd=1, segmentation=[[10, 10, 20, 10, 20, 20, 10, 20]])
    path = changed(folder, "annotations", 1, segmentation=[[12, 12, 14, 12, 14, 14, 12, 14]])
    data = source(path, masks="segmentation")
    places = data.places(0)
    assert places.boxes.classes.tolist() == [1, 2, 2, 1]
    assert places.boxes.ignored is not None
    assert places.boxes.ignored.boxes == pytest.approx(BOXES[:1])
    assert data.record(0, 0).turns == (("which things are here?", "chair, lamp, plant"),)
    assert places.pixels is not None
    assert [places.pixels[at, at] for at in (11, 13, 25)] == [IGNORED, 1, NOTHING]
    others = source(path, masks="segmentation", classes=["plant", "lamp"]).places(0)
    assert others.boxes.ignored is not None
    assert len(others.boxes.ignored.boxes) == 0
    assert others.pixels is not None
    assert [others.pixels[at, at] for at in (11, 13)] == [NOTHING, 1]
    digests = {places_digest(source(changed(folder, "annotations", 0, iscrowd=mark))) for mark in (0, 1)}
    write_coco(path, replace(SAMPLE, pictures=SAMPLE.pictures | {"a.png": places.boxes}), Conventions())
    assert len(digests | {places_digest(source(path))}) == 3


def test_a_file_of_crowds_alone_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Some programs mark all masks so."""
    path = folder / "x.json"
    document = json.loads(path.read_text())
    document["annotations"] = [row | {"iscrowd": 1} for row in document["annotations"]]
    path.write_text(json.dumps(document))
    data = source(path)
    assert "they are no targets" in caplog.text
    assert "Are they really no single, clear things?" in caplog.text
    assert "without a single box but for those marked iscrowd or difficult" in without_boxes(data)


def test_questions_have_no_history(folder: Path) -> None:
    many = BoxAnnotations(NAMES, {"a.png": PictureBoxes(BOXES[:3], np.array([2, 0, 1]))})
    write_coco(folder / "x.json", many, Conventions())
    data = source(folder / "x.json")
    expected = [
        Question(
            f"set-picture1-turn{turn}", "a.png", (), f"where exactly is the {name}?", (box_text(BOXES[at]),), "box"
        )
        for turn, (name, at) in enumerate((("chair", 1), ("lamp", 2), ("plant", 0)), start=1)
    ]
    assert data.questions() == expected
    assert data.question_picture(expected[2]) == folder / "a.png"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_forms_and_presets(way: str, preset: Any, folder: Path) -> None:
    """All boxes are read, with those over the seam and the poles."""
    write, name = WAYS[way]
    conventions = Conventions() if preset is None else PRESETS[preset]
    write(folder, conventions)
    data = source(folder / name, preset=preset, image_dir=str(folder), classes=list(NAMES))
    assert data.class_names == NAMES
    assert data.conventions == conventions
    for at, one in enumerate(SAMPLE.pictures.values()):
        found = data.places(at)
        assert found.pixels is None
        assert np.abs(found.boxes.boxes - one.boxes).max(initial=0) < 1e-9
        assert found.boxes.classes.tolist() == one.classes.tolist()
    text = data.record(0, 0).turns[0][1]
    assert parse_box(text) is not None


def test_a_single_convention_goes_before_the_preset(folder: Path) -> None:
    write_coco(folder / "x.json", SAMPLE, Conventions(angles="mixed", roll="cw"))
    data = source(folder / "x.json", preset="pandora", roll="cw")
    assert data.conventions == Conventions(angles="mixed", roll="cw")
    assert np.abs(data.places(0).boxes.boxes - BOXES).max() < 1e-9


@pytest.mark.parametrize("turn", [45.0, -90.0, 180.0])
def test_a_rotated_record_has_the_yaws_of_the_rotated_panorama(turn: float, tmp_path: Path) -> None:
    world, moved = (WorldSource(split="test", scenes=1, turn_deg=angle) for angle in (0.0, turn))
    records = []
    for name, one in (("plain", world), ("moved", moved)):
        cv2.imwrite(str(tmp_path / "a.png"), one.panorama(0)[..., ::-1])
        boxes = {"a.png": one.places(0).boxes}
        write_coco(tmp_path / f"{name}.json", BoxAnnotations(one.class_names, boxes), Conventions())
        records.append(source(tmp_path / f"{name}.json"))
    assert records[0].directions(0) == "words"  # whose panoramas are rotated by multiples of 45 degrees
    assert records[0].rotated_record(0, 0, turn).turns == records[1].record(0, 0).turns
    assert records[0].rotated_record(0, 0, 0.0) == records[0].record(0, 0)


def test_masks_of_a_folder(folder: Path) -> None:
    (folder / "masks").mkdir()
    indices = np.zeros((32, 64), np.uint8)
    indices[0, :5] = (1, 2, 3, 255, 0)
    for name in SAMPLE.pictures:
        Image.fromarray(indices).save(folder / "masks" / name)
    found = source(folder / "x.json", masks=str(folder / "masks"), classes=["plant", "chair"]).places(1).pixels
    assert found is not None
    assert (found.shape, found.dtype) == ((32, 64), np.int16)
    assert found[0, :5].tolist() == [1, NOTHING, 0, IGNORED, NOTHING]  # an index counts the file's classes


def test_bad_masks_are_bad_pictures(folder: Path) -> None:
    (folder / "masks").mkdir()
    Image.fromarray(np.zeros((32, 65), np.uint8)).save(folder / "masks" / "a.png")
    Image.fromarray(np.full((32, 64), 4, np.uint8)).save(folder / "masks" / "b.png")
    with pytest.raises(BadEntries) as error:
        source(folder / "x.json", masks=str(folder / "masks"))
    assert "3 of 3 pictures are bad" in str(error.value)
    for line in ("picture 1, a.png: the mask", "65x32 pixels", "has the index 4", "picture 3, c.png: there is no mask"):
        assert line in str(error.value)
    Image.fromarray(np.zeros((32, 64), np.uint8)).save(folder / "masks" / "c.png")
    data = source(folder / "x.json", masks=str(folder / "masks"), on_error="skip")
    assert [data.picture(at).name for at in range(len(data))] == ["c.png"]


def test_masks_outside_of_their_folder_are_refused(folder: Path) -> None:
    (folder / "masks").mkdir()
    path = changed(folder, "images", 0, file_name=str(folder / "a.png"))
    with pytest.raises(BadEntries, match=r"picture 1, .*its mask .*a.png would lie outside of data.masks="):
        source(path, masks=str(folder / "masks"))


def test_masks_of_the_file_itself(folder: Path) -> None:
    path = changed(folder, "annotations", 0, segmentation=[[10, 10, 20, 10, 20, 20, 10, 20]])
    path = changed(folder, "annotations", 1, segmentation={"size": [32, 64], "counts": [0, 32, 2016]})
    found = source(path, masks="segmentation").places(0).pixels
    assert found is not None
    assert found[15, 15] == 0
    assert (found[:, 0] == 1).all()
    assert found[15, 40] == NOTHING
    path = changed(folder, "annotations", 1, segmentation={"size": [32, 60], "counts": [1920]})
    data = source(path, masks="segmentation", on_error="skip")
    (problem,) = data.problems
    assert str(problem) == (
        "picture 1, a.png: annotation 2 (id 2): segmentation has the size [32, 60], and its picture has [32, 64] (H, W)"
    )
    assert len(data) == 2


@pytest.mark.parametrize(
    ("key", "at", "values", "line"),
    [
        ("annotations", 0, {"bbox": [0, 0, 200, 10, 0]}, "annotation 1 (id 1): horizontal=200 is not an extent within"),
        ("annotations", 0, {"bbox": [0, 100, 20, 10, 0]}, "annotation 1 (id 1): pitch=100 is not within [-90, 90]"),
        ("annotations", 0, {"category_id": 9}, "annotation 1 (id 1): category_id 9 is none of the categories 1, 2, 3"),
        ("annotations", 0, {"image_id": 9}, "annotation 1 (id 1): image_id 9 is none of the ids of images 1, 2, 3"),
        ("images", 0, {"file_name": "gone.png"}, "picture 1, gone.png: "),
        ("images", 0, {"file_name": "../x/gone.png"}, "picture 1, ../x/gone.png: "),
        ("images", 0, {"file_name": "x.json"}, "picture 1, x.json: "),
    ],
)
def test_bad_rows_stop_or_leave_their_picture_out(
    key: str, at: int, values: dict[str, Any], line: str, folder: Path
) -> None:
    path = changed(folder, key, at, **values)
    with pytest.raises(BadEntries) as error:
        source(path)
    assert f"{path}: 1 of 3 pictures are bad. Mend or delete them, or leave them out with data.on_error=skip" in str(
        error.value
    )
    assert line in str(error.value)
    data = source(path, on_error="skip")
    assert line in data.left_out()
    is_of_no_picture = "image_id" in values
    assert [data.picture(at).name for at in range(len(data))] == ["a.png"] * is_of_no_picture + ["b.png", "c.png"]


@pytest.mark.parametrize(
    ("way", "options", "message"),
    [
        ("coco", {"classes": ["chair", "sofa"]}, "data.classes: sofa is no class of"),
        ("coco", {"classes": ["chair", "chair"]}, "a class is named twice"),
        ("coco", {"masks": "gone"}, "data.masks=gone: there is no such folder"),
        ("voc", {}, 'data.classes="[chair,lamp,plant]"'),
        ("voc", {"classes": ["chair"], "masks": "segmentation"}, "only COCO JSON has them"),
        ("yolo", {}, "YOLO files do not name their classes"),
    ],
)
def test_keys_that_do_not_fit_are_refused(way: str, options: dict[str, Any], message: str, folder: Path) -> None:
    write, name = WAYS[way]
    write(folder, Conventions())
    with pytest.raises(ValueError) as error:
        source(folder / name, image_dir=str(folder), **options)
    assert message in str(error.value)


def test_a_part_of_the_sphere_has_boxes_of_angles_but_no_masks(folder: Path) -> None:
    crop = Crop(ResizeCrop(), view_size=(32, 32), panorama_fov_deg=(180, 90))
    given: dict[str, Any] = {"path": str(folder / "x.json"), "reader": crop.read, "check": crop.check}
    assert len(AnnotatedSource(**given)) == 3
    with pytest.raises(ValueError, match="a part of the sphere, and masks need a whole panorama"):
        AnnotatedSource(**given, masks="segmentation")


def test_doubts_are_logged_with_the_key(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "panollava")
    write_coco(folder / "x.json", SAMPLE, PRESETS["rbfov"])
    source(folder / "x.json", preset="rbfov")
    assert "state data" not in caplog.text
    source(folder / "x.json")
    assert "x.json: all yaws and pitches are numbers below 2 pi" in caplog.text
    assert "state data.angles=rad, or mixed" in caplog.text


def test_pictures_that_are_listed_twice_stop_or_are_left_out(folder: Path) -> None:
    path = changed(folder, "images", 1, id=1)
    path.write_text(path.read_text().replace('"image_id": 2', '"image_id": 1'))
    with pytest.raises(BadEntries, match=r"2 of 3 pictures are bad(?s:.*)image 2 \(id 1\): image 1 has the same id"):
        source(path)
    data = source(path, on_error="skip")
    assert [data.picture(at).name for at in range(len(data))] == ["c.png"]


def test_names_of_pictures_are_those_of_the_file_in_any_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detections are kept under them, and compared and scored from other working directories."""
    names = []
    for start, path in ((folder, "x.json"), (folder.parent, f"{folder.name}/x.json")):
        monkeypatch.chdir(start)
        data = source(Path(path))
        names.append([data.image_id(at) for at in range(3)])
        assert all(data.picture(at).is_file() for at in range(3))
    assert names[0] == names[1] == ["a.png", "b.png", "c.png"]


def test_boxes_that_are_written_twice_are_a_doubt(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "panollava")
    document = json.loads((folder / "x.json").read_text())
    document["annotations"].append({**document["annotations"][0], "id": 77})
    (folder / "x.json").write_text(json.dumps(document))
    assert len(source(folder / "x.json")) == 3
    assert "annotation 10 (id 77)" in caplog.text
