"""Data files: their entries and problems, and the strict reading of CSV.

`Table` reads any CSV whose columns are known by name; `read_csv` reads a data set, in which a row has a picture, a
question about it and one answer. A malformed row is reported with its place.
"""

import csv
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from panollava.data.source import FREE_TEXT, Directions
from panollava.disk import csv_text, not_utf8
from panollava.logs import log_once

DIRECTIONS_KEY = "names_directions"
"""Column, or key of the metadata, that states how the texts of an entry name directions."""

SCORE_BY = "data.score_by"
"""Config key of the columns, or keys of the metadata, by which scores are reported."""

SUFFIXES = (".csv", ".json", ".jsonl", ".ndjson")
LISTED_PROBLEMS = 20
"""Bad entries that an error message lists; the others are counted."""

_PLACEHOLDER = re.compile(r"\s*<image>\s*")
_UNITS = {"row": "rows", "line": "lines", "entry": "entries", "picture": "pictures"}
_PLACES = 3
"""Entries about one picture that a message lists."""
_NAMED = 6
"""Files of a folder that a message lists."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One conversation about one picture."""

    number: int  # place in the file, as `Listing.unit` counts
    place: str  # the same in words, such as ``row 5``
    image: str  # name of the picture in the file
    image_key: str  # its place, such as ``column url``
    turns: tuple[tuple[str, str], ...]  # one or more (question, answer) pairs without empty texts
    question_type: str = FREE_TEXT  # for scores
    directions: Directions = "unknown"  # how the texts name directions, as the entry states it
    groups: tuple[tuple[str, str], ...] = ()  # columns or keys by which scores are reported, with their values


@dataclass(frozen=True, order=True, slots=True)
class Problem:
    """What is wrong with an entry, or with all entries about one picture."""

    number: int  # place of the entry in the file
    place: str  # the same in words, with the column or key
    reason: str  # in words
    others: tuple[int, ...] = ()  # places of further entries with the same problem

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True)
class Listing:
    """The entries of a file."""

    unit: Literal["row", "line", "entry", "picture"]  # rows of a table, whose header is row 1; lines; items of a list
    count: int  # of good and bad entries
    entries: list[Entry]  # the good ones, in the order of the file
    problems: list[Problem]  # of the others; an entry may have several
    unused: tuple[str, ...] = ()  # columns, or keys of the metadata, that nothing reads


class BadEntries(ValueError):
    """Some entries of a file are bad; for `unit`, `count` and `problems` see `Listing`.

    Args:
        is_empty: whether no entry is good.
    """

    def __init__(self, path: Path, unit: str, count: int, problems: Sequence[Problem], *, is_empty: bool) -> None:
        self.path = path
        self.problems = list(problems)
        way_out = "" if is_empty else ", or leave them out with data.on_error=skip"
        head = f"{summary(path, unit, problems, count)}. Mend or delete them{way_out}:"
        super().__init__("\n".join([head, *shown(problems)]))


def summary(path: Path, unit: str, problems: Sequence[Problem], count: int) -> str:
    """How many entries of a file are bad, in words."""
    header = " (the header is row 1)" if unit == "row" else ""
    return f"{path}: {len(bad_numbers(problems))} of {count} {_UNITS[unit]} are bad{header}"


def bad_numbers(problems: Iterable[Problem]) -> set[int]:
    """Positions of the entries that have problems."""
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


def wrong_text(text: str) -> str:
    """What is wrong with a text; empty if nothing is."""
    if "\0" in text:
        return "a NUL character, which no text has: the file was damaged, or is not in UTF-8"
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell one half of a character that takes two
        return "half a character: one \\ud800 to \\udfff without its other half"
    return ""


def drop_placeholders(question: str) -> tuple[str, int]:
    """A question without LLaVA's ``<image>``, the placeholder of a picture, and the number of placeholders."""
    text, pictures = _PLACEHOLDER.subn("\n", question) if "<image>" in question else (question, 0)
    return text.strip(), pictures


def too_many_pictures(count: int) -> str:
    """The problem of an entry with several ``<image>``."""
    return f"asks about {count} pictures, and an entry has one: <image> occurs {count} times in its questions"


def is_address(image: str) -> bool:
    """Whether a name of a picture is an http(s) address."""
    return image.lower().startswith(("http://", "https://"))


def spelling(image: str) -> str:
    """A normal form of a picture's name: Unicode composed, separators and ``..`` resolved."""
    name = unicodedata.normalize("NFC", image)
    return name if "://" in name else posixpath.normpath(name.replace("\\", "/"))


def said_directions(text: str) -> Directions | None:
    """Parses what an entry states of its directions; None if it is not one of the allowed words."""
    known: dict[str, Directions] = {"": "unknown", "none": "none", "words": "words", "fixed": "fixed"}
    return known.get(text.strip().lower())


def no_column(path: Path, key: str, wanted: str, what: str, there: Sequence[str]) -> ValueError:
    """The error for a column, or a key of the metadata, that a config key lists and a file does not have."""
    shown = ", ".join(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…" for name in there[:_SHOWN]) or "none"
    return ValueError(
        f"{path}: {key} names {wanted}, which is not there. {what.capitalize()} found: {shown}. [] names none."
    )


NOT_DIRECTIONS = "is none of none, words and fixed, which say how the texts name directions"


def found_file(path: Path) -> Path:
    """The path, if there is such a file; else the error lists the data files beside it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. Check the path of the data set.{_beside(path)}")
    return path


def _beside(path: Path) -> str:
    """Lists the data files in the folder of a missing one."""
    if not path.parent.is_dir():
        return f" There is no folder {path.parent}."
    names = sorted(each.name for each in path.parent.iterdir() if each.suffix.lower() in SUFFIXES)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    ways = "a file of another name is given with data.train_csv, data.val_json or their like"
    return f" In its folder there are {', '.join(names[:_NAMED])}{more}; {ways}." if names else ""


ALIASES = {
    "image": ("url", "image", "image_path", "image_url", "image_file", "file_name", "filename", "file", "path"),
    "query": ("query", "question", "instruction", "prompt"),
    "annotation": ("annotation", "answer", "response", "caption", "reference", "output"),
}
"""Accepted names of each column of a data set; the first is the documented one."""

_SHOWN = 40
"""Columns that a message lists, and letters of each, as the header may be a row of long texts."""
_LONGEST = 131_072
"""Characters of a text in a data set; a longer one is most likely many rows after an unmatched double quote."""
_BREAK = re.compile(r"\r\n|\r|\n")
_LOOSE_QUOTE = re.compile(r'(?:^|,)[^\S\r\n]+"')
_SEPARATOR_NOTE = re.compile(r'"?sep=.?"?\s*', re.IGNORECASE)
_QUOTING = (
    "A text with commas, line breaks or quotes is written in double quotes, without blanks around them, and a double "
    'quote inside it is written twice: "".'
)


@dataclass(frozen=True)
class Column:
    """How a column is found."""

    names: tuple[str, ...]  # accepted names, in lower case with ``_`` for blanks; the first is the documented one
    key: str = ""  # config key that names the column; empty if there is none
    named: str | None = None  # value of that key; None finds the column by `names`
    is_needed: bool = True  # whether a table without it is an error


class Row(NamedTuple):
    """A row of a table."""

    number: int  # as a spreadsheet counts, the header being row 1
    line: int  # of the file, in which it begins; cells may have several lines
    cells: dict[str, str]  # by role, unchanged
    problems: list[tuple[str, str]]  # columns that cannot be used, and why


class Table:
    """A CSV file with a header.

    Args:
        path: UTF-8 file that is there, with or without byte order mark.
        columns: by role; with an ``image`` among them, quoted texts that contain further rows are detected.

    Attributes:
        header: names of the columns.
        names: those of the roles that were found.

    Raises:
        ValueError: no UTF-8 CSV, or a column is missing or could be several.
    """

    def __init__(self, path: Path, columns: Mapping[str, Column]) -> None:
        self._path = path
        self._records = _records(path)
        first = next(self._records, None)
        if first is None:
            raise ValueError(f"{path}: the file is empty. It needs a header such as {_example(columns)}.")
        _, line, cells, text = first
        if "\0" in text:
            raise ValueError(
                f"{path}: the file is not text: it begins with NUL bytes. Fetch or copy it again, or save it as UTF-8 "
                "where it is UTF-16."
            )
        if _SEPARATOR_NOTE.fullmatch(text):
            raise ValueError(
                f"{path}, line {line}: {text.strip()} is a spreadsheet's note of its separator, not the header. Delete "
                "this line, and save the file with commas."
            )
        if _loosely_quoted(cells, text):
            raise ValueError(f"{path}, line {line}: there is a blank before a double quote in the header. {_QUOTING}")
        self.header = [cell.strip() for cell in cells]
        while self.header and not self.header[-1]:  # commas at the end of every line
            self.header.pop()
        self._places = self._found(columns)
        self.names = {role: self.header[at] for role, at in self._places.items()}

    def log_columns(self) -> None:
        """Logs, once in a process, which columns are read."""
        log_once(f"{self._path}: columns taken: {', '.join(f'{role} = {name}' for role, name in self.names.items())}.")

    def add_columns(self, columns: Sequence[str], key: str) -> dict[str, str]:
        """Reads further columns, which may have a role of their own too.

        Args:
            columns: their names.
            key: the config key that lists them.

        Returns:
            Role of each column, by its name in the file.

        Raises:
            ValueError: there is no such column.
        """
        roles = {}
        for wanted in columns:
            if not (places := self._named(wanted)):
                raise no_column(self._path, key, wanted, "columns", self.header)
            role = f"{key} {wanted}"
            self._places[role] = self._only(role, Column((), key, wanted), places)
            roles[self.header[self._places[role]]] = role
        return roles

    @property
    def unused(self) -> tuple[str, ...]:
        """Columns that nothing reads."""
        return tuple(name for at, name in enumerate(self.header) if name and at not in self._places.values())

    def missing(self, role: str, columns: Mapping[str, Column]) -> ValueError:
        """The error for a table without a column of a role."""
        column = columns[role]
        if column.named is not None:
            hint = f"{column.key}={column.named} is none of them."
        else:
            key = f", or name it with {column.key}" if column.key else ""
            hint = f"Accepted: {', '.join(column.names)}{key}.{self._hint(columns)}"
        shown = ", ".join(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…" for name in self.header[:_SHOWN])
        return ValueError(f"{self._path}: no column for the {role}. Columns found: {shown}. {hint}")

    def rows(self) -> Iterator[Row]:
        """The rows below the header that are not blank.

        Raises:
            ValueError: this is no CSV, a double quote swallows rows, or there are no rows.
        """
        is_empty = True
        for number, line, cells, text in self._records:
            is_empty = False
            of_roles = {role: cells[at] if at < len(cells) else "" for role, at in self._places.items()}
            yield Row(number, line, of_roles, self._wrong(line, cells, text))
        if is_empty:
            raise ValueError(f"{self._path}: there are no rows below the header {','.join(self.header)}.")

    def with_pictures(self, file_of: Callable[[str], str | None]) -> str:
        """The table as text with new names of its pictures; rows for which `file_of` returns None are left out."""
        rows = [self.header]
        at = self._places["image"]
        for _, _, cells, _ in self._records:
            name = file_of(cells[at].strip()) if len(cells) > at else ""
            if name is not None:
                rows.append([*cells[:at], name, *cells[at + 1 :]])
        return csv_text(rows)

    def _found(self, columns: Mapping[str, Column]) -> dict[str, int]:
        """Place of each role's column."""
        named = {role: self._named(column.named) for role, column in columns.items() if column.named is not None}
        taken = {at for places in named.values() for at in places}
        free = [at for at in range(len(self.header)) if at not in taken]
        places: dict[str, int] = {}
        for role, column in columns.items():
            found = named.get(role, [at for at in free if plain_name(self.header[at]) in column.names])
            if found:
                places[role] = self._only(role, column, found)
            elif column.is_needed or role in named:
                raise self.missing(role, columns)
        return places

    def _named(self, wanted: str) -> list[int]:
        """Places of the columns of a name; if none has the same case, of any case."""
        wanted = wanted.strip()
        spelt = [at for at, name in enumerate(self.header) if name == wanted]
        return spelt or [at for at, name in enumerate(self.header) if name.lower() == wanted.lower()]

    def _only(self, role: str, column: Column, places: Sequence[int]) -> int:
        names = list(dict.fromkeys(self.header[at] for at in places))
        if len(names) > 1:
            way_out = f"Choose one with {column.key}, or rename" if column.key else "Rename"
            columns = f"the columns {' and '.join(names)} could each be the {role}"
            raise ValueError(f"{self._path}: {columns}. {way_out} the others.")
        if len(places) > 1:
            raise ValueError(
                f"{self._path}: the column {names[0]} occurs {len(places)} times, and only one can be read. Rename the "
                "others. Several answers to one question are several rows."
            )
        return places[0]

    def _hint(self, columns: Mapping[str, Column]) -> str:
        """What may be wrong with a header that lacks a column."""
        if len(self.header) == 1 and any(separator in self.header[0] for separator in ";\t|"):
            return " The columns seem to be separated by another sign: save the file with commas."
        if not {plain_name(name) for name in self.header} & {
            name for column in columns.values() for name in column.names
        }:
            return f" The first line must name the columns, such as {_example(columns)}."
        return ""

    def _wrong(self, line: int, cells: Sequence[str], text: str) -> list[tuple[str, str]]:
        """Columns of a row that cannot be used, and why."""
        width = len(self.header)
        if len(cells) != width and any(cell.strip() for cell in cells[width:] or [text]):
            at, advice = (-1, "put texts with commas in double quotes") if len(cells) > width else (len(cells), "")
            counts = f"{len(cells)} cells where the header has {width}"
            return [(self.header[at], f"{counts}: {advice or 'a comma is missing, or a line break is not in quotes'}")]
        if loose := _loosely_quoted(cells, text):
            return [(self.header[at], 'there is a blank before the double quote: put ,"…" without it') for at in loose]
        if _BREAK.search(text.rstrip("\r\n")):
            self._refuse_swallowed(line, cells)
        if "image" in self.names and _BREAK.search(cells[self._places["image"]].strip()):
            return [(self.names["image"], "a name in two lines: is a double quote missing?")]
        return []

    def _refuse_swallowed(self, line: int, cells: Sequence[str]) -> None:
        """Refuses a text that contains further rows, because a double quote is missing in the first of them."""
        at, width = self._places.get("image"), len(self.header)
        if at is None or (own := _shape(cells[at])).isdigit():  # what any number looks like
            return
        words = len(cells[at].split())
        for cell in cells:
            pieces = [piece.split(",") for piece in _BREAK.split(cell)]  # a quote in them would have ended the text
            last = len(pieces) - 1
            for further, piece in enumerate(pieces):
                names = []
                if further and len(piece) > at:  # a whole row, or the beginning of the last
                    names.append(piece[at])
                if further < last and len(piece) >= width - at:  # a whole row, or the end of the first
                    names.append(piece[at - width])
                looks = [name for name in names if 0 < len(name.split()) <= words and _shape(name) == own]
                if looks and 1 < len(piece) <= width:
                    raise ValueError(
                        f"{self._path}, line {line}: a text in double quotes that begins here ends in line "
                        f"{line + last}, and {','.join(piece)[:_SHOWN]!r} in line {line + further} looks like a row. "
                        f"Is a double quote missing? {_QUOTING}"
                    )
            line += last


def read_csv(path: Path, named: Mapping[str, str | None], query_template: str, score_by: Sequence[str] = ()) -> Listing:
    """The rows of a table, numbered as a spreadsheet does, the header being row 1.

    Args:
        path: UTF-8 file, with or without byte order mark.
        named: column of each role of `ALIASES`; None where it is found by its name.
        query_template: question with ``{query}`` in place of the query.
        score_by: columns by which scores are reported.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no UTF-8 CSV, a column is missing or could be several, or there are no rows.
    """
    table = Table(found_file(path), _columns(named) | {"directions": Column((DIRECTIONS_KEY,), is_needed=False)})
    further = table.add_columns(score_by, SCORE_BY)
    table.log_columns()
    names = table.names
    template, placed = drop_placeholders(query_template)
    entries: list[Entry] = []
    problems: list[Problem] = []
    known: dict[str, str] = {}  # saves memory: equal names and questions become one object
    count = 0
    for row in table.rows():
        count += 1
        image, annotation = row.cells["image"].strip(), row.cells["annotation"].strip()
        query, pictures = drop_placeholders(row.cells["query"])
        wrong = list(row.problems)
        if not wrong:
            texts = {names["image"]: image, names["query"]: query, names["annotation"]: annotation}
            wrong = [(name, reason) for name, text in texts.items() if (reason := _unusable(text))]
            if placed + pictures > 1:
                wrong.append((names["query"], too_many_pictures(placed + pictures)))
        said = row.cells.get("directions", "")
        if (directions := said_directions(said)) is None:
            wrong.append((DIRECTIONS_KEY, f"{said!r} {NOT_DIRECTIONS}"))
        place = f"row {row.number}" if row.line == row.number else f"row {row.number} (line {row.line})"
        problems += [Problem(row.number, f"{place}, column {at}", reason) for at, reason in wrong]
        if not wrong and directions is not None:
            image = known.setdefault(image, image)
            question = template.replace("{query}", query)
            question = known.setdefault(question, question)
            turns = ((question, annotation),)
            cells = ((name, row.cells[role].strip()) for name, role in further.items())
            groups = tuple((name, known.setdefault(cell, cell)) for name, cell in cells)
            at = f"column {names['image']}"
            entries.append(Entry(row.number, place, image, at, turns, directions=directions, groups=groups))
    return Listing("row", count, entries, problems, table.unused)


def with_pictures(path: Path, named: Mapping[str, str | None], file_of: Callable[[str], str | None]) -> str:
    """The text of a file that `read_csv` reads, with new names of its pictures; None leaves their rows out."""
    return Table(path, _columns(named)).with_pictures(file_of)


def _columns(named: Mapping[str, str | None]) -> dict[str, Column]:
    return {role: Column(names, f"data.{role}_column", named[role]) for role, names in ALIASES.items()}


def _unusable(text: str) -> str:
    if len(text) > _LONGEST:
        return f"a cell of {len(text):,} characters, more than {_LONGEST:,}: is a double quote missing before it?"
    return wrong_text(text) if text else "the cell is empty"


def _records(path: Path) -> Iterator[tuple[int, int, list[str], str]]:
    """Number, first line, cells and text of the records that are not blank."""
    lines: list[str] = []

    def kept(file: Iterator[str]) -> Iterator[str]:
        for line in file:
            lines.append(line if lines or reader.line_num else line.lstrip("\ufeff"))  # some write the mark twice
            yield lines[-1]

    number, line = 0, 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(kept(file), strict=True)
            while (cells := _next(reader)) is not None:
                number += 1
                if any(cell.strip() for cell in cells):
                    yield number, line, cells, "".join(lines)
                lines.clear()
                line = reader.line_num + 1
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    except csv.Error as error:
        raise ValueError(_broken(path, number + 1, line, lines, str(error))) from None


def _next(reader: Iterator[list[str]]) -> list[str] | None:
    """The next record, without a limit of the size of cells, which ``csv`` has for the whole process."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


def _broken(path: Path, number: int, line: int, lines: Sequence[str], reason: str) -> str:
    """The message about a record that is not CSV, with the line in which the faulty quote was opened."""
    cells = _next(csv.reader(lines)) or [""]
    is_open = "unexpected end" in reason
    several = [at for at, cell in enumerate(cells) if _BREAK.search(cell)]
    at = len(cells) - 1 if is_open else several[-1] if several else 0
    opened = line + sum(len(_BREAK.findall(cell)) for cell in cells[:at])
    message = "a double quote that is opened here is never closed" if is_open else reason
    last = line + len(lines) - 1
    if not is_open and last > opened:
        message = (
            f"a text in double quotes begins here, and in line {last} a double quote ends it in mid-text ({reason})"
        )
    return f"{path}, row {number}, line {opened}: {message}. {_QUOTING}"


def _loosely_quoted(cells: Sequence[str], text: str) -> list[int]:
    """Places of cells with a blank before their double quote, which therefore belongs to the text."""
    places: list[int] = []
    if not _LOOSE_QUOTE.search(text):  # the usual case; the pattern may also match inside a text
        return places
    at = 0
    for place, cell in enumerate(cells):
        is_quoted = text.startswith('"', at)
        if not is_quoted and cell.lstrip().startswith('"'):
            places.append(place)
        at += len(cell) + 1 + (cell.count('"') + 2 if is_quoted else 0)
    return places


def _shape(name: str) -> str:
    """What names of pictures in one file have in common: the suffix, or else all but the numbers."""
    _, dot, suffix = name.strip().rpartition(".")
    return suffix.lower() if dot and suffix.isalnum() else re.sub(r"\d+", "0", name.strip())


def plain_name(name: str) -> str:
    """A name of a column as ``Column.names`` has it: in lower case, with ``_`` for blanks and hyphens."""
    return re.sub(r"[\s_-]+", "_", name.lower())


def _example(columns: Mapping[str, Column]) -> str:
    return ",".join(column.names[0] for column in columns.values() if column.is_needed)
