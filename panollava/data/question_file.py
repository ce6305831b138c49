"""Files of questions without answers: CSV, or JSON and JSON Lines with an object for each question."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from panollava.data.csv import ALIASES, LISTED_PROBLEMS, Column, Table, found_file, not_utf8, wrong_text

KEY = "questions"
_ROLES = ("image", "query")


@dataclass(frozen=True)
class FileQuestion:
    """A question of a file.

    Attributes:
        image: name of the picture, as in the file.
        text: the question.
        cells: the whole row, in the order of the header.
    """

    image: str
    text: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class QuestionFile:
    """The questions of a file, with the names of its columns."""

    header: tuple[str, ...]
    questions: tuple[FileQuestion, ...]


def read_questions(path: Path) -> QuestionFile:
    """Reads ``questions=``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form, a column is missing, or rows are malformed; all of them are named.
    """
    if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        return _from_objects(path, list(_objects(path)))
    if path.suffix.lower() != ".csv":
        raise ValueError(f"{KEY}={path}: allowed is a file that ends in .csv, .json or .jsonl.")
    table = Table(found_file(path), {role: Column(ALIASES[role]) for role in _ROLES})
    others = table.add_columns(table.unused, KEY)
    roles = {name: role for role, name in table.names.items()} | others
    header = [name for name in table.header if name in roles]
    questions, problems = [], []
    for row in table.rows():
        cells = [row.cells[roles[name]].strip() for name in header]
        image, text = (row.cells[role].strip() for role in _ROLES)
        wrong = list(row.problems) or _wrong({table.names["image"]: image, table.names["query"]: text})
        problems += [f"row {row.number}, column {column}: {reason}" for column, reason in wrong]
        questions.append(FileQuestion(image, text, tuple(cells)))
    return _checked(path, QuestionFile(tuple(header), tuple(questions)), problems)


def _from_objects(path: Path, objects: Sequence[tuple[str, object]]) -> QuestionFile:
    questions, problems = [], []
    for place, value in objects:
        found = {
            role: next((value[name] for name in ALIASES[role] if name in value), "") if isinstance(value, dict) else ""
            for role in _ROLES
        }
        texts = {role: text.strip() if isinstance(text, str) else "" for role, text in found.items()}
        problems += [f"{place}, {role}: {reason}" for role, reason in _wrong(texts)]
        questions.append(FileQuestion(texts["image"], texts["query"], (texts["image"], texts["query"])))
    if not objects:
        raise ValueError(f"{path}: there is no question in the file.")
    return _checked(path, QuestionFile(_ROLES, tuple(questions)), problems)


def _objects(path: Path) -> Iterator[tuple[str, object]]:
    """The objects of a JSON list, or of the lines of a JSON Lines file, with their places in words."""
    try:
        text = found_file(path).read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    try:
        if path.suffix.lower() == ".json":
            values = json.loads(text)
            if not isinstance(values, list):
                raise ValueError(f"{path}: a list of objects with image and query is expected.")
            yield from ((f"entry {number}", value) for number, value in enumerate(values, start=1))
            return
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield f"line {number}", json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON ({error}).") from error


def _wrong(texts: dict[str, str]) -> list[tuple[str, str]]:
    empty = "it is missing or empty"
    return [(name, wrong_text(text) or empty) for name, text in texts.items() if not text or wrong_text(text)]


def _checked(path: Path, file: QuestionFile, problems: Sequence[str]) -> QuestionFile:
    if problems:
        more = [f"and {len(problems) - LISTED_PROBLEMS} more"] if len(problems) > LISTED_PROBLEMS else []
        raise ValueError("\n  ".join([f"{KEY}={path}: these rows are bad:", *problems[:LISTED_PROBLEMS], *more]))
    return file
