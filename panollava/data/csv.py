"""CSV files of pictures, questions and answers; every bad row is named before training starts."""

from __future__ import annotations

import csv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from panollava.crop.read import check_panorama
from panollava.data.pictures import Pictures
from panollava.data.records import FREE_TEXT, Question, Record

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

LISTED_PROBLEMS = 20
"""Bad rows that an error message spells out; the rest are counted."""


@dataclass(frozen=True)
class _Row:
    """One row; `number` is the one a spreadsheet shows, the header being row 1."""

    number: int
    image: str
    query: str
    annotation: str


class CsvSource:
    """One CSV file as a split of a data set: a row is a picture, a question about it and one answer.

    Args:
        path: UTF-8 file, with or without byte order mark.
        reader: decodes a picture file to (H, W, 3) uint8 RGB, such as ``Crop.read``.
        check: refuses a picture file that the reader could not use, without decoding it, such as ``Crop.check``.
        image_dir: folder that picture names are relative to; None for that of `path`.
        dir: folder of the data set; pictures lie in it, in `image_dir` or beside `path`.
        name: name of the split in sample ids; the folder and stem of `path` where empty.
        image_column, query_column, annotation_column: names of the columns where they are not among
            `ALIASES` or where several could be meant.
        query_template: question made of a query, such as ``Describe the {query} in this panorama.``

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no UTF-8 CSV, a column is missing, there are no rows, or some rows are bad.
    """

    def __init__(
        self,
        *,
        path: str,
        reader: Callable[[Path], np.ndarray],
        check: Callable[[str], object] = check_panorama,
        image_dir: str | None = None,
        dir: str | None = None,
        name: str = "",
        image_column: str | None = None,
        query_column: str | None = None,
        annotation_column: str | None = None,
        query_template: str = "{query}",
    ) -> None:
        if "{query}" not in query_template:
            raise ValueError(f"query_template={query_template!r} has no place for the query: write {{query}} into it.")
        self.path = Path(path)
        self.name = name or f"{self.path.resolve().parent.name}-{self.path.stem}"
        self._reader = reader
        self._check = check
        self._template = query_template
        beside = self.path.parent
        folder = beside if image_dir is None else Path(image_dir).expanduser()
        self._pictures = Pictures(folder, inside=[beside, *([] if dir is None else [Path(dir)])])
        named = {"image": image_column, "query": query_column, "annotation": annotation_column}
        self._rows = self._read_rows(named)

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, index: int, epoch: int) -> Record:
        """Row `index` as a conversation of one turn, the same in every epoch."""
        row = self._rows[index]
        return Record(self._sample_id(row), ((self._question(row), row.annotation),))

    def image_id(self, index: int) -> str:
        """Path of row `index`'s picture."""
        return self._paths[self._rows[index].image]

    def panorama(self, index: int) -> np.ndarray:
        """Picture of row `index`, (H, W, 3) uint8 RGB."""
        return self._reader(Path(self.image_id(index)))

    def picture(self, index: int) -> Path:
        """File of row `index`'s picture."""
        return Path(self.image_id(index))

    def questions(self) -> list[Question]:
        """Each (picture, query) once with all its references, pictures and queries in order of appearance."""
        groups: dict[str, dict[str, list[_Row]]] = {}
        for row in self._rows:
            groups.setdefault(self._paths[row.image], {}).setdefault(row.query, []).append(row)
        return [
            Question(
                sample_id=self._sample_id(rows[0]),
                image_id=next(iter(queries.values()))[0].image,
                history=(),
                question=self._question(rows[0]),
                references=tuple(row.annotation for row in rows),
                kind=FREE_TEXT,
            )
            for queries in groups.values()
            for rows in queries.values()
        ]

    def question_panorama(self, question: Question) -> np.ndarray:
        """Picture that `question` asks about, (H, W, 3) uint8 RGB."""
        return self._reader(Path(self._paths[question.image_id]))

    def question_picture(self, question: Question) -> Path:
        """File of the picture that `question` asks about."""
        return Path(self._paths[question.image_id])

    def _sample_id(self, row: _Row) -> str:
        return f"{self.name}-row{row.number}"

    def _question(self, row: _Row) -> str:
        return self._template.replace("{query}", row.query)

    def _read_rows(self, named: dict[str, str | None]) -> list[_Row]:
        table = [(number, cells) for number, cells in self._table() if any(cell.strip() for cell in cells)]
        if not table:
            raise ValueError(f"{self.path}: the file is empty. It needs a header such as url,query,annotation.")
        header = [cell.strip() for cell in table[0][1]]
        columns = {role: self._column(role, header, named[role]) for role in ALIASES}
        if len(table) == 1:
            raise ValueError(f"{self.path}: there are no rows below the header {','.join(header)}.")
        rows: list[_Row] = []
        problems: list[tuple[int, str, str]] = []
        for number, cells in table[1:]:
            reasons = self._cell_problems(header, columns, cells)
            if reasons:
                problems += [(number, column, reason) for column, reason in reasons]
                continue
            image, query, annotation = (cells[at].strip() for at in columns.values())
            rows.append(_Row(number, image, query, annotation))
        problems += self._picture_problems(rows, header[columns["image"]])
        if problems:
            self._refuse(sorted(problems), len(table) - 1)
        return rows

    def _table(self) -> list[tuple[int, list[str]]]:
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: there is no such file. Check the path of the data set.")
        number = 0
        table = []
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                for number, cells in enumerate(csv.reader(file, strict=True), start=1):
                    table.append((number, cells))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path}: not UTF-8 text (byte 0x{error.object[error.start]:02X} after row {number}). "
                "Save it as CSV UTF-8."
            ) from None
        except csv.Error as error:
            raise ValueError(
                f"{self.path}, row {number + 1}: {error}. A text with commas, line breaks or quotes stands "
                'in double quotes, and a double quote inside it is written twice: "".'
            ) from None
        return table

    def _column(self, role: str, header: list[str], wanted: str | None) -> int:
        lower = [name.lower() for name in header]
        names = ALIASES[role] if wanted is None else (wanted.strip().lower(),)
        found = [name for name in names if name in lower]
        if not found:
            hint = ""
            if len(header) == 1 and any(separator in header[0] for separator in ";\t"):
                hint = " The columns seem to be separated by another sign: save the file with commas."
            raise ValueError(
                f"{self.path}: no column for the {role}. Columns found: {', '.join(header)}. Accepted: "
                f"{', '.join(names)}, or name it with {role}_column.{hint}"
            )
        if found[0] != ALIASES[role][0] and len(found) > 1:
            raise ValueError(
                f"{self.path}: the columns {' and '.join(found)} could each be the {role}. "
                f"Choose one with {role}_column."
            )
        return lower.index(found[0])

    def _cell_problems(self, header: list[str], columns: dict[str, int], cells: list[str]) -> list[tuple[str, str]]:
        if any(cell.strip() for cell in cells[len(header) :]):
            counts = f"{len(cells)} cells where the header has {len(header)}"
            return [(header[-1], f"{counts}: put texts with commas in double quotes")]
        problems = []
        for at in columns.values():
            text = cells[at].strip() if at < len(cells) else ""
            if not text:
                problems.append((header[at], "the cell is empty"))
        return problems

    def _picture_problems(self, rows: list[_Row], column: str) -> list[tuple[int, str, str]]:
        """Finds the path of every picture, or what is wrong with it."""
        images = list(dict.fromkeys(row.image for row in rows))
        with ThreadPoolExecutor(max_workers=8) as pool:
            found = dict(zip(images, pool.map(self._look_at, images), strict=True))
        self._paths = {image: path for image, (path, reason) in found.items() if reason is None}
        return [(row.number, column, reason) for row in rows if (reason := found[row.image][1]) is not None]

    def _look_at(self, image: str) -> tuple[str, str | None]:
        """Path of a picture and what is wrong with it."""
        try:
            path = self._pictures.path(image)
            self._check(path)
        except (OSError, ValueError) as error:  # collected, so that all bad rows are named at once
            return "", str(error)
        return path, None

    def _refuse(self, problems: list[tuple[int, str, str]], row_count: int) -> NoReturn:
        shown = [f"  row {number}, column {column}: {reason}" for number, column, reason in problems[:LISTED_PROBLEMS]]
        if len(problems) > LISTED_PROBLEMS:
            shown.append(f"  and {len(problems) - LISTED_PROBLEMS} more")
        bad = len({number for number, _, _ in problems})
        raise ValueError(
            f"{self.path}: {bad} of {row_count} rows are bad (the header is row 1). Mend or delete them:\n"
            + "\n".join(shown)
        )
