"""Conversation files: JSON, a list of entries, and JSON Lines, one entry per line; in two forms, which may be mixed.

The plain form, in which ``image_id`` and ``metadata`` are optional; scores are reported by ``metadata.type``, the
question type, and ``metadata.names_directions`` states how the texts name directions::

    {"image_id": 7, "image_path": "a.jpg", "metadata": {"type": "colour"},
     "conversations": [{"human": "…", "assistant": "…"}, …]}

LLaVA's form; the placeholder ``<image>`` is removed from questions of both forms::

    {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt", "value": "…"}]}
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from panollava.data.csv import (
    DIRECTIONS_KEY,
    NOT_DIRECTIONS,
    SCORE_BY,
    Entry,
    Listing,
    Problem,
    drop_placeholders,
    found_file,
    no_column,
    said_directions,
    spelling,
    too_many_pictures,
    wrong_text,
)
from panollava.data.source import FREE_TEXT, Directions
from panollava.disk import not_utf8, utf8_text

IMAGE_KEYS = ("image_path", "image", "url")
"""Accepted names of the picture's key."""
HUMAN, ASSISTANT = ("human", "user"), ("gpt", "assistant")
"""Accepted names of the speakers in LLaVA's form."""
_PLAIN = ("human", "assistant")

_SPACE = re.compile(r"\s*")
_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}

_Bad = list[tuple[str, str]]
"""Keys that cannot be used, and why."""


def read_jsonl(path: Path, score_by: Sequence[str] = ()) -> Listing:
    """The lines of a JSON Lines file; a line that is not JSON is a problem of the listing.

    Args:
        path: the file.
        score_by: keys of the metadata by which scores are reported.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8 text, there are no lines, or no entry has a key of `score_by`.
    """
    listing = _Collector("line", score_by)
    try:
        with found_file(path).open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    value = _DECODER.decode(line.rstrip())
                except (ValueError, RecursionError) as error:  # collected, so that all bad lines are named at once
                    listing.refuse(number, f"line {number}", [("", f"no JSON: {_said(error)}")])
                else:
                    listing.add(number, f"line {number}", value)
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    return listing.finished(path)


def read_json(path: Path, score_by: Sequence[str] = ()) -> Listing:
    """As ``read_jsonl``, the entries of a JSON list; a file that is no JSON or no list is a ValueError too."""
    listing = _Collector("entry", score_by)
    for number, (line, value) in enumerate(_items(path, utf8_text(found_file(path))), start=1):
        listing.add(number, f"entry {number} (line {line})", value)
    return listing.finished(path)


def with_pictures(path: Path, file_of: Callable[[str], str | None]) -> str:
    """The text of a conversation file with new names of its pictures; None leaves their entries out."""
    text = path.read_text("utf-8-sig")
    if path.suffix.lower() == ".json":
        values = [_with_picture(value, file_of) for _, value in _items(path, text)]
        return "[\n" + ",\n".join(_encoded(value) for value in values if value is not None) + "\n]\n"
    lines = []
    for line in text.split("\n"):
        try:
            value = _with_picture(_DECODER.decode(line.rstrip()), file_of)
        except (ValueError, RecursionError):  # a bad line stays as it is
            lines.append(line)
        else:
            lines += [] if value is None else [_encoded(value)]
    return "\n".join(lines)


def _with_picture(value: Any, file_of: Callable[[str], str | None]) -> Any:
    if not isinstance(value, dict):
        return value
    named = {key: text for key, text in value.items() if key.strip().lower() in IMAGE_KEYS and isinstance(text, str)}
    files = {key: file_of(text.strip()) for key, text in named.items()}
    return None if None in files.values() else value | files


def _encoded(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if wrong_text(text) else text


class _Collector:
    """Collects the entries and problems of a listing."""

    def __init__(self, unit: Literal["line", "entry"], score_by: Sequence[str]) -> None:
        self._unit = unit
        self._score_by = score_by
        self._metadata: dict[str, None] = {}  # keys, in the order of the file
        self._count = 0
        self._entries: list[Entry] = []
        self._problems: list[Problem] = []
        self._images: dict[Any, tuple[str, str]] = {}

    def add(self, number: int, place: str, value: Any) -> None:
        """Adds an entry, or its problems."""
        bad: _Bad = []
        if not isinstance(value, dict):
            hint = "; a file that is one list is JSON, and its name ends in .json" if isinstance(value, list) else ""
            bad.append(("", f"an object with a picture and conversations is expected, not {_kind_of(value)}{hint}"))
            self.refuse(number, place, bad)
            return
        image_key, image = _image(value, bad)
        turns = _turns(value, bad)
        question_type, directions = _metadata(value, bad)
        groups = tuple((name, _group(value, name, bad)) for name in self._score_by)
        if not bad:
            self._check_id(value.get("image_id"), image, place, bad)
        if bad:
            self.refuse(number, place, bad)
            return
        self._count += 1
        self._metadata.update(dict.fromkeys(value.get("metadata") or ()))
        entry = Entry(number, place, image, f"key {image_key}", turns, question_type, directions, groups)
        self._entries.append(entry)

    def refuse(self, number: int, place: str, bad: _Bad) -> None:
        """Adds the problems of an entry."""
        self._count += 1
        self._problems += [Problem(number, f"{place}, key {key}" if key else place, reason) for key, reason in bad]

    def finished(self, path: Path) -> Listing:
        """The listing."""
        if self._count == 0:
            raise ValueError(f"{path}: there are no conversations in it.")
        keys = list(self._metadata)
        if self._entries and (unknown := [name for name in self._score_by if name not in keys]):
            raise no_column(path, SCORE_BY, unknown[0], "keys of the metadata", keys)
        unused = tuple(key for key in keys if key not in ("type", DIRECTIONS_KEY, *self._score_by))
        return Listing(self._unit, self._count, self._entries, self._problems, unused)

    def _check_id(self, image_id: Any, image: str, place: str, bad: _Bad) -> None:
        """Checks that an ``image_id`` names one picture; several entries may have it."""
        if image_id is None:
            return
        if isinstance(image_id, bool) or not isinstance(image_id, str | int):
            bad.append(("image_id", f"a text or a whole number is expected, not {_kind_of(image_id)}"))
            return
        known, where = self._images.setdefault(image_id, (image, place))
        if spelling(known) != spelling(image):
            bad.append(("image_id", f"{image_id} is {image} here and {known} in {where}"))


def _items(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Entries of a list with the lines on which they begin; ``json`` alone would not give the lines."""
    at = _after_space(text, 0)
    if at == len(text):
        raise ValueError(f"{path}: the file is empty. It needs a list of conversations, [{{…}}, {{…}}].")
    if text[at] != "[":
        raise ValueError(
            f"{path}: a list of conversations is expected, [{{…}}, {{…}}]. If each line is a conversation of its own, "
            "this is JSON Lines: give the file a name that ends in .jsonl."
        )
    line, counted = 1, 0
    at = _after_space(text, at + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _malformed(path, text, error.pos, error.msg) from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {line}: {_said(error)}.") from None
        yield line, value
        at = _after_space(text, at)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        elif text[at : at + 1] != "]":
            raise _malformed(path, text, at, "a comma is missing before the next entry")
    end = _after_space(text, at + 1)
    if end != len(text):
        raise _malformed(path, text, end, "something follows the end of the list")


def _malformed(path: Path, text: str, at: int, message: str) -> ValueError:
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    if not text[at:].strip():
        message = "the file ends within the list: it is cut short, or its last bracket is missing"
    return ValueError(f"{path}, line {line}, column {column}: {message}. This is no JSON; mend the file.")


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()


def _said(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "brackets are nested too deep"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object, and only one value can be read")
    return result


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _image(value: dict[str, Any], bad: _Bad) -> tuple[str, str]:
    """Key and name of the picture."""
    keys = [key for name in IMAGE_KEYS for key in value if key.strip().lower() == name]
    if not keys:
        bad.append((IMAGE_KEYS[0], f"missing; it names the picture, as do {' and '.join(IMAGE_KEYS[1:])}"))
        return "", ""
    if len({spelling(str(value[key])) for key in keys}) > 1:
        bad.append((keys[0], f"names another picture than {keys[1]}: leave one of them out"))
    return keys[0], _text(value[keys[0]], keys[0], bad)


def _turns(value: dict[str, Any], bad: _Bad) -> tuple[tuple[str, str], ...]:
    if "conversations" not in value:
        bad.append(("conversations", "missing; it lists what is said"))
        return ()
    said = value["conversations"]
    if not isinstance(said, list):
        bad.append(("conversations", f"a list is expected, not {_kind_of(said)}"))
        return ()
    if not said:
        bad.append(("conversations", "empty; there is nothing to learn or to ask"))
        return ()
    for place, turn in enumerate(said):
        if not isinstance(turn, dict):
            bad.append((f"conversations[{place}]", f"an object is expected, not {_kind_of(turn)}"))
            return ()
    spoken = _llava_texts(said, bad) if "from" in said[0] or "value" in said[0] else _plain_texts(said, bad)
    texts: list[str] = []
    pictures = 0
    for place, (key, text) in enumerate(spoken):
        if place % 2 == 0 and isinstance(text, str):
            text, count = drop_placeholders(text)
            pictures += count
        texts.append(_text(text, key, bad))
    if pictures > 1:
        bad.append(("conversations", too_many_pictures(pictures)))
    return tuple(zip(texts[::2], texts[1::2], strict=False))


def _plain_texts(said: list[dict[str, Any]], bad: _Bad) -> list[tuple[str, Any]]:
    """Questions and answers in turn, with their keys."""
    texts = {f"conversations[{at}].{who}": (who, turn) for at, turn in enumerate(said) for who in _PLAIN}
    for key, (who, turn) in texts.items():
        if who not in turn:
            bad.append((key, f"missing; there are {', '.join(turn) or 'no keys'}"))
    return [(key, turn[who]) for key, (who, turn) in texts.items() if who in turn]


def _llava_texts(said: list[dict[str, Any]], bad: _Bad) -> list[tuple[str, Any]]:
    """Questions and answers in turn, with their keys."""
    for place, turn in enumerate(said):
        expected = ASSISTANT if place % 2 else HUMAN
        speaker = turn.get("from")
        if speaker not in expected:
            key = f"conversations[{place}].from"
            if speaker == "system":
                bad.append((key, "a system text is not read from data: give it with model.language.system"))
            else:
                bad.append((key, f"{speaker!r} where {' or '.join(expected)} is expected: they take turns"))
            return []
    if len(said) % 2:
        bad.append(("conversations", "ends with a question: its answer is missing"))
    return [(f"conversations[{place}].value", turn.get("value")) for place, turn in enumerate(said)]


def _text(value: Any, key: str, bad: _Bad) -> str:
    if not isinstance(value, str):
        bad.append((key, f"a text is expected, not {_kind_of(value)}"))
        return ""
    text = value.strip()
    if reason := wrong_text(text) if text else "the text is empty":
        bad.append((key, reason))
    return text


def _metadata(value: dict[str, Any], bad: _Bad) -> tuple[str, Directions]:
    """Question type, and how the texts name directions."""
    metadata = value.get("metadata")
    if metadata is None:
        return FREE_TEXT, "unknown"
    if not isinstance(metadata, dict):
        bad.append(("metadata", f"an object is expected, not {_kind_of(metadata)}"))
        return FREE_TEXT, "unknown"
    said = metadata.get(DIRECTIONS_KEY, "")
    directions = said_directions(said) if isinstance(said, str) else None
    if directions is None:
        bad.append((f"metadata.{DIRECTIONS_KEY}", f"{said!r} {NOT_DIRECTIONS}"))
    return _text(metadata.get("type", FREE_TEXT), "metadata.type", bad), directions or "unknown"


def _group(value: dict[str, Any], name: str, bad: _Bad) -> str:
    """The text of a key of the metadata by which scores are reported; empty where an entry lacks it."""
    found = (value["metadata"] if isinstance(value.get("metadata"), dict) else {}).get(name)
    if isinstance(found, dict | list):
        bad.append((f"metadata.{name}", f"a text or a number is expected by {SCORE_BY}, not {_kind_of(found)}"))
        return ""
    if isinstance(found, bool):
        return str(found).lower()
    return "" if found is None else str(found).strip()


def _kind_of(value: Any) -> str:
    return _KINDS.get(type(value), "a number")
