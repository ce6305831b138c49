"""Files of questions without answers, in their three forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from panollava.data.question_file import read_questions


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_keeps_all_its_columns(tmp_path: Path) -> None:
    text = 'id,url,question,note\n7,a.jpg,"what, here?",x\n8,방.jpg,무엇이 보이나요?,\n'
    file = read_questions(written(tmp_path, "ask.csv", text))
    assert file.header == ("id", "url", "question", "note")
    assert [(one.image, one.text) for one in file.questions] == [
        ("a.jpg", "what, here?"),
        ("방.jpg", "무엇이 보이나요?"),
    ]
    assert file.questions[0].cells == ("7", "a.jpg", "what, here?", "x")


@pytest.mark.parametrize("name", ["ask.json", "ask.jsonl"])
def test_objects_have_an_image_and_a_question(name: str, tmp_path: Path) -> None:
    objects = [{"image": "a.jpg", "question": "what?", "id": 3}, {"image_path": "b.jpg", "query": " where? "}]
    text = json.dumps(objects) if name.endswith(".json") else "\n".join(map(json.dumps, objects)) + "\n\n"
    file = read_questions(written(tmp_path, name, text))
    assert file.header == ("image", "question", "id", "image_path", "query")
    assert [one.cells for one in file.questions] == [("a.jpg", "what?", "3", "", ""), ("", "", "", "b.jpg", "where?")]
    assert [(one.image, one.text) for one in file.questions] == [("a.jpg", "what?"), ("b.jpg", "where?")]


def test_keys_are_matched_as_columns_are(tmp_path: Path) -> None:
    """In any case and with blanks; null is no value."""
    objects = [{"Image": "a.jpg", "QUESTION": "what?", "url": None}, {"Image Path": "b.jpg", "query": "where?"}]
    file = read_questions(written(tmp_path, "ask.json", json.dumps(objects)))
    assert [(one.image, one.text) for one in file.questions] == [("a.jpg", "what?"), ("b.jpg", "where?")]


def test_earlier_answers_are_left_out_and_texts_may_have_any_separator(tmp_path: Path) -> None:
    text = "image,question,Prediction,reference\na.jpg,what?,OLD,ring\n"
    file = read_questions(written(tmp_path, "ask.csv", text))
    assert file.header == ("image", "question", "reference")
    assert file.questions[0].cells == ("a.jpg", "what?", "ring")
    line = json.dumps({"image": "a.jpg", "question": "a\u2028b\u0085c?"}, ensure_ascii=False)
    (one,) = read_questions(written(tmp_path, "ask.jsonl", line)).questions
    assert one.text == "a\u2028b\u0085c?"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("ask.csv", "url,note\na.jpg,x\n", "no column for the query"),
        ("ask.csv", "url,query\n", "no rows"),
        ("ask.csv", "url,query\na.jpg,\n,what?\n", "row 2, column query: it is missing or empty"),
        ("ask.csv", "", "empty"),
        ("ask.txt", "a.jpg what?", "ends in .csv"),
        ("ask.json", '{"image": "a.jpg"}', "a list of objects"),
        ("ask.json", "[3]", "entry 1, image: it is missing"),
        ("ask.json", "[]", "no question"),
        ("ask.json", "[{", "no JSON"),
        ("ask.jsonl", '{"image": "a.jpg", "query": "b"}\n{', "line 2: no JSON"),
        ("ask.jsonl", f'{{"image": "a.jpg", "query": "b", "n": {"9" * 5000}}}', r"ask\.jsonl, line 1: no JSON"),
        ("ask.csv", "url,query\nhttp://h/a.jpg,what?\n", "an address is not fetched"),
        ("ask.jsonl", '{"image": "a.jpg", "query": 3}', "line 1, query: it is missing or empty"),
        ("ask.jsonl", '{"image": "a.jpg", "query": "\\ud800"}', "half a character"),
        (
            "ask.json",
            '[{"image": "a.jpg", "question": "a", "Prompt": "b", "instruction": "c"}]',
            "entry 1, query: the keys question and Prompt and instruction could each be it; rename or delete",
        ),
        (
            "ask.jsonl",
            '{"image_path": "a.jpg", "url": "https://h/a.jpg", "query": "b"}',
            "line 1, image: the keys image_path and url could each be it",
        ),
    ],
)
def test_what_is_wrong_is_named(name: str, text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        read_questions(written(tmp_path, name, text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_questions(tmp_path / "ask.csv")
