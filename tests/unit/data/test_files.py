"""Data files as sources: several turns, grouped references, bad entries left out, hostile pictures named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from support.picture_files import by_pillow, noise, png, png_of_size

from panollava.crop.crop import Crop
from panollava.crop.strategies import ResizeCrop
from panollava.data.csv import BadEntries
from panollava.data.files import FilesSource

CROP = Crop(ResizeCrop(), view_size=(32, 32))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds ``a.jpg``, black, and ``b.png``, white."""
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((32, 64, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.full((32, 64, 3), 255, np.uint8))
    return tmp_path


def source(path: Path, **options: Any) -> FilesSource:
    return FilesSource(path=str(path), reader=CROP.read, check=CROP.check, name="set", **options)


def said(image: str, *turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"image": image, "conversations": [{"human": q, "assistant": a} for q, a in turns], **more}


def written(path: Path, *entries: Any) -> Path:
    path.write_text("\n".join(json.dumps(entry) for entry in entries), encoding="utf-8")
    return path


def test_a_conversation_is_one_record_and_a_question_a_turn(folder: Path) -> None:
    talk = [("What is it?", "A ball."), ("Its colour?", "Red."), ("Sure?", "Yes.")]
    data = source(written(folder / "x.jsonl", said("a.jpg", *talk), said("b.png", ("Where?", "Here."))))
    assert [data.record(index, 3).turns for index in range(2)] == [tuple(talk), (("Where?", "Here."),)]
    assert [data.record(index, 0).sample_id for index in range(2)] == ["set-line1", "set-line2"]
    questions = data.questions()
    assert [(each.question, each.history, each.references) for each in questions] == [
        ("What is it?", (), ("A ball.",)),
        ("Its colour?", tuple(talk[:1]), ("Red.",)),
        ("Sure?", tuple(talk[:2]), ("Yes.",)),
        ("Where?", (), ("Here.",)),
    ]
    assert [each.sample_id for each in questions] == ["set-line1", "set-line1-turn2", "set-line1-turn3", "set-line2"]
    assert data.question_panorama(questions[2]).max() == 0
    assert data.panorama(1).min() == 255


def test_references_are_grouped_by_picture_history_and_question(folder: Path) -> None:
    entries = [
        said("a.jpg", ("What?", "A ball."), ("Colour?", "Red.")),
        said("b.png", ("What?", "A cone.")),
        said("a.jpg", ("What?", "A sphere."), ("Colour?", "Crimson.")),
        said("a.jpg", ("What?", "A ball."), ("Colour?", "Scarlet.")),
    ]
    path = folder / "x.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    questions = source(path).questions()
    assert [(each.image_id, each.question, each.references) for each in questions] == [
        ("a.jpg", "What?", ("A ball.", "A sphere.", "A ball.")),
        ("a.jpg", "Colour?", ("Red.", "Scarlet.")),  # after the same answer
        ("a.jpg", "Colour?", ("Crimson.",)),
        ("b.png", "What?", ("A cone.",)),
    ]
    assert len({each.sample_id for each in questions}) == 4


def test_a_picture_is_one_however_its_name_is_spelled(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "link.jpg").symlink_to(folder / "a.jpg")
    (folder / "hard.jpg").hardlink_to(folder / "a.jpg")
    cv2.imwrite(str(folder / "other" / "a.jpg"), np.full((32, 64, 3), 99, np.uint8))
    names = ["./a.jpg", "other/../a.jpg", str(folder / "a.jpg"), "link.jpg", "hard.jpg", "other\\..\\a.jpg", "a.jpg"]
    entries = [said(name, ("What?", str(at))) for at, name in enumerate([*names, "other/a.jpg"])]
    data = source(written(folder / "x.jsonl", *entries))
    assert [(each.image_id, each.references) for each in data.questions()] == [
        ("./a.jpg", tuple("0123456")),
        ("other/a.jpg", ("7",)),
    ]
    assert len({data.image_id(index) for index in range(len(data))}) == len(data.identities) == 2
    assert data.question_panorama(data.questions()[0]).max() == 0


def test_a_broken_picture_is_one_line_with_its_rows(folder: Path) -> None:
    (folder / "torn.jpg").write_bytes((folder / "a.jpg").read_bytes()[:-40])
    rows = ["torn.jpg", "a.jpg", "gone.jpg", "torn.jpg", "./torn.jpg", *["torn.jpg"] * 11, "x/../gone.jpg"]
    path = folder / "x.csv"
    path.write_text("url,query,annotation\n" + "".join(f"{name},q,a\n" for name in rows), "utf-8")
    with pytest.raises(BadEntries, match=r"16 of 17 rows are bad") as error:
        source(path)
    torn, gone = error.value.problems
    assert str(torn).startswith(f"rows 2, 5, 6 and 11 more, column url: {folder / 'torn.jpg'}: ")
    assert str(gone).startswith("rows 4 and 18, column url: ")
    assert len(source(path, on_error="skip")) == 1


def test_kinds_of_questions(folder: Path) -> None:
    entries = said("a.jpg", ("q", "a"), metadata={"type": "colour"}), said("b.png", ("q", "a"))
    assert [each.question_type for each in source(written(folder / "x.jsonl", *entries)).questions()] == [
        "colour",
        "text",
    ]


def test_bad_entries_stop_or_are_left_out_with_a_count(folder: Path) -> None:
    entries = [said("a.jpg", ("q", "1")), said("gone.jpg", ("q", "2")), {"image": "a.jpg"}, said("b.png", ("q", "3"))]
    path = written(folder / "x.jsonl", *entries)
    with pytest.raises(BadEntries, match=r"2 of 4 lines are bad\. Mend or delete them, or .*data\.on_error=skip") as e:
        source(path)
    expected = ["line 2, key image: ", "line 3, key conversations: "]
    assert [str(problem).startswith(start) for problem, start in zip(e.value.problems, expected, strict=True)]
    data = source(path, on_error="skip")
    assert [data.record(index, 0).sample_id for index in range(len(data))] == ["set-line1", "set-line4"]
    assert (data.count, data.problems) == (4, e.value.problems)
    assert data.left_out().splitlines()[0] == f"{path}: 2 of 4 lines are bad and left out:"
    assert len(data.left_out().splitlines()) == 3


def test_a_file_of_bad_entries_alone_is_refused_whatever_is_asked(folder: Path) -> None:
    path = written(folder / "x.jsonl", said("gone.jpg", ("q", "2")))
    with pytest.raises(BadEntries, match=r"1 of 1 lines are bad\. Mend or delete them:\n  line 1, key image"):
        source(path, on_error="skip")


def test_a_row_left_out_keeps_the_numbers_of_the_others(folder: Path) -> None:
    path = folder / "x.csv"
    path.write_text("url,query,annotation\na.jpg,q,\na.jpg,q,a\n../b.png,q,a\nb.png,q,a\n", encoding="utf-8")
    data = source(path, on_error="skip")
    assert [data.record(index, 0).sample_id for index in range(len(data))] == ["set-row3", "set-row5"]
    assert [problem.number for problem in data.problems] == [2, 4]
    assert [each.image_id for each in data.questions()] == ["a.jpg", "b.png"]


@pytest.mark.parametrize("name", ["x.txt", "x", "x.csv.gz"])
def test_the_suffix_says_how_a_file_is_read(folder: Path, name: str) -> None:
    (folder / name).write_text("url,query,annotation\na.jpg,q,a\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a data file's name ends in \.csv, \.json or \.jsonl"):
        source(folder / name)


def test_a_source_travels_to_workers(folder: Path) -> None:
    data = pickle.loads(pickle.dumps(source(written(folder / "x.jsonl", said("b.png", ("q", "a"))))))
    assert data.panorama(0).min() == 255


def test_hostile_pictures_are_named_before_one_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panollava.crop.image_file.decode", None)
    photo = by_pillow(noise(32, 64), "JPEG")
    hostile = {
        "empty.jpg": (b"", "the file is empty"),
        "bomb.png": (png_of_size(80_000, 40_000), "80000 x 40000 pixels are more than"),
        "cut.jpg": (photo[: len(photo) // 2], "is cut short"),
        "page.jpg": (b"<html>not found</html>", "neither a JPEG nor a PNG"),
        "inks.jpg": (by_pillow(Image.new("CMYK", (64, 32)), "JPEG"), "such as the inks of a printer"),
        "square.jpg": (by_pillow(noise(64, 64), "JPEG"), "is not a whole panorama"),
        "moving.jpg": (b"GIF89a", "neither a JPEG nor a PNG"),
    }
    for name, (content, _) in hostile.items():
        (folder / name).write_bytes(content)
    outside = {"/etc/passwd": "leads out", "../../a.jpg": "leads out", "nul\0.jpg": "a NUL character"}
    names = [*hostile, *outside, "."]
    path = written(folder / "x.jsonl", *(said(name, ("q", "a")) for name in names), said("b.png", ("q", "a")))
    data = source(path, on_error="skip")
    assert [entry.image for entry in data.entries] == ["b.png"]
    reasons = [*(reason for _, reason in hostile.values()), *outside.values(), "only a folder"]
    for number, (problem, reason) in enumerate(zip(data.problems, reasons, strict=True), start=1):
        assert problem.place == f"line {number}, key image"
        assert reason in problem.reason


def test_pictures_of_sixteen_bits_and_alpha_are_read(folder: Path) -> None:
    (folder / "deep.png").write_bytes(png(np.full((32, 64, 4), 65535, np.uint16)))
    data = source(written(folder / "x.jsonl", said("deep.png", ("q", "a"))))
    assert data.panorama(0).dtype == np.uint8
    assert (data.panorama(0) == 255).all()


def test_words_of_direction_turn_with_the_panorama_where_a_file_says_so(folder: Path) -> None:
    talk = [("Looking ahead left, what is there?", "Behind right of it a lamp; right."), ("Bright?", "Left.")]
    turned = (("Looking ahead right, what is there?", "Behind left of it a lamp; behind."), ("Bright?", "Ahead."))
    more = [{}, *({"metadata": {"names_directions": said}} for said in ("words", "none", "Fixed"))]
    path = written(folder / "x.jsonl", *(said("a.jpg", *talk, **each) for each in more))
    data = source(path)
    assert [data.directions(index) for index in range(4)] == ["unknown", "words", "none", "fixed"]
    assert [source(path, names_directions="words").directions(index) for index in (0, 2)] == ["words", "none"]
    assert data.rotated_record(1, 0, 90.0).turns == turned
    assert data.rotated_record(1, 0, 0.0) == data.record(1, 0)
    assert all(data.rotated_record(index, 0, 90.0) == data.record(index, 0) for index in (0, 2, 3))


def test_a_csv_says_row_by_row_how_it_names_directions(folder: Path) -> None:
    path = folder / "x.csv"
    path.write_text("url,query,annotation,names_directions\na.jpg,q,left,words\na.jpg,q,x,\na.jpg,q,x,NONE\n", "utf-8")
    data = source(path, names_directions="none")
    assert [data.directions(index) for index in range(3)] == ["words", "none", "none"]
    assert data.rotated_record(0, 0, 180.0).turns == (("q", "right"),)
    path.write_text("url,query,annotation,names_directions\na.jpg,q,a,some\n", "utf-8")
    with pytest.raises(BadEntries, match="row 2, column names_directions: 'some' is none of none, words and fixed"):
        source(path)
    written(folder / "x.jsonl", said("a.jpg", ("q", "a"), metadata={"names_directions": 1}))
    with pytest.raises(BadEntries, match=r"line 1, key metadata\.names_directions: 1 is none of none"):
        source(folder / "x.jsonl")
