"""CSV files of predictions, ours or anybody's, as answers with all that is right for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from panollava.data.csv import Column, Row, Table, spelling, wrong_text
from panollava.evaluation.predictions import Prediction, answers_digest
from panollava.evaluation.results import PREDICTIONS

ALIASES = {
    "image": ("image_id", "image", "url", "image_path", "image_url", "image_file", "file_name", "filename", "path"),
    "query": ("question", "query", "instruction", "prompt"),
    "prediction": ("prediction", "answer_predicted", "generated", "hypothesis", "output"),
    "reference": ("reference", "annotation", "answer", "response", "caption", "ground_truth", "label"),
    "references": ("references",),
    "kind": ("kind", "question_type", "type"),
    "turn": ("turn", "turn_id"),
    "history": ("history",),
}
"""Accepted names of each column; all but the picture, the prediction and one of the references may be missing."""
KEYED = ("image", "query", "prediction", "reference")
"""Roles whose columns ``score`` lets one name."""

Form = Literal["grouped", "single"]


@dataclass(frozen=True)
class Scored:
    """A prediction and what it is scored against.

    Attributes:
        image_id: of the picture.
        question, kind: as it was asked, and its type.
        prediction: the answer.
        references: right ones.
        turn, history: place of the question in a conversation and what was said before, as the file tells them; empty
            where it does not.
    """

    image_id: str
    question: str
    kind: str
    prediction: str
    references: tuple[str, ...]
    turn: str = ""
    history: str = ""

    @property
    def asked(self) -> tuple[str, str, str, str]:
        """What was asked: the same words about the same picture are another question in another conversation."""
        return self.image_id, self.turn, self.history, self.question


def read_predictions(path: Path, form: Form, named: Mapping[str, str | None] | None = None) -> list[Scored]:
    """The rows of a file, each with its references.

    A file has a row a prediction with one ``reference``, or with a JSON list of ``references``. Pictures are known by
    their names, whose spellings may differ: ``./a.jpg`` is ``a.jpg``.

    Args:
        path: UTF-8 CSV, with or without byte order mark.
        form: ``grouped`` scores each row against the references of all rows that ask the same of the same picture, in
            the same turn after the same history where the file has columns for them; ``single`` scores it against its
            own alone, once for each.
        named: column of each role of `KEYED`; None where it is found by its name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no UTF-8 CSV, a column is missing or could be several, or a row is not of the form.
    """
    if not path.is_file():
        raise FileNotFoundError(f"predictions={path}: there is no such file. Name a CSV of predictions.")
    given = {role: (named or {}).get(role) for role in KEYED}
    columns = {
        role: Column(names, f"{role}_column" if role in KEYED else "", given.get(role), role in ("image", "prediction"))
        for role, names in ALIASES.items()
    }
    if (wanted := given["reference"]) is not None:
        role, other = ("references", "reference") if wanted.strip() == "references" else ("reference", "references")
        columns[role] = Column(ALIASES[role], "reference_column", wanted)
        del columns[other]
    table = Table(path, columns)
    if not {"reference", "references"} & table.names.keys():
        raise table.missing("reference", columns)
    table.tell()
    spelt: dict[str, str] = {}
    rows = [_row(path, row, table.names, spelt) for row in table.rows()]
    if form == "single":
        return [replace(row, references=(reference,)) for row in rows for reference in row.references]
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        groups.setdefault(row.asked, []).extend(row.references)
    return [replace(row, references=tuple(groups[row.asked])) for row in rows]


def read_answers(folder: Path, metrics: Mapping[str, Any]) -> list[Prediction]:
    """The rows of an evaluation's ``predictions.csv``, as the model gave them.

    Args:
        folder: of the evaluation.
        metrics: its ``metrics.json``, which tells the answers that its scores are of.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is not as evaluations write it, or its answers were changed since.
    """
    path = folder / PREDICTIONS
    optional = ("turn", "history")  # which older evaluations lack
    needed = ("sample_id", "image_id", "kind", "question", "prediction", "references", "latency_s")
    table = Table(path, {name: Column((name,), is_needed=name in needed) for name in (*needed, *optional)})
    answers = [_answer(path, row, table.names) for row in table.rows()]
    if metrics.get("answers") not in (None, answers_digest(answers)):  # None: of before they were on record
        raise ValueError(f"{path}: its answers were changed since they were given")
    return answers


def _answer(path: Path, row: Row, names: Mapping[str, str]) -> Prediction:
    _check(path, row, row.problems)
    cells = row.cells
    history = _json(path, row, "history", names) if cells.get("history") else []
    if not isinstance(history, list) or not all(_is_texts(turn) and len(turn) == 2 for turn in history):
        raise _bad(path, row, "history", "no JSON list of pairs of a question and its answer")
    try:
        latency_s = float(cells["latency_s"])
    except ValueError:
        raise _bad(path, row, "latency_s", f"{cells['latency_s'][:60]!r} is no number of seconds") from None
    return Prediction(
        sample_id=cells["sample_id"],
        image_id=cells["image_id"],
        kind=cells["kind"],
        question=cells["question"],
        prediction=cells["prediction"],
        references=_texts(path, row, "references", names),
        latency_s=latency_s,
        history=tuple((question, answer) for question, answer in history),
    )


def _row(path: Path, row: Row, names: Mapping[str, str], spelt: dict[str, str]) -> Scored:
    """A row with its own references."""
    cells = {role: row.cells.get(role, "").strip() for role in ALIASES}
    nul = [(names[role], reason) for role in names if role != "prediction" and (reason := wrong_text(cells[role]))]
    _check(path, row, [*row.problems, *nul])
    if not cells["image"]:
        raise _bad(path, row, names["image"], "no picture is named. Fill the column or leave the row out")
    references: tuple[str, ...] = (cells["reference"],)
    if cells["references"]:
        references = _texts(path, row, "references", names)
        if cells["reference"] and cells["reference"] not in map(str.strip, references):
            differs = f"{cells['reference'][:60]!r} is none of the {names['references']}"
            raise _bad(path, row, names["reference"], f"{differs}: make them agree, or choose with reference_column")
    references = tuple(one for one in references if one.strip())
    if not references:
        at = names.get("references", names.get("reference", ""))
        raise _bad(path, row, at, "there is no reference. Fill the column or leave the row out")
    image = spelt.setdefault(spelling(cells["image"]), cells["image"])
    place = cells["turn"], cells["history"]
    return Scored(image, cells["query"], cells["kind"], cells["prediction"], references, *place)


def _texts(path: Path, row: Row, role: str, names: Mapping[str, str]) -> tuple[str, ...]:
    """The texts of a cell that is a JSON list of them."""
    found = _json(path, row, role, names)
    if not _is_texts(found):
        raise _bad(path, row, names[role], f'{row.cells[role][:60]!r} is no JSON list of texts, such as ["a", "b"]')
    _check(path, row, [(names[role], reason) for one in found if (reason := wrong_text(one))])
    return tuple(found)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _json(path: Path, row: Row, role: str, names: Mapping[str, str]) -> Any:
    try:
        return json.loads(row.cells[role])
    except (ValueError, RecursionError):
        raise _bad(path, row, names[role], f"{row.cells[role][:60]!r} is no JSON") from None


def _check(path: Path, row: Row, problems: Sequence[tuple[str, str]]) -> None:
    for column, reason in problems:
        raise _bad(path, row, column, reason)


def _bad(path: Path, row: Row, column: str, reason: str) -> ValueError:
    return ValueError(f"{path}, line {row.line}, column {column}: {reason}.")
