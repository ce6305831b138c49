"""The splits of a data set: the check of their config section, and their opening."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from panollava.assemble.decoded import Decoded
from panollava.component import find_component
from panollava.config.check import check_section
from panollava.data.files import FilesSource
from panollava.data.records import Source
from panollava.logs import LOG

SPLITS = ("train", "val", "test")
GIVEN = ("split", "dir", "reader", "check", "name")
"""Arguments of a source that are no keys of ``data``, or keys that every data set has."""


class PictureReader(Protocol):
    """What opens pictures."""

    def read(self, path: Path) -> np.ndarray:
        """A picture, (H, W, 3) uint8 RGB."""
        ...

    def check(self, path: str) -> object:
        """Refuses a file that could not be read, without decoding it."""
        ...


def check_data(section: Mapping[str, Any]) -> list[str]:
    """Problems of a ``data`` section."""
    data = dict(section)
    name = data.pop("name", None)
    kind = data.pop("type", None)
    data.pop("dir", None)
    problems = [] if isinstance(name, str) and name else [f"data.name={name!r}: allowed is a short text."]
    try:
        source = find_component("data", str(kind), "Source")
    except ValueError as error:
        return [*problems, str(error)]
    for split in SPLITS:
        found = check_section(source_arguments(data, split), source, "data", given=GIVEN)
        for line in found:
            problems.append(line.replace("data.", f"data.{split}_", 1) if _is_split_key(line, data, split) else line)
    return list(dict.fromkeys(problems))


def _is_split_key(line: str, data: dict[str, Any], split: str) -> bool:
    name = line.removeprefix("data.").split("=")[0].split(" ")[0]
    return f"{split}_{name}" in data or (name not in data and any(f"{s}_{name}" in data for s in SPLITS))


def open_splits(data: dict[str, Any], names: Sequence[str], pictures: PictureReader) -> dict[str, Source]:
    """Several splits of a data set, by name.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: something is wrong with the files; all of it is told at once.
    """
    sources: dict[str, Source] = {}
    errors: dict[str, Exception] = {}
    for name in names:
        try:
            sources[name] = open_source(data, name, pictures)
        except (ValueError, OSError) as error:  # raised below, together with those of the other splits
            errors.setdefault(str(error), error)
    if len(errors) > 1:
        raise ValueError("the data files have problems:\n" + "\n".join(errors))
    for only in errors.values():
        raise only
    return sources


def open_source(data: dict[str, Any], split: str, pictures: PictureReader) -> Source:
    """One split of a data set; what is left out of it is logged.

    Args:
        data: the ``data`` section.
        split: ``train``, ``val`` or ``test``.
        pictures: reads and checks them, such as a ``Crop``, which decodes no finer than its views need.
    """
    source = build_source(data, split, pictures)
    if isinstance(source, FilesSource) and source.problems:
        LOG.warning("%s", source.left_out())
    return source


def build_source(data: dict[str, Any], split: str, pictures: PictureReader) -> Source:
    """One split of a data set, as `open_source` gives it; pictures that were found to be damaged are refused."""
    component = find_component("data", data["type"], "Source")
    known = inspect.signature(component).parameters
    options = {k: v for k, v in source_arguments(data, split).items() if k not in ("type", "name", "dir")}
    given = {
        "split": split,
        "reader": pictures.read,
        "check": Decoded().checked(pictures.check),
        "name": f"{data['name']}-{split}",
        "dir": data.get("dir"),
    }
    source: Source = component(**options, **{key: value for key, value in given.items() if key in known})
    return source


def source_arguments(data: dict[str, Any], split: str) -> dict[str, Any]:
    """Arguments of a split's source: ``train_scenes`` is ``scenes`` of the training split, other keys are common."""
    arguments: dict[str, Any] = {}
    for key, value in data.items():
        prefix, _, rest = key.partition("_")
        if prefix not in SPLITS:
            arguments[key] = value
        elif prefix == split:
            arguments["path" if rest in ("csv", "json") else rest] = value
    return arguments
