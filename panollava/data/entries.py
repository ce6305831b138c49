"""What every reader of data files makes of them: conversations about pictures, and the bad ones with their reasons."""

from __future__ import annotations

import codecs
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from panollava.data.records import FREE_TEXT, Directions

DIRECTIONS_KEY = "names_directions"
"""Column, or key of the metadata, by which an entry says how its texts name directions."""

SUFFIXES = (".csv", ".json", ".jsonl", ".ndjson")
"""Of data files."""

_NAMED = 6
_PLACEHOLDER = re.compile(r"\s*<image>\s*")
_UNITS = {"row": "rows", "line": "lines", "entry": "entries"}
_PLACES = 3
"""Entries that one line about them all names."""

LISTED_PROBLEMS = 20
"""Bad rows that an error message spells out; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One conversation about one picture.

    Attributes:
        number: place in the file, as `Listing.unit` counts.
        place: the same in words, such as ``row 5``.
        image: what the file calls the picture.
        image_key: where it does, such as ``column url``.
        turns: (question, answer) pairs, one at least, no text empty.
        kind: question type.
        directions: how the texts name directions, as far as the entry itself says.
    """

    number: int
    place: str
    image: str
    image_key: str
    turns: tuple[tuple[str, str], ...]
    kind: str = FREE_TEXT
    directions: Directions = "unknown"


@dataclass(frozen=True, order=True, slots=True)
class Problem:
    """What is wrong with an entry, or with all the entries about one picture.

    Attributes:
        number: place of the entry in the file.
        place: the same in words, with the column or key.
        reason: in words.
        others: places of further entries of which the same is true.
    """

    number: int
    place: str
    reason: str
    others: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True)
class Listing:
    """The entries of a file.

    Attributes:
        unit: what is counted: rows of a table, whose header is row 1; lines; or entries of a list.
        count: entries, good and bad.
        entries: the good ones, in the order of the file.
        problems: of the others; an entry may have several.
    """

    unit: Literal["row", "line", "entry"]
    count: int
    entries: list[Entry]
    problems: list[Problem]


class BadEntries(ValueError):
    """Some entries of a file are bad, and training would have to do without them.

    Args:
        path: the file.
        unit: see `Listing`.
        count: entries, good and bad.
        problems: see `Listing`.
        is_empty: whether none is left.
    """

    def __init__(self, path: Path, unit: str, count: int, problems: Sequence[Problem], *, is_empty: bool) -> None:
        self.path = path
        self.problems = list(problems)
        self.count = count
        way_out = "" if is_empty else ", or leave them out with data.on_error=skip"
        told = f"{summary(path, unit, problems, count)}. Mend or delete them{way_out}:\n"
        super().__init__(told + "\n".join(shown(problems)))


def summary(path: Path, unit: str, problems: Sequence[Problem], count: int) -> str:
    """How many entries of a file are bad, in words."""
    header = " (the header is row 1)" if unit == "row" else ""
    return f"{path}: {len(bad_numbers(problems))} of {count} {_UNITS[unit]} are bad{header}"


def bad_numbers(problems: Iterable[Problem]) -> set[int]:
    """Places of the entries that problems are about."""
    return {number for problem in problems for number in (problem.number, *problem.others)}


def in_places(unit: str, entries: Sequence[Entry]) -> str:
    """Where entries about one picture name it, in words."""
    numbers = [str(entry.number) for entry in entries]
    if len(numbers) == 1:
        return f"{entries[0].place}, {entries[0].image_key}"
    more = len(numbers) - _PLACES
    last = f"{more} more" if more > 1 else numbers[-1]
    first = numbers[:_PLACES] if more > 1 else numbers[:-1]
    return f"{_UNITS[unit]} {', '.join(first)} and {last}, {entries[0].image_key}"


def shown(problems: Sequence[Problem]) -> list[str]:
    """The first problems, a line each, and the number of the others."""
    lines = [f"  {problem}" for problem in problems[:LISTED_PROBLEMS]]
    if len(problems) > LISTED_PROBLEMS:
        lines.append(f"  and {len(problems) - LISTED_PROBLEMS} more; python -m panollava.check names them all")
    return lines


def not_utf8(path: Path) -> ValueError:
    """The error for a file in another encoding, with the line that shows it."""
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return ValueError(f"{path}: not UTF-8 text but UTF-16, by its first two bytes. Save it as UTF-8.")
        file.seek(0)
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return ValueError(
                    f"{path}, line {number}: not UTF-8 text (byte 0x{line[error.start]:02X}). Save it as UTF-8, such "
                    "as the CSV UTF-8 of a spreadsheet."
                )
    return ValueError(f"{path}: not UTF-8 text. Save it as UTF-8.")


def wrong_text(text: str) -> str:
    """What is wrong with a text that is not empty; empty if nothing."""
    if "\0" in text:
        return "a NUL character, which no text has: the file was damaged, or is not in UTF-8"
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell one half of a character that takes two
        return "half a character: one \\ud800 to \\udfff without its other half"
    return ""


def drop_placeholders(question: str) -> tuple[str, int]:
    """A question without LLaVA's ``<image>``, which says where a picture stands, and how many there were."""
    text, pictures = _PLACEHOLDER.subn("\n", question) if "<image>" in question else (question, 0)
    return text.strip(), pictures


def too_many_pictures(count: int) -> str:
    """What is wrong with an entry in whose questions ``<image>`` stands several times."""
    return f"asks about {count} pictures, and an entry has one: <image> stands {count} times in its questions"


def spelling(image: str) -> str:
    """One text for all spellings of a picture's name, as far as the name itself tells."""
    name = unicodedata.normalize("NFC", image)
    return name if "://" in name else posixpath.normpath(name.replace("\\", "/"))


def said_directions(text: str) -> Directions | None:
    """How an entry's texts name directions, by what it says of them; None where that is no answer."""
    known: dict[str, Directions] = {"": "unknown", "none": "none", "words": "words", "fixed": "fixed"}
    return known.get(text.strip().lower())


NOT_DIRECTIONS = "is none of none, words and fixed, which say how the texts name directions"
"""What is wrong with another answer."""


def found_file(path: Path) -> Path:
    """A data file that is there.

    Raises:
        FileNotFoundError: there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. Check the path of the data set.{_beside(path)}")
    return path


def _beside(path: Path) -> str:
    """The data files that are in the folder of one that is not."""
    if not path.parent.is_dir():
        return f" There is no folder {path.parent}."
    names = sorted(each.name for each in path.parent.iterdir() if each.suffix.lower() in SUFFIXES)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    ways = "a file of another name is given with data.train_csv, data.val_json or their like"
    return f" In its folder there are {', '.join(names[:_NAMED])}{more}; {ways}." if names else ""
