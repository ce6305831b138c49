"""python -m panollava.certify as it is typed: its files, what is tracked, a stop, other data, and compare."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support.runs import command, stage_folder

from experiments.certificates.study import documents, rows_of
from panollava import certify, compare
from panollava.evaluation.certificates import NAMES
from panollava.model.api import PanoLlava
from panollava.run import changed
from panollava.tracking.tracker import NullTracker

QUIET = ("device=cpu", "world_scenes=3")
UNTRACKED = "tracking=none"


@pytest.fixture
def copy(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the recorded run, as the working directory."""
    shutil.copytree(recorded / "runs", tmp_path / "runs", symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def document(results: str = "results") -> dict[str, Any]:
    """The newest ``certificates.json``."""
    newest = max(Path(results, "eval_results", "recorded").glob("certificates_*/certificates.json"))
    return dict(json.loads(newest.read_text("utf-8")))


def rooms(asked: str = "where is the door?") -> None:
    """Writes ``rooms.json``: three pictures with a question that names a direction and one that names none."""
    rng = np.random.default_rng(0)
    entries = []
    for number in range(3):
        cv2.imwrite(f"room{number}.png", rng.integers(0, 255, (64, 128, 3), dtype=np.uint8))
        turns = [("how many doors are there?", "one"), (asked, "Left")]
        said = [
            {"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)
        ]
        said[0]["value"] = f"<image>\n{said[0]['value']}"
        entries.append({"id": str(number), "image": f"room{number}.png", "conversations": said})
    Path("rooms.json").write_text(json.dumps(entries), encoding="utf-8")


def test_the_whole_set_is_written_and_tracked_and_compared(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tracked: dict[str, float] = {}
    folders: list[Path] = []
    monkeypatch.setattr(NullTracker, "metrics", lambda _self, values, step: tracked.update(values))
    monkeypatch.setattr(NullTracker, "folder", lambda _self, path, name=None: folders.append(path))
    assert command(monkeypatch, certify, "runs/recorded", UNTRACKED, *QUIET) == 0
    said = capsys.readouterr().err
    assert "# recorded on world-test" in said
    found = document()
    assert [one["name"] for one in found["certificates"]] == list(NAMES)
    assert {one["verdict"] for one in found["certificates"]} <= {"cannot tell", "fires", "passes"}
    assert found["settings"]["conditions"]["weights"] == found["settings"]["fingerprint"]
    (folder,) = folders
    assert {one.name for one in folder.iterdir()} == {
        "certificates.json", "certificates.md", "certificates.png", "certificates.svg", "answers.csv",
    }  # fmt: skip
    assert tracked.keys() == {f"certificates/{name}{end}" for name in NAMES for end in ("", "/fires")}
    rows = list(csv.DictReader((folder / "answers.csv").open(encoding="utf-8")))
    yaw = next(one for one in found["certificates"] if one["name"] == "yaw")
    assert {row["change"] for row in rows} > {"", "turn_deg=90", "turn_deg=180", "phase=0.5", "order=1", "grey=2"}
    assert yaw["questions"] == len({row["sample_id"] for row in rows if row["change"] in yaw["changes"]})
    assert not any(Path("results").rglob(".unfinished"))

    shutil.copytree("runs/recorded", "runs/other", symlinks=True)
    assert command(monkeypatch, compare, "runs/recorded", "runs/other", UNTRACKED, *QUIET) == 0
    table = Path("results/comparison/comparison.md").read_text("utf-8")
    assert (
        "Certificates (points of exact match after less before), each run's newest, of world-test, level=1, seed="
        in table
    )
    assert f"| yaw | {yaw['verdict']} " in table
    rows = rows_of(documents(["runs/recorded"], [], Path("results")))
    assert [row[8] for row in rows[1:]] == list(NAMES)
    assert rows[1][:6] == ["recorded", 0, "mlp", "anyres_e2p", 0.0, "yaw_pitch"]


def test_a_stopped_command_goes_on_where_it_was(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ("checkpoint=runs/recorded", UNTRACKED, *QUIET, "only=[tile_phase,view_order]")
    assert command(monkeypatch, certify, *typed, "results_dir=whole") == 0
    answer, asked = changed.ModelSubject.answers, []

    def stopped(subject: Any, change: Any, questions: Any) -> list[str]:
        asked.append(change)
        if len(asked) == 3:
            raise ValueError("stopped")
        return answer(subject, change, questions)

    monkeypatch.setattr(changed.ModelSubject, "answers", stopped)
    assert command(monkeypatch, certify, *typed) == 1
    monkeypatch.setattr(changed.ModelSubject, "answers", answer)
    capsys.readouterr()
    assert command(monkeypatch, certify, *typed) == 0
    assert capsys.readouterr().err.count("answers are there from an evaluation that was stopped") == 2
    assert document()["certificates"] == document("whole")["certificates"]


def test_answers_to_other_words_are_not_taken_for_those_of_a_stopped_command(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms("what is left of you?")
    typed = ("runs/recorded", UNTRACKED, "device=cpu", "csv_input=rooms.json", "only=[yaw]")
    answer, asked = changed.ModelSubject.answers, []

    def stopped(subject: Any, change: Any, questions: Any) -> list[str]:
        said = answer(subject, change, questions)
        asked.append(change)
        if len(asked) == 3:
            raise ValueError("stopped")
        return said

    monkeypatch.setattr(changed.ModelSubject, "answers", stopped)
    assert command(monkeypatch, certify, *typed, "names_directions=words") == 1
    assert any(Path("results").rglob("*.jsonl"))
    monkeypatch.setattr(PanoLlava, "answer", lambda _self, batch, **_: ["anew"] * len(batch.sample_ids))
    monkeypatch.setattr(changed.ModelSubject, "answers", answer)
    assert command(monkeypatch, certify, *typed, "names_directions=none") == 0
    (path,) = Path("results").rglob("answers.csv")
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    assert [row["prediction"] for row in rows if row["change"] and "left" in row["question"]] == ["anew"] * 6


def test_any_panoramas_with_questions(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms()
    typed = ("runs/recorded", UNTRACKED, "device=cpu", "csv_input=rooms.json", "max_pictures=2")
    assert command(monkeypatch, certify, *typed, "names_directions=words") == 0
    found = {one["name"]: one for one in document()["certificates"]}
    assert {name for name, one in found.items() if one["verdict"] == "not applicable"} == {"seam", "latitude"}
    assert (found["yaw"]["questions"], found["yaw"]["pictures"]) == (4, 2)
    assert found["tilt"]["questions"] == 2  # it may move a door into another direction
    newest = max(Path("results").rglob("answers.csv"))
    rows = {
        (row["change"], row["question"]): row["references"] for row in csv.DictReader(newest.open(encoding="utf-8"))
    }
    assert rows["turn_deg=90", "where is the door?"] == '["Ahead"]'
    assert command(monkeypatch, certify, *typed, "only=[yaw]", "results_dir=unsaid") == 0
    (yaw,) = document("unsaid")["certificates"]
    assert yaw["verdict"] == "not applicable"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["only=[yaw,roll]"], "only.1=\"roll\": allowed is 'yaw', 'tilt'"),
        (["only=[]"], "only"),
        (["names_directions=north"], "allowed is 'none' or 'words'"),
        (["names_directions=words"], "names_directions says how the texts of data files do; the data are world"),
        (["tilt_deg=0"], "tilt_deg"),
        (["least_effect=5"], "least_effect"),
        (["crop.overlap=1.5"], "crop.overlap"),
        (["crop.overlap=0"], "It cuts the same views as the run's own"),
        (["crop.view_size=32"], "It cuts the same views as the run's own"),
        (["crop.panorama_fov_deg=[180,90]"], "is for pictures in files"),
        (["crop.overlap=0.25", "only=[yaw]"], "crop.* is the other crop of crop_swap, which only= leaves out"),
        (["checkpoint=runs/nothing"], "runs/nothing"),
    ],
)
def test_wrong_keys_are_refused(typed: list[str], told: str, in_recorded: Path, refused: Callable[..., str]) -> None:
    assert told in refused(certify, "runs/recorded", UNTRACKED, *QUIET, "results_dir=elsewhere", *typed)


def test_another_crop_that_the_model_does_not_take_is_refused_at_once(copy: Path, refused: Callable[..., str]) -> None:
    for path in Path("runs/recorded").rglob("checkpoint_metadata.json"):
        path.write_text(path.read_text("utf-8").replace('"join": "concat"', '"join": "stitch"'), encoding="utf-8")
    said = refused(certify, "runs/recorded", UNTRACKED, *QUIET, "crop.type=adaptive")
    assert "model.join=stitch drops the columns of tokens" in said
    assert not any(Path("results").rglob("*.jsonl"))


def test_questions_that_are_too_long_are_refused_at_once(copy: Path, refused: Callable[..., str]) -> None:
    cv2.imwrite("room.png", np.zeros((64, 128, 3), dtype=np.uint8))
    Path("rooms.csv").write_text(f"url,query,annotation\nroom.png,{'door ' * 5000},one\n", encoding="utf-8")
    typed = ("runs/recorded", UNTRACKED, "device=cpu", "csv_input=rooms.csv", "names_directions=none", "only=[yaw]")
    assert "the language model cannot be given all texts" in refused(certify, *typed)


def test_a_stage_without_answers_is_refused(in_recorded: Path, refused: Callable[..., str]) -> None:
    said = refused(certify, f"checkpoint={stage_folder('recorded', 'vision')}", UNTRACKED, *QUIET)
    assert "gives no answers that could be certified" in said
