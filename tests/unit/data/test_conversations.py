"""Conversation files: both forms, several turns, encodings, and what is said of malformed ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panollava.data.conversations import read_json, read_jsonl
from panollava.data.csv import Listing

TURNS = (("무엇이 보이나요?", "파란 공, 왼쪽"), ("Où ?", 'à "gauche"\nici'))
PLAIN = {"image_id": 7, "image_path": "a.jpg", "conversations": [{"human": q, "assistant": a} for q, a in TURNS]}
LLAVA = {
    "id": "x",
    "image": "a.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\n" + TURNS[0][0]},
        {"from": "gpt", "value": TURNS[0][1]},
        {"from": "human", "value": TURNS[1][0]},
        {"from": "gpt", "value": TURNS[1][1]},
    ],
}


def read(folder: Path, name: str, content: Any, encoding: str = "utf-8") -> Listing:
    """Writes a file, a list as JSON or JSON Lines, a text as it is, and reads it."""
    path = folder / name
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=1)
    if name.endswith("l") and not isinstance(content, str):
        text = "\n".join(json.dumps(entry, ensure_ascii=False) for entry in content)
    path.write_bytes(text.encode(encoding))
    return read_jsonl(path) if name.endswith("l") else read_json(path)


def problems(listing: Listing) -> list[str]:
    return [str(problem) for problem in listing.problems]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(("name", "unit"), [("a.json", "entry"), ("a.jsonl", "line")])
def test_both_forms_are_conversations_in_any_language(tmp_path: Path, name: str, unit: str, encoding: str) -> None:
    listing = read(tmp_path, name, [PLAIN, LLAVA], encoding)
    assert (listing.unit, listing.count, listing.problems) == (unit, 2, [])
    assert [entry.turns for entry in listing.entries] == [TURNS, TURNS]
    assert [entry.image for entry in listing.entries] == ["a.jpg", "a.jpg"]
    assert [entry.image_key for entry in listing.entries] == ["key image_path", "key image"]
    assert [entry.number for entry in listing.entries] == [1, 2]
    assert {entry.question_type for entry in listing.entries} == {"text"}


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(st.lists(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), min_size=1, max_size=4))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, said: list[list[tuple[str, str]]]) -> None:
    written = [[(f"q{q}q", f"a{a}a") for q, a in turns] for turns in said]
    entries = [{"url": "a", "conversations": [{"human": q, "assistant": a} for q, a in turns]} for turns in written]
    for name in ("a.json", "a.jsonl"):
        listing = read(tmp_path_factory.getbasetemp(), name, entries)
        assert [list(entry.turns) for entry in listing.entries] == written


@pytest.mark.parametrize("form", ["llava", "plain"])
def test_the_placeholder_of_a_picture_is_dropped_from_any_question_and_counted(tmp_path: Path, form: str) -> None:
    def entry(*texts: str) -> dict[str, Any]:
        said = [{"from": "user" if at % 2 == 0 else "assistant", "value": text} for at, text in enumerate(texts)]
        if form == "plain":
            said = [{"human": q, "assistant": a} for q, a in zip(texts[::2], texts[1::2], strict=True)]
        return {"image": "a.jpg", "conversations": said}

    asked = [("What is\n<image>", "a sign", "Is it?", "<image>"), ("Now?", "No", "Where <image> is it?", "There")]
    listing = read(tmp_path, "a.json", [entry(*texts) for texts in [*asked, (*asked[0][:2], *asked[1][2:])]])
    assert [each.turns for each in listing.entries] == [
        (("What is", "a sign"), ("Is it?", "<image>")),
        (("Now?", "No"), ("Where\nis it?", "There")),
    ]
    (problem,) = listing.problems
    assert problem.reason.startswith("asks about 2 pictures, and an entry has one")


def test_metadata_may_name_the_question_type(tmp_path: Path) -> None:
    listing = read(tmp_path, "a.json", [PLAIN | {"metadata": {"type": "colour", "fov": 90}}, PLAIN | {"metadata": {}}])
    assert [entry.question_type for entry in listing.entries] == ["colour", "text"]


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    said = PLAIN["conversations"]
    bad = [
        ("[]", ": an object with a picture and conversations is expected, not a list"),
        ('{"image": "a.jpg", "conversations": [', ": no JSON: Expecting value at column 38"),
        ({"conversations": said}, ", key image_path: missing; it names the picture, as do image and url"),
        ({"image": ["a.jpg", "b.jpg"], "conversations": said}, ", key image: a text is expected, not a list"),
        ({"image": None, "conversations": said}, ", key image: a text is expected, not null"),
        ({"image": " ", "conversations": said}, ", key image: the text is empty"),
        ({"image": "a", "url": "b", "conversations": said}, ", key image: names another picture than url: leave one"),
        ({"image": "a", "Image ": "b", "conversations": said}, ", key image: names another picture than Image "),
        ({"image": "a.jpg"}, ", key conversations: missing; it lists what is said"),
        ({"image": "a.jpg", "conversations": "hello"}, ", key conversations: a list is expected, not a text"),
        ({"image": "a.jpg", "conversations": []}, ", key conversations: empty; there is nothing to learn"),
        ({"image": "a.jpg", "conversations": [3]}, ", key conversations[0]: an object is expected, not a number"),
        (
            {"image": "a.jpg", "conversations": [{"human": "q", "asistant": "a"}]},
            ", key conversations[0].assistant: missing; there are human, asistant",
        ),
        (
            {"image": "a.jpg", "conversations": [{"human": "q", "assistant": True}]},
            ", key conversations[0].assistant: a text is expected, not true or false",
        ),
        (
            {"image": "a.jpg", "conversations": [{"human": "", "assistant": "a"}]},
            ", key conversations[0].human: the text is empty",
        ),
        ('{"image": "a", "image": "b"}', ": no JSON: the key 'image' occurs twice in one object"),
        ({"image": "a.jpg", "conversations": said, "metadata": []}, ", key metadata: an object is expected, not a"),
        ("[" * 100_000, ": no JSON: brackets are nested too deep"),
        (
            '{"image": "a", "conversations": [{"human": "\\ud83d", "assistant": "a"}]}',
            ", key conversations[0].human: half a character",
        ),
        ({"image": "a.jpg", "conversations": said, "image_id": [1]}, ", key image_id: a text or a whole number is"),
    ]
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry, _ in bad]
    listing = read(tmp_path, "a.jsonl", "\n\n".join([json.dumps(PLAIN), *lines]) + "\n")
    assert (listing.count, len(listing.entries)) == (1 + len(bad), 1)
    assert len(listing.problems) == len(bad)
    for at, (problem, (_, message)) in enumerate(zip(problems(listing), bad, strict=True)):
        assert problem.startswith(f"line {2 * at + 3}{message}"), problem


@pytest.mark.parametrize(
    ("speakers", "message"),
    [
        (["gpt", "human"], r"conversations\[0\]\.from: 'gpt' where human or user is expected"),
        (["human", "human"], r"conversations\[1\]\.from: 'human' where gpt or assistant is expected: they take turns"),
        (["human"], "conversations: ends with a question: its answer is missing"),
        (["human", "gpt", "human"], "ends with a question"),
        (["system", "human", "gpt"], r"\[0\]\.from: a system text is not read from data.*model\.language\.system"),
        (["human", None], r"conversations\[1\]\.from: None where"),
    ],
)
def test_speakers_take_turns(tmp_path: Path, speakers: list[str], message: str) -> None:
    said = [{"from": who, "value": "x"} for who in speakers]
    listing = read(tmp_path, "a.json", [LLAVA, {"image": "a.jpg", "conversations": said}])
    assert len(listing.entries) == 1
    (problem,) = listing.problems
    with pytest.raises(ValueError, match=message):
        raise ValueError(str(problem))


def test_two_pictures_in_one_conversation_are_a_problem(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "<image>\n<image>\nWhich?"}, {"from": "gpt", "value": "The first."}]
    (problem,) = read(tmp_path, "a.json", [{"image": "a.jpg", "conversations": said}]).problems
    assert problem.reason.startswith("asks about 2 pictures, and an entry has one")


def test_an_id_names_one_picture(tmp_path: Path) -> None:
    listing = read(
        tmp_path,
        "a.json",
        [PLAIN, PLAIN | {"image_path": "x/../a.jpg"}, PLAIN | {"image_path": "b.jpg"}, PLAIN | {"image_id": "7"}],
    )
    assert len(listing.entries) == 3
    assert problems(listing) == ["entry 3 (line 30), key image_id: 7 is b.jpg here and a.jpg in entry 1 (line 2)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ("[]", "there are no conversations in it"),
        ('{"image": "a.jpg"}\n{"image": "b.jpg"}', r"a list .* is expected.*ends in \.jsonl"),
        ('[\n{"image": "a.jpg"}\n{"image": "b.jpg"}]', r"a\.json, line 3, column 1: a comma is missing"),
        ('[\n{"image": "a.jpg"},\n{"image": b}]', r"line 3, column 11: Expecting value\. This is no JSON"),
        ('[\n{"image": "a.jpg"},\n', r"line 4, column 1|line 3, column 1: the file ends within the list"),
        ('[\n{"image": "a.jpg"}', r"the file ends within the list: it is cut short"),
        ('[\n{"image": "a.jpg", "conv', r"line 2, column 20: Unterminated string"),
        ('[{"image": "a.jpg"}] trailing', "line 1, column 22: something follows the end"),
        ('[1,\n{"a": 1, "a": 2}]', "line 2: the key 'a' occurs twice"),
        ("[1," + "\n" * 5 + "[" * 100_000, "line 6: brackets are nested too deep"),
        ("[" + "1" * 5000 + "]", "line 1: Exceeds the limit"),
    ],
)
def test_malformed_json_is_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, "a.json", text)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_another_encoding_is_named_by_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}, line 3: not UTF-8 text \(byte 0xE9\)"):
        read(tmp_path, name, '[\n1,\n"caf\u00e9"]', "latin-1")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{name}: there is no such file"):
        (read_jsonl if name.endswith("l") else read_json)(tmp_path / name)


def test_a_file_of_blank_lines_is_empty(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are no conversations in it"):
        read(tmp_path, "a.jsonl", "\n \n")
