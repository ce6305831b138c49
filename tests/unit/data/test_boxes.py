"""Boxes in files: conventions, round trips over the seam and the poles, and what is refused."""

from __future__ import annotations

import json
import math
import unicodedata
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.box_folders import write_voc, write_yolo

from panollava.crop.boxes import PictureBoxes, as_boxes, box_frames, iou
from panollava.data.box_doubts import repeated_boxes
from panollava.data.box_files import read_coco, read_voc, read_yolo, write_coco
from panollava.data.boxes import (
    PRESETS,
    BoxAnnotations,
    Conventions,
    box_text,
    parse_box,
    read_box,
    same_names,
    written_box,
)

BOXES = as_boxes(
    [
        [0, 0, 20, 10, 0],
        [-180, 5, 40, 30, 12.5],
        [179.9, -5, 40, 30, -90],
        [-179.9, 0, 0.1, 0.1, 3],
        [33, 90, 60, 40, 0],
        [-120, -90, 180, 40, 17],
        [60, 89.5, 100, 180, 45],
    ]
)
NAMES = ("chair", "lamp", "potted plant")
SAMPLE = BoxAnnotations(
    NAMES,
    {
        "a.jpg": PictureBoxes(BOXES, np.array([0, 1, 2, 0, 1, 2, 0])),
        "b.jpg": PictureBoxes(BOXES[:0], np.zeros(0, int)),
        "c.jpg": PictureBoxes(BOXES[1:2], np.array([2])),
    },
    {"a.jpg": (960, 1920)},
)
KEYS = (("deg", "rad", "mixed"), ("centre", "corner"), ("latitude", "colatitude"), ("ccw", "cw"))
EVERY = [Conventions(*keys) for keys in product(*KEYS)]  # type: ignore[arg-type]


def are_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether boxes cover the same directions with the same extents; at a pole any yaw may be written."""
    return bool(np.abs(box_frames(one) - box_frames(other)).max() < 1e-9 and np.abs(one - other)[:, 2:4].max() < 1e-9)


@pytest.mark.parametrize("conventions", EVERY, ids=str)
def test_numbers_round_trip(conventions: Conventions) -> None:
    for box in BOXES:
        back, problem = read_box(written_box(box, conventions), conventions)
        assert problem == ""
        assert are_same(back[None], box[None])
        assert -180 <= back[0] < 180 + 1e-9


@given(st.floats(-180, 180), st.floats(-90, 90), st.floats(0.01, 180), st.floats(0.01, 180), st.sampled_from(EVERY))
def test_any_box_round_trips(yaw: float, pitch: float, wide: float, high: float, conventions: Conventions) -> None:
    box = np.array([yaw, pitch, wide, high, yaw / 2])
    back, problem = read_box(written_box(box, conventions), conventions)
    assert problem == ""
    assert are_same(back[None], box[None])


@pytest.mark.parametrize(
    ("preset", "values", "expected"),
    [
        ("pandora", [math.radians(23.5), math.radians(-7), 35.2, 48.9, -7.5], [23.5, -7, 35.2, 48.9, -7.5]),
        ("indoor360", [203.5, 96.0, 24.0, 31.5], [23.5, -6.0, 24.0, 31.5, 0]),
        ("indoor360", [0.0, 90.0, 24.0, 31.5], [-180, 0, 24.0, 31.5, 0]),
        ("rbfov", [math.radians(value) for value in (-90, 30, 20, 40, 10)], [-90, 30, 20, 40, 10]),
        ("era", [math.pi / 2, -math.pi / 2, math.pi, 1.0], [90, -90, 180, math.degrees(1), 0]),
    ],
)
def test_presets(preset: str, values: list[float], expected: list[float]) -> None:
    box, problem = read_box(values, PRESETS[preset])
    assert problem == ""
    assert box == pytest.approx(expected, abs=1e-9)


def test_rounded_radians_of_90_and_180_degrees_are_no_more_than_that() -> None:
    box, problem = read_box([0, -1.570797, 3.141593, 3.1416], Conventions(angles="rad"))
    assert box[1:3].tolist() == [-90, 180]
    assert "vertical=180.0004" in problem  # four digits are too few


def test_the_roll_of_the_other_direction_has_the_other_sign() -> None:
    box, _ = read_box([0, 0, 10, 20, 30], Conventions(roll="cw"))
    assert box[4] == -30


@pytest.mark.parametrize("kind", ["corners", "size", "shares"])
def test_rectangles_of_the_picture(kind: str) -> None:
    """At the horizon the extents are those of the rectangle; one over the seam has its centre there."""
    conventions, size = Conventions(boxes=kind), (180, 360)  # type: ignore[arg-type]
    rectangles = {
        "corners": ([170, 80, 190, 100], [350, 80, 10, 100], [70, 40, 110, 60]),
        "size": ([170, 80, 20, 20], [350, 80, 20, 20], [70, 40, 40, 20]),
        "shares": ([0.5, 0.5, 20 / 360, 20 / 180], [1, 0.5, 20 / 360, 20 / 180], [0.25, 50 / 180, 40 / 360, 20 / 180]),
    }[kind]
    (ahead, _), (seam, _), (high, problem) = (read_box(one, conventions, size) for one in rectangles)
    assert problem == ""
    assert ahead == pytest.approx([0, 0, 20, 20, 0])
    assert seam == pytest.approx([-180, 0, 20, 20, 0])
    assert high[[0, 1, 3]] == pytest.approx([-90, 40, 20])
    # Its right side passes through the direction at the right end of the rectangle's middle row.
    yaw, pitch = np.radians([-90 + 20, 40])
    end = np.array([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)])
    right, _, forward = box_frames(high[None])[0] @ end
    assert 2 * np.degrees(np.arctan2(right, forward)) == pytest.approx(high[2])
    with pytest.raises(ValueError, match=rf"boxes={kind} is read but not written"):
        written_box(high, conventions)


@pytest.mark.parametrize("preset", PRESETS)
def test_files_round_trip(tmp_path: Path, preset: str) -> None:
    conventions = PRESETS[preset]
    (tmp_path / "pictures").mkdir()
    for name in SAMPLE.pictures:
        (tmp_path / "pictures" / name).touch()
    for kind in ("voc", "yolo"):
        (tmp_path / kind).mkdir()
    write_coco(tmp_path / "boxes.json", SAMPLE, conventions)
    write_voc(tmp_path / "voc", SAMPLE, conventions)
    write_yolo(tmp_path / "yolo", SAMPLE, conventions)
    pictures = tmp_path / "pictures"
    for back in (
        read_coco(tmp_path / "boxes.json", conventions),
        read_voc(tmp_path / "voc", conventions, NAMES),
        read_yolo(tmp_path / "yolo", conventions, NAMES, pictures),
    ):
        assert back.checked() is back
        assert (back.names, list(back.pictures), back.count) == (NAMES, list(SAMPLE.pictures), 8)
        for name, one in SAMPLE.pictures.items():
            assert back.pictures[name].classes.tolist() == one.classes.tolist()
            assert len(one.boxes) == 0 or are_same(back.pictures[name].boxes, one.boxes)
            assert back.pictures[name].scores is None
    assert read_coco(tmp_path / "boxes.json", conventions).sizes == SAMPLE.sizes
    assert read_voc(tmp_path / "voc", conventions).names == NAMES  # sorted, as it happens
    read = read_coco(tmp_path / "boxes.json", conventions).pictures["a.jpg"].boxes[:3]
    assert iou(read, BOXES[:3]) == pytest.approx([1, 1, 1])


def test_scores_of_detections_round_trip(tmp_path: Path) -> None:
    scored = {"a.jpg": replace(SAMPLE.pictures["c.jpg"], scores=np.array([0.25]))}
    write_coco(tmp_path / "found.json", replace(SAMPLE, pictures=scored), Conventions())
    back = read_coco(tmp_path / "found.json", Conventions()).pictures["a.jpg"]
    assert back.scores is not None
    assert back.scores.tolist() == [0.25]


def coco(tmp_path: Path, *annotations: dict, **more: object) -> Path:
    good = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "gone.jpg"}],
        "annotations": [{**good, **one} for one in annotations],
        "categories": [{"id": 1, "name": "chair"}],
    }
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({**document, **more}))
    return path


BAD = [
    ({"bbox": [0, 0, 190, 10]}, r"annotation 1 \(id 7\): horizontal=190 is not an extent within \(0, 180\] degrees"),
    ({"bbox": [0, 0, 10, 0]}, r"vertical=0 is not an extent"),
    ({"bbox": [0, 0, 10, -5]}, r"vertical=-5 is not an extent"),
    ({"bbox": [0, 95, 10, 10]}, r"pitch=95 is not within \[-90, 90\]"),
    ({"bbox": [0, 0, "wide", 10]}, "'wide' is not a number"),
    ({"bbox": [0, 0, math.nan, 10]}, "nan is not a finite number"),
    ({"bbox": [0, 0, True, 10]}, "True is not a number"),
    ({"bbox": [0, 0, 10]}, "3 numbers, and a box has 4, or 5 with a roll"),
    ({"bbox": None}, "bbox is None, and should be a list of numbers"),
    ({"category_id": 9}, "category_id 9 is none of the categories 1"),
    ({"image_id": 9}, "image_id 9 is none of the ids of images"),
    ({"score": "high"}, "'high' is not a number"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_boxes_are_named_and_good_ones_kept(tmp_path: Path, change: dict, message: str) -> None:
    found = read_coco(coco(tmp_path, change, {}), Conventions())
    assert len(found.pictures["a.jpg"].boxes) == 1
    with pytest.raises(ValueError, match=rf"boxes\.json: 1 of 2 boxes are bad\. Mend or delete them:\n  .*{message}"):
        found.checked()


def test_many_bad_boxes_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"30 of 30 boxes are bad(.*\n){21}  and 10 more"):
        read_coco(coco(tmp_path, *[{"category_id": 2}] * 30), Conventions()).checked()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"annotations": {}}, "annotations is not a list of objects"),
        ({"images": [{"id": 1}]}, "an image needs id and file_name"),
        ({"images": []}, "lists no pictures"),
    ],
)
def test_what_is_no_coco_file(tmp_path: Path, more: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_coco(coco(tmp_path, **more), Conventions())
    (tmp_path / "boxes.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        read_coco(tmp_path / "boxes.json", Conventions())
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_coco(tmp_path / "other.json", Conventions())


VOC = """<annotation><filename>a.jpg</filename><size><width>360</width><height>180</height></size>
<object><name>chair</name><bndbox><xmin>170</xmin><ymin>80</ymin><xmax>190</xmax><ymax>100</ymax></bndbox>
<BFOV><center_lon>0.5</center_lon><center_lat>nine</center_lat><bfov_w>1</bfov_w><bfov_h>1</bfov_h></BFOV></object>
</annotation>"""


def test_voc_problems_and_rectangles(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(VOC)
    assert str(read_voc(tmp_path, PRESETS["era"]).problems[0]) == "a.xml, object 1: 'nine' is not a number"
    assert "'chair' is none of the classes lamp" in str(read_voc(tmp_path, PRESETS["era"], ["lamp"]).problems[0])
    found = read_voc(tmp_path, Conventions(boxes="corners")).checked()
    assert found.pictures["a.jpg"].boxes.tolist() == [pytest.approx([0, 0, 20, 20, 0])]
    (tmp_path / "a.xml").write_text(VOC.replace("BFOV>", "other>"))
    assert "has no BFOV" in str(read_voc(tmp_path, PRESETS["era"]).problems[0])
    with pytest.raises(ValueError, match="boxes=shares: VOC files have angles or corners"):
        read_voc(tmp_path, Conventions(boxes="shares"))
    with pytest.raises(ValueError, match=r"there is no \.xml file in this folder"):
        read_voc(tmp_path / "none", Conventions())


def test_entities_of_xml_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for entity in (f'SYSTEM "file://{tmp_path}/secret"', '"aaaaaaaaaa"'):
        head = f"<!DOCTYPE annotation [<!ENTITY x {entity}>]>"
        (tmp_path / "a.xml").write_text(head + VOC.replace("a.jpg", "&x;"))
        with pytest.raises(ValueError, match=r"a\.xml: no XML of annotations: it declares a document type"):
            read_voc(tmp_path, PRESETS["era"])
    (tmp_path / "a.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"a\.xml: no XML of annotations"):
        read_voc(tmp_path, PRESETS["era"])


def test_yolo_problems_and_shares(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n\n3 0.5 0.5 0.1 0.1\n1 0.5 0.99 0.1 0.1\n")
    found = read_yolo(tmp_path, Conventions(boxes="shares"), NAMES)
    assert found.pictures["a"].boxes.tolist() == [pytest.approx([0, 0, 36, 18, 0])]
    assert [str(problem) for problem in found.problems] == [
        "a.txt, line 3: class 3 is none of 0 to 2",
        "a.txt, line 4: 0.5, 0.99, 0.1, 0.1 reaches out of the picture at its top or bottom",
    ]
    with pytest.raises(ValueError, match="boxes=size: YOLO files have angles or shares"):
        read_yolo(tmp_path, Conventions(boxes="size"), NAMES)
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_yolo(tmp_path, Conventions(), NAMES)


@pytest.mark.parametrize(
    ("rectangle", "size", "message"),
    [
        ([10, 20, 10, 40], (180, 360), "without an area"),
        ([10, 20, 30, 20], (180, 360), "without an area"),
        ([0, 20, 400, 40], (180, 360), "wider than the picture"),
        ([10, -5, 30, 20], (180, 360), "reaches out of the picture"),
        ([10, 20, 30, 40], None, "the size of the picture is not stated"),
        ([0, 80, 200, 100], (180, 360), "horizontal=200 is not an extent"),
    ],
)
def test_bad_rectangles(rectangle: list[float], size: tuple[int, int] | None, message: str) -> None:
    assert message in read_box(rectangle, Conventions(boxes="corners"), size)[1]


def test_the_picture_of_a_yolo_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Suffixes of any case and names in either form of Unicode are found; two for one file are named."""
    labels, pictures = tmp_path / "labels", tmp_path / "pictures"
    labels.mkdir()
    pictures.mkdir()
    there = ["R0010001.JPG", unicodedata.normalize("NFD", "café.Jpeg"), "twice.JPG", "twice.png", "other.jpg", "x.gif"]
    for name in there:
        (pictures / name).touch()
    for stem in ("R0010001", "café", "twice", "gone"):
        (labels / f"{stem}.txt").write_text("0 0 0 10 10\n")
    with caplog.at_level("INFO", "panollava"):
        found = read_yolo(labels, Conventions(), NAMES, pictures)
    assert set(found.pictures) == {*there[:3], "gone"}
    assert [str(one) for one in found.problems] == [
        f"twice.txt: could be of twice.JPG and twice.png; keep one of them in {pictures}"
    ]
    assert found.bad == ("twice.JPG",)
    assert f"left out 1 picture of {pictures} without a .txt file of the same name, such as other.jpg" in caplog.text
    assert next(iter(read_yolo(labels, Conventions(), NAMES, tmp_path / "none").pictures)) == "R0010001"


def test_unknown_conventions_and_classes() -> None:
    with pytest.raises(ValueError, match=r"angles=grad is not a convention of boxes: use deg, rad, mixed"):
        Conventions(angles="grad")  # type: ignore[arg-type]
    other = same_names(SAMPLE, ["lamp", "bed", "chair", "potted plant"])
    assert other.pictures["a.jpg"].classes.tolist() == [2, 0, 3, 2, 0, 3, 2]
    with pytest.raises(ValueError, match="the class potted plant is none of chair, lamp"):
        same_names(SAMPLE, ["chair", "lamp"])
    with pytest.raises(ValueError, match=r"d/a\.jpg: the picture is in a folder"):
        write_yolo(Path(), replace(SAMPLE, pictures={"d/a.jpg": SAMPLE.pictures["c.jpg"]}), Conventions())


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ([92, -4, 20, 21, 0], "yaw 92, pitch -4, 20 x 21"),
        ([180, 90, 0.2, 180, 45], "yaw -180, pitch 90, 1 x 180"),
        ([179.6, -90, 0.5, 1.5, 0], "yaw -180, pitch -90, 1 x 2"),
        ([-0.4, -0.4, 2.5, 3.5, 0], "yaw 0, pitch 0, 2 x 4"),
        ([361, 0.5, 10, 10, 0], "yaw 1, pitch 0, 10 x 10"),
    ],
)
def test_a_box_in_words(box: list[float], text: str) -> None:
    assert box_text(np.array(box)) == text
    back = parse_box(text)
    assert back is not None
    assert back[4] == 0
    assert box_text(back) == text
    assert (parse_box(f"{text}.") == back).all()


@given(st.integers(-180, 179), st.integers(-90, 90), st.integers(1, 180), st.integers(1, 180))
def test_whole_degrees_round_trip_in_words(yaw: int, pitch: int, wide: int, high: int) -> None:
    back = parse_box(box_text(np.array([yaw, pitch, wide, high, 0.0])))
    assert back is not None
    assert back.tolist() == [yaw, pitch, wide, high, 0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yaw 180, pitch 0, 1 x 1",
        "yaw -181, pitch 0, 1 x 1",
        "yaw 0, pitch 91, 1 x 1",
        "yaw 0, pitch 0, 0 x 1",
        "yaw 0, pitch 0, 1 x 181",
        "Yaw 0, pitch 0, 1 x 1",
        "yaw 0, pitch 0, 1x1",
        "yaw 0.5, pitch 0, 1 x 1",
        "yaw +1, pitch 0, 1 x 1",
        "yaw \u22121, pitch 0, 1 x 1",
        "yaw \u0663, pitch 0, 1 x 1",
        " yaw 0, pitch 0, 1 x 1",
        "yaw 0, pitch 0, 1 x 1\n",
        "yaw 0, pitch 0, 1 x 1..",
        "it is at yaw 0, pitch 0, 1 x 1",
    ],
)
def test_other_texts_are_no_boxes(text: str) -> None:
    assert parse_box(text) is None


def test_scores_of_some_boxes_of_a_picture_are_refused(tmp_path: Path) -> None:
    rows = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "score": 0.5}]
    rows.append({"id": 2, "image_id": 1, "category_id": 1, "bbox": [90, 0, 20, 20]})
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": rows,
        "categories": [{"id": 1, "name": "x"}],
    }
    path = tmp_path / "some.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jpg: 1 of its 2 boxes have a score"):
        read_coco(path, Conventions())


TWICE = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}, {"id": 2, "file_name": "./a.jpg"}]
}


def test_pictures_that_are_listed_twice_are_problems(tmp_path: Path) -> None:
    """One id of two pictures, and one picture under two names: which boxes it has is unknown."""
    found = read_coco(coco(tmp_path, {}, {"bbox": [90, 0, 10, 10]}, **TWICE), Conventions())
    same_id = "has the same id, so that their boxes cannot be told apart; give each its own"
    assert sorted(zip(found.bad, map(str, found.problems), strict=True)) == [
        ("./a.jpg", "image 3 (id 2): names the picture ./a.jpg, as image 1 (id 1) does; list it once"),
        ("a.jpg", f"image 1 (id 1): image 2 {same_id}"),
        ("a.jpg", "image 1 (id 1): names the picture a.jpg, as image 3 (id 2) does; list it once"),
        ("b.jpg", f"image 2 (id 1): image 1 {same_id}"),
    ]
    with pytest.raises(ValueError, match=r"boxes\.json: 3 of 3 pictures are bad\. Mend or delete them:\n  image 1"):
        found.checked()


def test_voc_files_of_one_picture_are_problems(tmp_path: Path) -> None:
    for name in ("a.xml", "copy.xml"):
        (tmp_path / name).write_text(VOC.replace("nine", "0.9"))
    found = read_voc(tmp_path, PRESETS["era"])
    assert [str(one) for one in found.problems] == [
        "a.xml: names the picture a.jpg, as copy.xml does; list it once",
        "copy.xml: names the picture a.jpg, as a.xml does; list it once",
    ]
    assert set(found.bad) == {"a.jpg"}


@pytest.mark.parametrize(("key", "value"), [("id", 1), ("name", "chair")])
def test_categories_that_are_listed_twice_are_refused(key: str, value: object, tmp_path: Path) -> None:
    other = {"id": 2, "name": "lamp", key: value}
    with pytest.raises(ValueError, match=rf"boxes\.json: categories 1 and 2 have the {key} .*Give each its own {key}"):
        read_coco(coco(tmp_path, {}, categories=[{"id": 1, "name": "chair"}, other]), Conventions())


def test_boxes_that_are_written_twice_are_named(tmp_path: Path) -> None:
    found = read_coco(coco(tmp_path, {}, {"bbox": [1, 0, 10, 10]}, {"id": 9}, {"image_id": 2}), Conventions())
    assert found.checked().repeated == ("annotation 3 (id 9)",)
    assert "1 of 4 boxes have the class and the numbers of an earlier one" in repeated_boxes(found)
    assert "annotation 3 (id 9)" in repeated_boxes(found)
    assert repeated_boxes(read_coco(coco(tmp_path, {"score": 0.4}, {"score": 0.5}), Conventions())) == ""


@pytest.mark.parametrize(
    ("lines", "kind", "scores", "expected"),
    [
        (["0 10 0 20 20 0.9", "1 0 5 20 20 0"], "angles", "auto", [0.9, 0.0]),
        (["0 10 0 20 20 0.9", "1 0 5 20 20 0"], "angles", "none", None),
        (["0 10 0 20 20 0.9", "1 0 5 20 20 0"], "angles", "after roll", None),
        (["0 10 0 20 20 0.9", "1 0 5 20 20 -3"], "angles", "auto", None),
        (["0 10 0 20 20 0.0", "1 0 5 20 20 0"], "angles", "auto", None),
        (["0 10 0 20 20 30 0.9", "1 0 5 20 20 0 0.8"], "angles", "auto", [0.9, 0.8]),
        (["0 10 0 20 20 30 0.9", "1 0 5 20 20 0 0.8"], "angles", "after roll", [0.9, 0.8]),
        (["0 0.5 0.5 0.1 0.1 0.9", "1 0.5 0.5 0.1 0.1 0.8"], "shares", "auto", [0.9, 0.8]),
    ],
)
def test_the_last_number_of_yolo_detections(
    lines: list[str], kind: str, scores: str, expected: list[float] | None, tmp_path: Path
) -> None:
    """A score, unless it must be a roll: one is negative, all are 0, or a roll is stated."""
    (tmp_path / "a.txt").write_text("\n".join(lines))
    conventions = Conventions(boxes=kind)  # type: ignore[arg-type]
    found = read_yolo(tmp_path, conventions, NAMES, scores=scores).checked().pictures["a"]  # type: ignore[arg-type]
    assert (None if found.scores is None else found.scores.tolist()) == expected
    rolls = [float(line.split()[5]) for line in lines] if len(lines[0].split()) == 7 or expected is None else [0, 0]
    assert found.boxes[:, 4].tolist() == rolls
