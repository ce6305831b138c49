"""Files that sets are shipped in: JSON Lines, tables, and names of pictures."""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from panollava.data.csv import is_address
from panollava.disk import utf8_text


def chosen_file(path: Path, patterns: Sequence[str], key: str) -> Path:
    """The file itself, or the only file of a folder that fits the first pattern with any; ``key`` is for messages.

    Raises:
        FileNotFoundError: none fits.
        ValueError: several do.
    """
    if path.is_file():
        return path
    for pattern in patterns:
        found = sorted(one for one in path.glob(pattern) if one.is_file())
        if len(found) > 1:
            names = ", ".join(one.name for one in found[:4])
            raise ValueError(f"{key}={path}: it could be {names}. Name one of the files with benchmark_files=.")
        if found:
            return found[0]
    raise FileNotFoundError(
        f"{key}={path}: the folder has no {' or '.join(patterns)}. Name the set's file with benchmark_files=."
    )


def read_objects(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a JSON or JSON Lines file, each with its place in words. Raises ValueError where it has others."""
    text = utf8_text(path)
    if path.suffix.lower() == ".json":
        document = _parsed(path, "", text)
        entries = document if isinstance(document, list) else [document]
        rows = [(f"entry {number}", one) for number, one in enumerate(entries, start=1)]
    else:
        lines = enumerate(text.split("\n"), start=1)  # JSON may have other line breaks within texts
        rows = [(f"line {number}", _parsed(path, f", line {number}", line)) for number, line in lines if line.strip()]
    for place, one in rows:
        if not isinstance(one, dict):
            raise ValueError(f"{path}, {place}: {str(one)[:60]!r} is no JSON object. Give an object for each item.")
    return rows


def _parsed(path: Path, place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}{place}: this is no JSON ({error}). Fetch or copy the file again.") from None


def field(path: Path, place: str, row: dict[str, Any], key: str, kind: type | tuple[type, ...] = str) -> Any:
    """The value of a key; ValueError with its place where it is missing or of another type."""
    value = row.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(_TYPES[one] for one in kinds)
        shown = "is missing" if key not in row else f"is {str(value)[:60]!r}"
        raise ValueError(f"{path}, {place}, key {key}: it {shown}. Allowed is {wanted}; mend the entry.")
    return value


_TYPES = {str: "a text", list: "a list", dict: "an object", int: "a whole number", float: "a number"}


def picture_file(folder: Path, name: str) -> Path:
    """The file of a picture; an address is the file of its last part, as a download keeps it.

    Raises ValueError for a name that leads out of the folder.
    """
    if is_address(name):
        name = PurePosixPath(unquote(urlsplit(name).path)).name
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(
            f"{name!r} names no picture inside {folder}. Name the folder of the pictures with images=<folder>; their "
            "names start from it."
        )
    return folder / name
