"""CSV tables: a row is a picture, a question about it and one answer."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from panollava.data.entries import (
    DIRECTIONS_KEY,
    NOT_DIRECTIONS,
    Entry,
    Listing,
    Problem,
    found_file,
    not_utf8,
    said_directions,
    wrong_text,
)
from panollava.data.records import Directions

ALIASES = {
    "image": (
        "url",
        "image",
        "image_path",
        "image_url",
        "image_file",
        "file_name",
        "filename",
        "file",
        "path",
    ),
    "query": ("query", "question", "instruction", "prompt"),
    "annotation": ("annotation", "answer", "response", "caption", "reference", "output"),
}
"""Accepted names of each column; the first is the documented one and wins over the others."""

_SHOWN = 40
"""Columns that a message names, and letters of each: the header may be a row of texts."""


def read_csv(path: Path, named: Mapping[str, str | None], query_template: str) -> Listing:
    """The rows of a table, numbered as a spreadsheet does, the header being row 1.

    Args:
        path: UTF-8 file, with or without byte order mark.
        named: column of each role of `ALIASES`; None where it is found by its name.
        query_template: question made of a query, with ``{query}`` in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no UTF-8 CSV, a column is missing, or there are no rows.
    """
    rows = _rows(found_file(path))
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{path}: the file is empty. It needs a header such as url,query,annotation.")
    header = [cell.strip().strip("\ufeff").strip() for cell in first[1]]  # some programs write a second mark
    if any("\0" in cell for cell in header):
        raise ValueError(f"{path}: the file is not text: it begins with NUL bytes. Fetch or copy it again.")
    columns = {role: _column(path, role, header, named[role]) for role in ALIASES}
    image_key = f"column {header[columns['image']]}"
    lower = [name.lower() for name in header]
    said_at = lower.index(DIRECTIONS_KEY) if DIRECTIONS_KEY in lower else None
    entries: list[Entry] = []
    problems: list[Problem] = []
    known: dict[str, str] = {}  # equal names and questions are kept once
    count = 0
    for number, cells in rows:
        count += 1
        wrong = _bad(header, columns, cells)
        if (directions := _said(said_at, cells)) is None:
            wrong.append((DIRECTIONS_KEY, f"{cells[said_at or 0]!r} {NOT_DIRECTIONS}"))
        bad = [Problem(number, f"row {number}, column {at}", reason) for at, reason in wrong]
        problems += bad
        if not bad and directions is not None:
            image, query, annotation = (cells[at].strip() for at in columns.values())
            image = known.setdefault(image, image)
            question = query_template.replace("{query}", query)
            question = known.setdefault(question, question)
            turns = ((question, annotation),)
            entries.append(Entry(number, f"row {number}", image, image_key, turns, directions=directions))
    if count == 0:
        raise ValueError(f"{path}: there are no rows below the header {','.join(header)}.")
    return Listing("row", count, entries, problems)


def _said(at: int | None, cells: Sequence[str]) -> Directions | None:
    return said_directions(cells[at] if at is not None and at < len(cells) else "")


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Numbered rows that are not blank."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, cells in enumerate(csv.reader(file, strict=True), start=1):
                if any(cell.strip() for cell in cells):
                    yield number, cells
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    except csv.Error as error:
        limit = f"a cell of more than {csv.field_size_limit():,} characters, or a double quote without its partner"
        raise ValueError(
            f"{path}, row {number + 1}: {limit if 'field limit' in str(error) else error}. A text with commas, line "
            'breaks or quotes stands in double quotes, and a double quote inside it is written twice: "".'
        ) from None


def _column(path: Path, role: str, header: Sequence[str], wanted: str | None) -> int:
    lower = [name.lower() for name in header]
    names = ALIASES[role] if wanted is None else (wanted.strip().lower(),)
    found = [name for name in names if name in lower]
    if not found:
        accepted = f"Accepted: {', '.join(names)}, or name it with data.{role}_column."
        told = f"data.{role}_column={wanted} is none of them." if wanted else f"{accepted}{_hint(header)}"
        shown = ", ".join(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…" for name in header[:_SHOWN])
        raise ValueError(f"{path}: no column for the {role}. Columns found: {shown}. {told}")
    if found[0] != ALIASES[role][0] and len(found) > 1:
        raise ValueError(
            f"{path}: the columns {' and '.join(found)} could each be the {role}. Choose one with data.{role}_column."
        )
    if lower.count(found[0]) > 1:
        raise ValueError(
            f"{path}: the column {found[0]} stands {lower.count(found[0])} times, and one would be read. Rename the "
            "others. Several answers to one question are several rows."
        )
    return lower.index(found[0])


def _hint(header: Sequence[str]) -> str:
    """What may be wrong with a header that lacks a column."""
    if len(header) == 1 and any(separator in header[0] for separator in ";\t"):
        return " The columns seem to be separated by another sign: save the file with commas."
    if not {name.lower() for name in header} & {name for names in ALIASES.values() for name in names}:
        return " The first line must name the columns, such as url,query,annotation."
    return ""


def _bad(header: Sequence[str], columns: Mapping[str, int], cells: Sequence[str]) -> list[tuple[str, str]]:
    """Columns of a row that cannot be used, and why."""
    if any(cell.strip() for cell in cells[len(header) :]):
        counts = f"{len(cells)} cells where the header has {len(header)}"
        return [(header[-1], f"{counts}: put texts with commas in double quotes")]
    texts = {header[at]: cells[at].strip() if at < len(cells) else "" for at in columns.values()}
    found = [(name, wrong_text(text) if text else "the cell is empty") for name, text in texts.items()]
    return [(name, reason) for name, reason in found if reason]
