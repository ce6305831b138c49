"""CSV files of predictions, ours or anybody's, as answers with all that is right for them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

ALIASES = {
    "image": ("image_id", "image", "url", "image_path", "image_url", "image_file", "file_name", "filename", "path"),
    "question": ("question", "query", "instruction", "prompt"),
    "prediction": ("prediction", "answer_predicted", "generated", "hypothesis", "output"),
    "reference": ("reference", "annotation", "answer", "response", "caption", "ground_truth", "label"),
    "references": ("references",),
    "kind": ("kind", "question_type", "type"),
    "turn": ("turn", "turn_id"),
    "history": ("history",),
}
"""Accepted names of each column; all but the picture, the prediction and one of the references may be missing."""

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


def read_predictions(path: Path, form: Form) -> list[Scored]:
    """The rows of a file, each with its references.

    A file has a row a prediction with one ``reference``, or with a JSON list of ``references``.

    Args:
        path: UTF-8 CSV, with or without byte order mark.
        form: ``grouped`` scores each row against the references of all rows that ask the same of the same picture, in
            the same turn after the same history where the file has columns for them; ``single`` scores it against its
            own alone, once for each.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no UTF-8 CSV, a column is missing or twice, or a row has no picture or no reference.
    """
    if not path.is_file():
        raise FileNotFoundError(f"predictions={path}: there is no such file. Name a CSV of predictions.")
    limit = csv.field_size_limit(2**31 - 1)  # of the whole process, whose data sets are read with the usual one
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = [
                (reader.line_num, row) for reader in [csv.reader(stream, strict=True)] for row in reader if any(row)
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: this is not a CSV file in UTF-8 ({error}). Save it as one.") from error
    finally:
        csv.field_size_limit(limit)
    if len(lines) < 2:
        raise ValueError(f"{path}: there are no rows below a header.")
    columns = _columns(path, [cell.strip() for cell in lines[0][1]])
    rows = [_row(path, number, cells, columns) for number, cells in lines[1:]]
    if form == "single":
        return [replace(row, references=(reference,)) for row in rows for reference in row.references]
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        groups.setdefault(row.asked, []).extend(row.references)
    return [replace(row, references=tuple(groups[row.asked])) for row in rows]


def _columns(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Place of each role's column."""
    lower = [name.lower() for name in header]
    places: dict[str, int] = {}
    for role, names in ALIASES.items():
        found = next((name for name in names if name in lower), None)
        if found is not None:
            if lower.count(found) > 1:
                raise ValueError(f"{path}: the column {found!r} is there {lower.count(found)} times. Leave one.")
            places[role] = lower.index(found)
    needed = ["image", "prediction", *(["reference"] if "references" not in places else [])]
    missing = [role for role in needed if role not in places]
    if missing:
        allowed = "; ".join(f"{role}: {', '.join(ALIASES[role])}" for role in missing)
        raise ValueError(
            f"{path}: no column for {' and '.join(missing)} in {', '.join(header)}. Accepted are {allowed}."
        )
    return places


def _row(path: Path, number: int, cells: Sequence[str], columns: dict[str, int]) -> Scored:
    """A row with its own references."""

    def cell(role: str) -> str:
        place = columns.get(role)
        return "" if place is None or place >= len(cells) else cells[place].strip()

    if not cell("image"):
        raise ValueError(f"{path}, line {number}: no picture is named. Fill the column or leave the row out.")
    references: list[str] = [cell("reference")]
    if cell("references"):
        try:
            references = [str(one) for one in json.loads(cell("references"))]
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: references={cell('references')[:60]!r} is not a JSON list of texts."
            ) from error
    references = [one for one in references if one.strip()]
    if not references:
        raise ValueError(f"{path}, line {number}: there is no reference. Fill the column or leave the row out.")
    place = cell("turn"), cell("history")
    return Scored(cell("image"), cell("question"), cell("kind"), cell("prediction"), tuple(references), *place)
