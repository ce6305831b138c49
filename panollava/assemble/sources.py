"""The splits of a data set: the check of their config section, and their opening."""

from __future__ import annotations

import inspect
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil

from panollava.assemble.decoded import Decoded
from panollava.component import find_component
from panollava.config.check import check_section
from panollava.data.augment import AugmentOptions
from panollava.data.files import FilesSource
from panollava.data.pictures import alike
from panollava.data.records import Source
from panollava.data.remote.fetch import Fetcher
from panollava.data.remote.rules import RemoteOptions, check_hosts
from panollava.logs import LOG, counted

SPLITS = ("train", "val", "test")
GIVEN = ("split", "dir", "reader", "check", "fetcher", "name")
"""Arguments of a source that are no keys of ``data``, or keys that every data set has."""


class PictureReader(Protocol):
    """What opens pictures."""

    def read(self, path: Path) -> np.ndarray:
        """A picture, (H, W, 3) uint8 RGB."""
        ...

    def check(self, path: str) -> object:
        """Refuses a file that could not be read, without decoding it."""
        ...


def part_of(section: Mapping[str, Any], options: type) -> dict[str, Any]:
    """The keys of a section that a dataclass of options has."""
    names = {each.name for each in fields(options)}
    return {key: value for key, value in section.items() if key in names}


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
    parts: list[type] = [AugmentOptions]
    if "fetcher" in inspect.signature(source).parameters:
        parts.append(RemoteOptions)
        problems += check_hosts(data.get("remote", False))
    for options in parts:
        part = part_of(data, options)
        problems += check_section(part, options, "data")
        data = {key: value for key, value in data.items() if key not in part}
    for split in SPLITS:
        found = check_section(source_arguments(data, split), source, "data", given=GIVEN)
        for line in found:
            line = line.replace("data.path", f"data.{_file_key(data, split)}", 1)
            problems.append(line.replace("data.", f"data.{split}_", 1) if _is_split_key(line, data, split) else line)
    return list(dict.fromkeys(problems))


def _file_key(data: dict[str, Any], split: str) -> str:
    """Which key names the file of a split."""
    return next((key for key in (f"{split}_csv", f"{split}_json") if key in data), f"{split}_csv")


def _is_split_key(line: str, data: dict[str, Any], split: str) -> bool:
    name = line.removeprefix("data.").split("=")[0].split(" ")[0]
    return f"{split}_{name}" in data or (name not in data and any(f"{s}_{name}" in data for s in SPLITS))


def open_splits(data: dict[str, Any], names: Sequence[str], pictures: PictureReader) -> dict[str, Source]:
    """Several splits of a data set, by name; which of them share pictures is logged.

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
    for line in shared_pictures(sources):
        LOG.warning("Data %s: %s.", data["name"], line)
    return sources


def shared_pictures(sources: Mapping[str, Source]) -> list[str]:
    """A line for each pair of splits that have pictures in common: what is learnt by heart would be scored.

    A file is one picture however its path is spelled, and so are copies of it.
    """
    of_files = [source.identities for source in sources.values() if isinstance(source, FilesSource)]
    files = {identity: path for its in of_files for path, identity in its.items()}
    sizes = Counter(identity[2] for identity in files)
    known = {identity: alike(path) if sizes[identity[2]] > 1 else str(identity) for identity, path in files.items()}
    seen: dict[str, dict[str, str]] = {}
    for name, source in sources.items():
        if isinstance(source, FilesSource):
            seen[name] = {known[identity]: path for path, identity in source.identities.items()}
        else:
            seen[name] = {image: image for image in map(source.image_id, range(len(source)))}
    lines = []
    for first, second in combinations(seen, 2):
        if common := sorted((path, seen[second][key]) for key, path in seen[first].items() if key in seen[second]):
            path, other = common[0]
            also = "" if os.path.abspath(path) == os.path.abspath(other) else f", which {second} calls {other}"
            lines.append(f"{first} and {second} share {counted(len(common), 'picture')}, such as {path}{also}")
    return lines


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
    covered = getattr(pictures, "panorama_fov_deg", None)
    if covered is not None and "reader" not in known:
        raise ValueError(
            f"crop.panorama_fov_deg={list(covered)} is for pictures in files, and those of data={data['name']} are "
            "drawn whole. Leave it out."
        )
    remote = part_of(data, RemoteOptions)
    others = ("type", "name", "dir", *part_of(data, AugmentOptions), *remote)
    options = {k: v for k, v in source_arguments(data, split).items() if k not in others}
    given = {
        "split": split,
        "reader": pictures.read,
        "check": Decoded().checked(pictures.check),
        "name": f"{data['name']}-{split}",
        "dir": data.get("dir"),
        "fetcher": Fetcher(RemoteOptions(**remote), ask_dead=_ask_dead(data, remote)),
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


def _ask_dead(data: dict[str, Any], remote: dict[str, Any]) -> float:
    """Before which time a link must have been dead to be asked for again, seconds since 1970.

    Where bad entries are left out, what was dead stays so: a run that goes on must find the entries that it began
    with, and the processes of one the same; those are started within a minute.
    """
    if data.get("on_error", "stop") == "stop":
        return time.time()
    return psutil.Process().create_time() - 60.0 if remote.get("remote_retry_dead") else 0.0
