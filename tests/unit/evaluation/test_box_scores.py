"""The command that scores a file of detections against a file of true boxes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.box_folders import write_voc, write_yolo

from panollava.crop.boxes import PictureBoxes, as_boxes
from panollava.data.box_files import write_coco
from panollava.data.boxes import PRESETS, BoxAnnotations, Conventions
from panollava.run.box_scores import BoxReport, chosen_conventions, score_box_files
from panollava.score import main as score

TRUTH = BoxAnnotations(
    ("chair", "lamp"),
    {
        f"{at}.jpg": PictureBoxes(as_boxes([[20 * at, 5, 30, 20, 10], [-179, 60, 8, 8, 0]]), np.array([0, 1]))
        for at in range(6)
    }
    | {"empty.jpg": PictureBoxes(np.zeros((0, 5)), np.zeros(0, int))},
)
PANDORA = PRESETS["pandora"]


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    write_coco(tmp_path / "truth.json", TRUTH, PANDORA)
    return tmp_path / "truth.json"


def results(truth: Path, *, scores: bool = True) -> list[dict[str, Any]]:
    """The true boxes as COCO results."""
    rows = json.loads(truth.read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox")
    return [{key: row[key] for key in keys} | ({"score": 0.9} if scores else {}) for row in rows]


def written(folder: Path, rows: Any) -> Path:
    (folder / "found.json").write_text(json.dumps(rows))
    return folder / "found.json"


def scored(detections: Path, truth: Path, found: Conventions = PANDORA, least: float | None = None) -> BoxReport:
    return score_box_files(detections, truth, PANDORA, found, least)


def test_the_command_scores_true_boxes_with_1(truth: Path) -> None:
    """Truth in the conventions of a preset, detections in those of another one."""
    write_coco(truth.with_name("other.json"), TRUTH, PRESETS["indoor360"])
    detections = written(truth.parent, results(truth.with_name("other.json")))
    command = [sys.executable, "-m", "panollava.score", str(detections), f"truth={truth}", "boxes=pandora"]
    command += ["detection_boxes=[indoor360]", "least_score=0.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=truth.parent)
    assert done.returncode == 0, done.stderr
    assert "| AP50, lamp | 100.0 % | 100.0 % |" in done.stdout + done.stderr
    kept = json.loads((truth.parent / "found_scores.json").read_text(), parse_constant=pytest.fail)
    for kind in ("with_scores", "with_equal_scores"):
        assert kept[kind]["ap"]["value"] == pytest.approx(1, abs=1e-9)
        assert kept[kind]["ap_by_size"]["small"] == pytest.approx(1)
    assert kept["f1"]["value"] == kept["precision"]["value"] == 1
    assert kept["centre_error_deg"]["value"] == pytest.approx(0, abs=1e-5)
    assert kept["count_error"]["value"] == 0
    assert kept["detection_conventions"]["origin"] == "corner"


def test_detections_without_scores_have_the_scores_of_equal_ones_alone(truth: Path) -> None:
    report = scored(written(truth.parent, results(truth, scores=False)), truth)
    assert not report.has_scores
    assert report.record()["with_scores"] is None
    assert "| AP | – | 100.0 %" in report.table()
    with pytest.raises(ValueError, match=r"least_score=0.5 has no effect: .* has no scores"):
        scored(truth.parent / "found.json", truth, least=0.5)


def test_given_and_equal_scores_differ_where_scores_tell_right_from_wrong(truth: Path) -> None:
    rows = results(truth)
    wrong = [row | {"bbox": [row["bbox"][0] + 1, *row["bbox"][1:]], "score": 0.1} for row in rows]
    report = scored(written(truth.parent, rows + wrong), truth, least=0.5)
    assert report.scores.with_scores.ap.value == pytest.approx(1)
    assert report.scores.with_equal_scores.ap50.value == pytest.approx(0.5)
    assert report.scores.precision is not None
    assert report.scores.precision.value == 1


def test_a_detection_in_a_crowd_or_of_a_difficult_thing_counts_for_nothing(tmp_path: Path) -> None:
    """Four detections within a crowd are no wrong ones, and one beside it is; a part of a difficult thing is one."""
    box, crowd = [0, 0, 20, 20], [90, 0, 60, 40]
    keys = ("image_id", "category_id", "bbox", "iscrowd")
    rows = [dict(zip(keys, (at, 1, *one), strict=True)) for at in range(8) for one in ((box, 0), (crowd, 1))]
    images = [{"id": at, "file_name": f"{at}.jpg"} for at in range(8)]
    document = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "person"}]}
    (tmp_path / "truth.json").write_text(json.dumps(document))
    inside = [[yaw, pitch, 8, 8] for yaw in (80, 100) for pitch in (-8, 8)]
    found = [
        {"image_id": at, "category_id": 1, "bbox": one, "score": score}
        for at in range(8)
        for one, score in [(box, 0.6), *((one, 0.9) for one in inside)]
    ]
    plain = Conventions()
    scores = score_box_files(written(tmp_path, found), tmp_path / "truth.json", plain, plain, None).scores
    for both in (scores.with_scores, scores.with_equal_scores):
        assert both.ap.value == pytest.approx(1)
    assert scores.precision is not None
    assert (scores.precision.value, scores.count_error.value, scores.found_boxes) == (1, 0, 8)

    beside = [row | {"bbox": [-90, *row["bbox"][1:]]} if row["score"] > 0.6 else row for row in found]
    scores = score_box_files(written(tmp_path, beside), tmp_path / "truth.json", plain, plain, None).scores
    assert scores.with_scores.ap.value < 0.3
    assert scores.count_error.value == 4

    write_voc(tmp_path / "voc", replace(TRUTH, pictures={"0.jpg": TRUTH.pictures["0.jpg"]}), plain)
    text = (tmp_path / "voc/0.xml").read_text().replace("<name>", "<difficult>Unspecified</difficult><name>")
    marked = text.replace("<difficult>Unspecified</difficult><name>lamp", "<difficult>1</difficult><name>lamp")
    assert text.count("Unspecified") == marked.count("Unspecified") + 1 == 2
    (tmp_path / "voc/0.xml").write_text(marked)
    rows = [[0, 5, 30, 20, 10], [-179, 60, 8, 8, 0], [-179, 60, 2, 2, 0]]
    got = {"0.jpg": PictureBoxes(as_boxes(rows), np.array([0, 1, 1]))}
    write_voc(tmp_path / "found", replace(TRUTH, pictures=got), plain)
    scores = score_box_files(tmp_path / "found", tmp_path / "voc", plain, plain, None).scores
    assert (scores.true_boxes, scores.found_boxes) == (1, 2)
    assert scores.with_equal_scores.ap_by_class["lamp"] is None

    rows = [{**document["annotations"][0], "iscrowd": 2}]
    (tmp_path / "truth.json").write_text(json.dumps(document | {"annotations": rows}))
    with pytest.raises(ValueError, match=r"annotation 1 \(id missing\): iscrowd is 2: allowed are 0 and 1"):
        score_box_files(tmp_path / "found.json", tmp_path / "truth.json", plain, plain, None)


def test_other_forms_of_detections(truth: Path, tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", TRUTH, Conventions())
    write_yolo(tmp_path / "yolo", TRUTH, Conventions())
    for detections in (tmp_path / "voc", tmp_path / "yolo"):
        assert scored(detections, truth, Conventions()).scores.with_equal_scores.ap.value == pytest.approx(1)
    assert scored(truth, truth).scores.with_equal_scores.ap.value == pytest.approx(1)
    assert scored(written(tmp_path, []), truth).scores.with_equal_scores.ap.value == 0
    with pytest.raises(ValueError, match="YOLO files do not name their classes"):
        scored(truth, tmp_path / "yolo")
    with pytest.raises(ValueError, match="COCO results name pictures and classes by the ids"):
        score_box_files(tmp_path / "found.json", tmp_path / "voc", Conventions(), PANDORA, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 77}, "found.json: 1 of 12 boxes are bad.*row 2: image_id 77 is none of the ids of images 1, 2"),
        ({"category_id": 9}, "row 2: category_id 9 is none of the categories 1, 2"),
        ({"bbox": [0, 0, 1]}, "row 2: 3 numbers, and a box has 4, or 5"),
        ({"bbox": [200, 95, 10, 10]}, r"(?s)row 2.*The file was read as detection_boxes=\[mixed,centre"),
        ({"score": "high"}, "row 2: 'high' is not a number"),
        ({"score": float("nan")}, "row 2: the score nan is not a finite number"),
        ({"score": None}, "row 2: has no score, while others have one"),
    ],
)
def test_bad_rows_are_named(truth: Path, change: dict[str, Any], message: str) -> None:
    rows = results(truth)
    rows[1] |= change
    with pytest.raises(ValueError, match=f"(?s){message.removeprefix('(?s)')}"):
        scored(written(truth.parent, rows), truth)


def test_unknown_pictures_and_missing_files_are_named(truth: Path) -> None:
    more = BoxAnnotations(TRUTH.names, TRUTH.pictures | {"z.jpg": TRUTH.pictures["1.jpg"]})
    write_coco(truth.with_name("more.json"), more, PANDORA)
    with pytest.raises(ValueError, match=r"more.json: the picture z.jpg is none of the 7 of .*0.jpg"):
        scored(truth.with_name("more.json"), truth)
    with pytest.raises(FileNotFoundError, match=r"truth=none.json: there is no such file"):
        scored(truth, Path("none.json"))


def test_conventions_are_words() -> None:
    assert chosen_conventions(None, "boxes") == Conventions()
    assert chosen_conventions("pandora", "boxes") == PANDORA
    assert chosen_conventions(["cw", "indoor360"], "boxes") == Conventions(
        origin="corner", pitch="colatitude", roll="cw"
    )
    with pytest.raises(
        ValueError, match=r"boxes=pandorra is neither .* Did you mean pandora.*Presets: pandora, indoor360"
    ):
        chosen_conventions("pandorra", "boxes")
    with pytest.raises(ValueError, match="boxes: deg and rad exclude each other"):
        chosen_conventions(["deg", "rad"], "boxes")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["truth=t.json", "meteor=true", "form=single"], "form, meteor: no effect with truth="),
        (["boxes=pandora", "least_score=0.1"], "boxes, least_score: no effect on answers"),
        (["truth=t.json", "boxes=3"], "boxes=3"),
        (["truth=t.json", "detection_boxes=[pandora,tilted]"], "detection_boxes=tilted is neither a preset"),
    ],
)
def test_keys_without_an_effect_and_unknown_presets_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["score", "found.json", *typed])
    with pytest.raises(SystemExit):
        score()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("preset", "plain"), [("pandora", []), ("indoor360", ["corner", "colatitude"])])
def test_radians_that_are_read_as_degrees_are_told(
    preset: str, plain: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are valid degrees: every box is then at nearly the same place."""
    in_radians = replace(PRESETS[preset], angles="mixed")
    write_coco(tmp_path / "truth.json", TRUTH, in_radians)
    detections = written(tmp_path, results(tmp_path / "truth.json"))
    caplog.set_level("WARNING", "panollava")
    score_box_files(detections, tmp_path / "truth.json", in_radians, in_radians, None)
    assert "radians" not in caplog.text
    as_degrees = chosen_conventions(plain or None, "boxes")
    score_box_files(detections, tmp_path / "truth.json", as_degrees, as_degrees, None)
    assert "truth.json: all yaws and pitches are numbers below 2 pi" in caplog.text
    assert "state boxes=rad, or mixed" in caplog.text


def test_yolo_detections_end_in_a_score(tmp_path: Path) -> None:
    """As ``save_conf`` writes them; where a roll is stated, the same numbers are rolls."""
    flat = {name: replace(one, boxes=one.boxes * [1, 1, 1, 1, 0]) for name, one in TRUTH.pictures.items()}
    write_coco(tmp_path / "truth.json", replace(TRUTH, pictures=flat), Conventions())
    (tmp_path / "yolo").mkdir()
    for name, one in flat.items():
        right = [f"{kind} {' '.join(map(str, box[:4]))} 0.9" for kind, box in zip(one.classes, one.boxes, strict=True)]
        wrong = [f"{kind} {90 + at} -60 20 20 0.1" for at, kind in enumerate(one.classes)]
        (tmp_path / "yolo" / f"{Path(name).stem}.txt").write_text("\n".join(right + wrong))
    files = tmp_path / "yolo", tmp_path / "truth.json", Conventions(), Conventions()
    report = score_box_files(*files, 0.5)
    assert report.scores.with_scores.ap.value == pytest.approx(1)
    assert report.scores.found_boxes == 12
    assert not score_box_files(*files, None, has_roll=True).has_scores


@pytest.mark.parametrize("key", ["predictions", "truth"])
def test_what_is_scored_is_not_overwritten(
    key: str, truth: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    detections = written(truth.parent, results(truth))
    before = {path: path.read_bytes() for path in (detections, truth)}
    out = {"predictions": detections, "truth": truth}[key]
    monkeypatch.setattr(sys, "argv", ["score", str(detections), f"truth={truth}", "boxes=pandora", f"out={out}"])
    with pytest.raises(SystemExit):
        score()
    assert f"is the file of {key}, which would be lost" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (detections, truth)} == before


def test_a_truth_that_lists_something_twice_is_refused(truth: Path) -> None:
    document = json.loads(truth.read_text())
    document["images"][1]["id"] = 1
    truth.with_name("twice.json").write_text(json.dumps(document))
    with pytest.raises(
        ValueError, match=r"twice.json: 2 of 12 boxes and 2 of 7 pictures are bad(?s:.*)image 2 \(id 1\)"
    ):
        scored(truth, truth.with_name("twice.json"))
