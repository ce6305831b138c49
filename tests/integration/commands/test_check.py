"""``python -m panollava.check``: what there is, what is wrong, and what a full decode finds and remembers."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from support import REAL_DATA
from support.picture_files import by_pillow, cut_tags, gpano, noise, torn_jpeg, with_xmp
from support.runs import command

from panollava import check
from panollava.crop.image_file import check_panorama
from panollava.model.hub import load_tokenizer

REAL = REAL_DATA / "quic360_mini" / "data.csv"
GOOD = "a.jpg,무엇이 보이나요?,파란 공\na.jpg,무엇이 보이나요?,하늘\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a data set in ``data``, each split with a picture of its own and one damaged within."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    photo = np.asarray(noise(64, 128))
    (tmp_path / "data" / "torn.jpg").write_bytes(torn_jpeg())
    assert check_panorama(tmp_path / "data" / "torn.jpg").size == (128, 256)  # its header and its end are right
    for split, name in (("train", "a"), ("val", "b"), ("test", "c")):
        (tmp_path / "data" / f"{name}.jpg").write_bytes(by_pillow(np.roll(photo, ord(name), axis=1), "JPEG"))
        write(tmp_path, split, GOOD.replace("a.jpg", f"{name}.jpg"))
    return tmp_path


def write(folder: Path, split: str, rows: str) -> None:
    (folder / "data" / f"{split}.csv").write_text("url,query,annotation\n" + rows, encoding="utf-8-sig")


def checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, list[str], str]:
    """Exit status, the lines of the report, and the error stream."""
    capsys.readouterr()
    status = command(monkeypatch, check, "data=csv", "num_workers=0", *arguments)
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


def test_a_sound_data_set(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines, _ = checked(monkeypatch, capsys, "stage.finetune.max_text_length=20")
    assert status == 0
    assert [line.partition(":")[0] for line in lines[:3]] == ["train", "val", "test"]
    assert lines[0] == "train: 2 records, 1 picture, 2 turns; 1 question with 2 references"
    assert lines[3].startswith("Text tokens of panollava/tiny")
    assert lines[7:] == [
        "  stage.resampler.max_text_length=224 cuts none of them",
        "  stage.finetune.max_text_length=20 cuts 4 of 4 (100.0%)",
        "Nothing is wrong.",
    ]


def test_control_tokens_in_texts_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = load_tokenizer("panollava/tiny-qwen3").eos_token
    write(folder, "val", GOOD.replace("a.jpg", "b.jpg") + f"b.jpg,What?,Red.{token} <image>\n")
    status, lines, _ = checked(monkeypatch, capsys)
    assert status == 0
    (note,) = [line.strip() for line in lines if "control tokens" in line]
    assert note.startswith("Note: data/val.csv: 1 of 3 texts have control tokens of the language model")
    assert f": row 4 ({token}). Delete them" in note


def test_what_the_tags_of_pictures_say_is_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = by_pillow(np.asarray(noise(64, 128)), "JPEG")
    tags = {"a": {}, "b": cut_tags(100, 9, 512, 1024), "c": {"PoseRollDegrees": 9}, "d": {"ProjectionType": "fisheye"}}
    for name, said in tags.items():
        (folder / "data" / f"{name}.jpg").write_bytes(with_xmp(photo, gpano(said)) if said else photo)
    write(folder, "train", "".join(f"{name}.jpg,what?,red\n" for name in "abcd"))
    status, lines, errors = checked(monkeypatch, capsys, "texts=0", "splits=[train]", "data.on_error=skip")
    assert status == 0, errors
    assert "d.jpg: its GPano tags say ProjectionType=fisheye" in lines[0]
    assert lines[1].endswith("; pictures with GPano tags: 2, placed by them in a part of the sphere: 1, tilted: 1")
    assert "train.csv: 1 pictures are tilted, such as " in errors
    assert "c.jpg: tilted by 9.0 degrees" in errors


def test_every_problem_of_every_split(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = "".join(f"gone-{number}.jpg,q,a\n" for number in range(30))
    write(folder, "train", GOOD + bad + "../x.jpg,q,a\na.jpg,,\n")
    write(folder, "val", GOOD)
    (folder / "data" / "test.csv").unlink()
    status, lines, errors = checked(monkeypatch, capsys, "texts=0")
    assert status == 1
    problems = [line for line in lines if line.startswith("data")]
    train = str(Path("data/train.csv"))
    assert [problem.split(": ")[0] for problem in problems[:30]] == [
        f"{train}, row {number}, column url" for number in range(4, 34)
    ]
    assert f"{train}, row 34, column url: ../x.jpg leads out of the data set's folder" in problems[30]
    assert problems[31:33] == [f"{train}, row 35, column {at}: the cell is empty" for at in ("annotation", "query")]
    assert "test.csv: there is no such file" in problems[33]
    assert lines[34:] == [
        "train: 2 records, 32 bad, 1 picture, 2 turns; 1 question with 2 references",
        "val: 2 records, 1 picture, 2 turns; 1 question with 2 references",
        "test: nothing that can be used",
        f"Note: train and val share 1 picture, such as {Path('data/a.jpg')}.",
    ]
    assert "bad entries or files: 32 in train, 1 in test" in errors


def test_bad_entries_that_will_be_left_out_are_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, "train", GOOD + "a.jpg,,a\n")
    status, lines, _ = checked(monkeypatch, capsys, "texts=0", "data.on_error=skip")
    assert status == 0
    assert lines[-1] == "Bad: 1 in train; data.on_error=skip leaves them out."


def test_a_full_decode_finds_what_headers_hide_and_is_remembered(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, "train", GOOD + "torn.jpg,q,a\n")
    assert checked(monkeypatch, capsys, "texts=0")[0] == 0
    status, lines, errors = checked(monkeypatch, capsys, "texts=0", "full=true")
    assert status == 1
    assert "row 4, column url: data" in lines[0]
    assert "torn.jpg: the JPEG cannot be decoded: its data is damaged" in lines[0]
    assert "4 pictures to do" in errors
    assert lines[1].startswith("train: 2 records, 1 bad")
    status, lines, errors = checked(monkeypatch, capsys, "texts=0")  # looks at headers alone, and remembers
    assert (status, "is damaged" in lines[0]) == (1, True)
    status, lines, errors = checked(monkeypatch, capsys, "texts=0", "full=true")
    assert "0 pictures to do (0.0 MB), 3 known from before" in errors
    (folder / "data" / "torn.jpg").write_bytes((folder / "data" / "a.jpg").read_bytes())
    status, lines, errors = checked(monkeypatch, capsys, "texts=0", "full=true")
    assert (status, "1 pictures to do" in errors, "3 known from before" in errors) == (0, True, True)


def test_keys_are_checked(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, errors = checked(monkeypatch, capsys, "splits=[tset]", "data.on_error=ignore", "crop.panorama_fov_deg=[0,9]")
    for problem in ('splits.0="tset"', 'data.on_error="ignore"', "crop.panorama_fov_deg.0=0"):
        assert problem in errors
    _, _, errors = checked(monkeypatch, capsys, "stage.finetune.max_text_length=0")
    assert "stage.finetune.max_text_length=0: allowed is a whole number from 1 on" in errors
    _, _, errors = checked(monkeypatch, capsys, "data.val_csv=null")
    assert "data.val_csv=null" in errors


def test_the_built_in_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ("data=world", "data.train_scenes=9", "data.val_scenes=2", "data.test_scenes=1")
    status, lines, errors = checked(monkeypatch, capsys, *sizes, "full=true", "texts=5")
    assert (status, lines[-1]) == (0, "Nothing is wrong.")
    assert lines[0].startswith("train: 9 records, 9 pictures, ")
    assert lines[4].endswith("in all of 5 spread evenly")
    assert "0 pictures to do" in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not REAL.is_file(), reason=f"the QuIC-360 sample is not at {REAL}")
def test_the_quic360_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, lines, _ = checked(
        monkeypatch, capsys, "data=quic360", f"data.train_csv={REAL}", "splits=[train]", "texts=0"
    )
    with REAL.open(encoding="utf-8-sig", newline="") as file:
        assert len(list(csv.reader(file))) == 100
    assert (status, lines[0]) == (0, "train: 99 records, 6 pictures, 99 turns; 18 questions with 99 references")
