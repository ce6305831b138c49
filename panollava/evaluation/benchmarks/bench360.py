"""360Bench: questions with options, each in four orders of them.

The authors' function is known by examples. An empty answer, ``The answer is`` and ``(`` are read as A; ``B.``,
``C. Behind`` and ``The correct answer is D`` are read as nothing; and the four orders count as four questions. The
rule that is not stated, and that has these faults, is the one of ``released_letter``.
"""

import ast
import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from panollava.disk import utf8_text
from panollava.evaluation.benchmarks.files import picture_file
from panollava.evaluation.benchmarks.parsing import find_letter
from panollava.evaluation.benchmarks.protocol import (
    Answered,
    Benchmark,
    FormScores,
    Item,
    Mark,
    averaged,
    grouped_orders,
)

LETTERS = "ABCD"
COLUMNS = (
    "No.",
    "image_file",
    "question",
    "category",
    "l2-category",
    "bbox",
    "index",
    "multi-choice options",
    "answer",
)
_OPTION = re.compile(r"\s*\(?([A-Z])[.):]\s*(.*)", re.DOTALL)


class Bench360(Benchmark):
    """Reads the table of tabs and scores the answers; see the module."""

    name: ClassVar[str] = "bench360"
    patterns: ClassVar[tuple[str, ...]] = ("*.tsv",)

    def items(self, path: Path, images: Path | None) -> list[Item]:
        """The items; pictures are below `images` or the folder of the file.

        An item is named by ``No.``, or by ``No./index`` where numbers occur twice. Rows with the same picture,
        question, categories, box and set of texts of options are one question in several orders.
        """
        (file,) = self.files(path)
        rows = _rows(file)
        numbers = Counter(row["No."] for _, row in rows)
        is_unique = max(numbers.values(), default=1) == 1
        return [_item(file, line, row, images or file.parent, is_unique) for line, row in rows]

    def released_mark(self, item: Item, answer: str) -> Mark:
        """Whether the letter of a row is right."""
        said = released_letter(answer)
        return Mark({"accuracy": float(said == item.references[0])}, said != "")

    def corrected_mark(self, item: Item, answer: str) -> Mark:
        """The same; ``corrected`` makes of the rows a mean over questions."""
        said = find_letter(answer, item.options)
        return Mark({"accuracy": float(said == item.references[0])}, said is not None)

    def corrected(self, answered: Sequence[Answered]) -> FormScores:
        """Accuracy over questions: the mean over their orders, and the share that is right in all of them."""
        marks = [(one.item, self.corrected_mark(one.item, one.answer or "")) for one in answered]
        unanswered = sum(one.answer is None for one in answered)
        unparsed = sum(not mark.is_parsed for _, mark in marks) - unanswered
        found = averaged(grouped_orders(marks), by_kind=("accuracy", "right in all orders"))
        return FormScores(found.scores, found.scored, 0, unanswered, unparsed)


def released_letter(answer: str) -> str:
    """The letter that the released rule reads, or an empty text.

    The words ``The answer is`` at the start, blanks and brackets around the rest are dropped. What remains is looked up
    as a part of ``ABCD``, and its place there names the letter: an empty text is found at the place of A. Any other
    text, such as a letter with a period, is not found.
    """
    rest = answer.strip().removeprefix("The answer is").strip(" \t\r\n()")
    place = LETTERS.find(rest)
    return "" if place < 0 else LETTERS[place]


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of the table with their lines; raises ValueError for a missing column or cell."""
    reader = csv.reader(io.StringIO(utf8_text(path), newline=""), delimiter="\t")
    try:
        records = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}. Fetch or copy the file again.") from None
    header = [name.strip() for name in records[0][1]] if records else []
    if missing := [name for name in COLUMNS if name not in header]:
        raise ValueError(
            f"{path}: no column {missing[0]}. Columns found: {', '.join(header) or 'none'}. They are separated by tabs."
        )
    rows = []
    for line, cells in records[1:]:
        if any(cell.strip() for cell in cells):
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}, line {line}: {len(cells)} cells where the header has {len(header)}. Separate "
                    "them by tabs."
                )
            rows.append((line, dict(zip(header, cells, strict=True))))
    return rows


def _item(path: Path, line: int, row: dict[str, str], folder: Path, is_unique: bool) -> Item:
    options = _options(path, line, row["multi-choice options"])
    answer, image, question = (row[key].strip() for key in ("answer", "image_file", "question"))
    if answer not in dict(options):
        raise ValueError(f"{path}, line {line}, column answer: {answer!r} is none of {', '.join(dict(options))}.")
    texts = sorted(text for _, text in options)
    number = row["No."].strip()
    return Item(
        id=number if is_unique else f"{number}/{row['index'].strip()}",
        image=image,
        picture=picture_file(folder, image),
        question=question,
        prompt="\n".join([question, *(f"{letter}. {text}" for letter, text in options)]),
        references=(answer,),
        group=repr([image, question, row["category"], row["l2-category"], row["bbox"], texts]),
        kind=row["category"].strip(),
        options=options,
    )


def _options(path: Path, line: int, text: str) -> tuple[tuple[str, str], ...]:
    """The (letter, text) pairs of a cell that holds a Python list of ``A. …``."""
    try:
        listed = ast.literal_eval(text.strip())
        matches = [_OPTION.fullmatch(one) for one in listed]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        listed, matches = [], []
    if not isinstance(listed, list) or not matches or None in matches:
        raise ValueError(
            f"{path}, line {line}, column multi-choice options: {text[:60]!r} is no list such as "
            "['A. left', 'B. right']."
        )
    return tuple((one[1], one[2].strip()) for one in matches if one is not None)
