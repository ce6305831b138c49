"""Files of questions without answers: CSV, or JSON and JSON Lines with an object for each question."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panollava.crop.image_file import existing_file
from panollava.data.csv import ALIASES, LISTED_PROBLEMS, Column, Table, is_address, plain_name, wrong_text
from panollava.disk import utf8_text
from panollava.logs import LOG

KEY, ANSWER = "questions", "prediction"
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
    """The questions of a file, with the names of its columns, without one of earlier answers."""

    header: tuple[str, ...]
    questions: tuple[FileQuestion, ...]


def read_questions(path: Path) -> QuestionFile:
    """Reads ``questions=``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form, a column is missing, or rows are malformed; all of them are named.
    """
    if path.suffix.lower() not in (".csv", ".json", ".jsonl", ".ndjson"):
        raise ValueError(f"{KEY}={path}: allowed is a file that ends in .csv, .json or .jsonl.")
    existing_file(path)
    if path.suffix.lower() != ".csv":
        return _from_objects(path, list(_objects(path)))
    table = Table(path, {role: Column(ALIASES[role]) for role in _ROLES})
    others = table.add_columns([name for name in table.unused if not _is_answer(path, name)], KEY)
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


def _is_answer(path: Path, column: str) -> bool:
    if column.strip().lower() != ANSWER:
        return False
    LOG.info("%s: its column %s, of earlier answers, is replaced.", path, column)
    return True


def _from_objects(path: Path, objects: Sequence[tuple[str, Any]]) -> QuestionFile:
    """Keys of all objects are columns; values that are no texts are written as JSON."""
    dicts = [value if isinstance(value, dict) else {} for _, value in objects]
    header = [name for name in dict.fromkeys(key for value in dicts for key in value) if not _is_answer(path, name)]
    questions, problems = [], []
    for (place, _), value in zip(objects, dicts, strict=True):
        named = {role: [key for key in value if value[key] is not None and _is(role, key)] for role in _ROLES}
        found = {role: value[keys[0]] if keys else "" for role, keys in named.items()}
        texts = {role: text.strip() if isinstance(text, str) else "" for role, text in found.items()}
        several = [
            (role, f"the keys {' and '.join(keys)} could each be it; rename or delete the others")
            for role, keys in named.items()
            if keys[1:]
        ]
        problems += [f"{place}, {role}: {reason}" for role, reason in several or _wrong(texts)]
        cells = tuple(_cell(value.get(name, "")) for name in header)
        questions.append(FileQuestion(texts["image"], texts["query"], cells))
    if not objects:
        raise ValueError(f"{path}: there is no question in the file.")
    return _checked(path, QuestionFile(tuple(header), tuple(questions)), problems)


def _is(role: str, key: str) -> bool:
    return plain_name(key) in ALIASES[role]


def _cell(value: Any) -> str:
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
    """The objects of a JSON list, or of the lines of a JSON Lines file, with their places in words."""
    text = utf8_text(path)
    if path.suffix.lower() == ".json":
        values = _parsed(text, f"{path}")
        if not isinstance(values, list):
            raise ValueError(f"{path}: a list of objects with image and query is expected.")
        yield from ((f"entry {number}", value) for number, value in enumerate(values, start=1))
        return
    for number, line in enumerate(text.split("\n"), start=1):  # other separators may be part of a text
        if line.strip():
            yield f"line {number}", _parsed(line, f"{path}, line {number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a ValueError alone for numbers of thousands of digits
        raise ValueError(f"{where}: no JSON ({error}).") from error


def _wrong(texts: dict[str, str]) -> list[tuple[str, str]]:
    """Columns that cannot be used, and why; the first is the picture's."""
    reasons = {name: wrong_text(text) if text else "it is missing or empty" for name, text in texts.items()}
    found = [(name, reason) for name, reason in reasons.items() if reason]
    image, name = next(iter(texts.items()))
    if is_address(name):
        found.append((image, "an address is not fetched here; panollava.fetch downloads those of a data file"))
    return found


def _checked(path: Path, file: QuestionFile, problems: Sequence[str]) -> QuestionFile:
    if problems:
        more = [f"and {len(problems) - LISTED_PROBLEMS} more"] if len(problems) > LISTED_PROBLEMS else []
        raise ValueError("\n  ".join([f"{KEY}={path}: these rows are bad:", *problems[:LISTED_PROBLEMS], *more]))
    return file
