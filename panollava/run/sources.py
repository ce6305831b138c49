"""The splits of a data set: checks the section ``data``, and opens them."""

import builtins
import inspect
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from panollava.component import find_component
from panollava.config.check import check_section
from panollava.config.command_line import NO_REMOTE
from panollava.config.outside import DATA_GIVEN
from panollava.crop.image_file import DECODERS, DIVISORS, decode_panorama
from panollava.crop.partial import Covered
from panollava.data.augment import AugmentOptions
from panollava.data.files import ListedSource, alike
from panollava.data.source import DataSource, PlacesSource
from panollava.disk import write_file
from panollava.logs import LOG, counted
from panollava.store.identity import file_state

MEMORY = Path("cache/decoded.json")
"""Below the working directory, like the other caches; it may be deleted."""


class Decoded:
    """Results of full decodes, by path, size, times and inode of the picture; other versions of decoders have none.

    Args:
        path: of the cache; a file that cannot be read, or is of another version, counts as empty.
    """

    def __init__(self, path: Path = MEMORY) -> None:
        self._path = path
        self._verdicts: dict[str, list[Any]] = _read(path)

    def verdict(self, picture: str) -> str | None:
        """What is wrong with a picture's data, empty if nothing; None if that is not known."""
        known = self._verdicts.get(os.path.abspath(picture))
        if known is None or known[:-1] != _identity(picture):
            return None
        return str(known[-1])

    def learn(self, picture: str, identity: list[int], reason: str) -> None:
        """Adds a result of ``examined``."""
        self._verdicts[os.path.abspath(picture)] = [*identity, reason]

    def save(self) -> None:
        """Writes all results, with those that another process has written in the meantime."""
        document = {"decoders": DECODERS, "pictures": _read(self._path) | self._verdicts}
        write_file(self._path, json.dumps(document, ensure_ascii=False))

    def checked(self, check: Callable[[str], object]) -> Callable[[str], object]:
        """A check of pictures that also refuses those known to be damaged."""
        return partial(_check, self, check) if self._verdicts else check


def examined(picture: str, covered: Covered | None = None) -> tuple[str, list[int], str]:
    """Decodes a picture at the smallest scale, which reads all of its data.

    Returns:
        The picture, the identity of its file, and what is wrong with its data, empty if nothing.
    """
    identity = _identity(picture)
    try:
        decode_panorama(picture, covered, lambda _: DIVISORS[0])
    except (OSError, ValueError) as error:  # collected, so that all damaged pictures are named at once
        return picture, identity, str(error)
    return picture, identity, ""


def _check(decoded: Decoded, check: Callable[[str], object], picture: str) -> object:
    checked = check(picture)
    if reason := decoded.verdict(picture):
        raise ValueError(reason)
    return checked


def _identity(picture: str) -> list[int]:
    try:
        return file_state(picture)
    except OSError:
        return []


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        document = json.loads(path.read_text("utf-8"))
        pictures = document["pictures"] if document["decoders"] == DECODERS else {}
        return {name: known for name, known in pictures.items() if isinstance(known, list) and len(known) == 5}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a cache, which can be made again
        return {}


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Keys of ``data`` for training batches."""

    shared_prefix: bool = False  # records about one panorama are neighbours, and share what is computed of it


SPLITS = ("train", "val", "test")
FILE_KINDS = ("csv", "json", "boxes")
"""Ends of the keys that name the file of a split, such as ``train_csv``."""
OF_TRAINING = (AugmentOptions, BatchOptions)
"""Keys of ``data`` that are not about the records."""


class PictureReader(Protocol):
    """Opens pictures, such as a ``Crop``, which decodes no finer than its views need."""

    def read(self, path: Path) -> np.ndarray:
        """A picture, (H, W, 3) uint8 RGB."""
        ...

    def check(self, path: str) -> object:
        """Refuses a file that could not be read, without decoding it."""
        ...


def source_class(type: str) -> builtins.type[DataSource]:
    """The class of a ``data`` section's ``type``."""
    return find_component("data", type, "Source", DataSource)


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
        source = source_class(str(kind))
    except ValueError as error:
        return [*problems, str(error)]
    known = inspect.signature(source).parameters
    if old := [key for key in data if key.startswith("remote") and key not in known]:
        problems.append(f"data.{', data.'.join(old)}: not a key any more. {NO_REMOTE}.")
    for options in OF_TRAINING:
        part = part_of(data, options)
        problems += check_section(part, options, "data")
        data = {key: value for key, value in data.items() if key not in part}
    data = {key: value for key, value in data.items() if key not in old}
    for split in SPLITS:
        found = check_section(source_arguments(data, split), source, "data", given=DATA_GIVEN)
        for line in found:
            line = line.replace("data.path", f"data.{file_key(data, split)}", 1)
            problems.append(line.replace("data.", f"data.{split}_", 1) if _is_split_key(line, data, split) else line)
    return list(dict.fromkeys(problems))


def file_key(data: dict[str, Any], split: str) -> str:
    """Which key names the file of a split."""
    return next((key for kind in FILE_KINDS if (key := f"{split}_{kind}") in data), f"{split}_csv")


def _is_split_key(line: str, data: dict[str, Any], split: str) -> bool:
    name = line.removeprefix("data.").split("=")[0].split(" ")[0]
    is_file = name in FILE_KINDS  # a key of all splits may have the name of such a kind
    return (f"{split}_{name}" in data and not is_file) or (
        name not in data and any(f"{s}_{name}" in data for s in SPLITS)
    )


def open_splits(data: dict[str, Any], names: Sequence[str], pictures: PictureReader) -> dict[str, DataSource]:
    """Several splits of a data set, by name; which of them share pictures is logged.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: something is wrong with the files; the message lists all of it.
    """
    sources: dict[str, DataSource] = {}
    errors: dict[str, Exception] = {}
    for name in names:
        try:
            sources[name] = open_source(data if name == "test" else unscored(data), name, pictures)
        except (ValueError, OSError) as error:  # raised below, together with those of the other splits
            errors.setdefault(str(error), error)
    if len(errors) > 1:
        raise ValueError("the data files have problems:\n" + "\n".join(errors))
    for only in errors.values():
        raise only
    if line := differing_classes(sources):
        raise ValueError(line)
    for line in shared_pictures(sources):
        LOG.warning("Data %s: %s.", data["name"], line)
    return sources


def unscored(data: dict[str, Any]) -> dict[str, Any]:
    """The ``data`` section for a split that is not scored, whose file needs no columns of groups."""
    return {key: value for key, value in data.items() if key != "score_by"}


def differing_classes(sources: Mapping[str, DataSource]) -> str:
    """Which splits have other classes of boxes, or another order of them, in words; empty if none has."""
    names = {split: source.class_names for split, source in sources.items() if isinstance(source, PlacesSource)}
    for split, found in names.items():
        first = next(iter(names))
        if found != names[first]:
            return (
                f"the classes of {split} ({', '.join(found)}) are not those of {first} ({', '.join(names[first])}), or "
                "in another order. State the classes and their order with data.classes."
            )
    return ""


def without_boxes(source: DataSource, max_samples: int | None = None) -> str:
    """Why detections in a split cannot be scored: its (first) pictures have no boxes. Empty where one has some."""
    assert isinstance(source, PlacesSource)
    count = min(len(source), max_samples or len(source))
    if any(len(source.boxes(index).boxes) for index in range(count)):
        return ""
    of_all = f"the first {count} of {len(source)} pictures (max_samples={max_samples})"
    which = of_all if count < len(source) else counted(count, "picture")
    marked = any(source.boxes(index).ignored is not None for index in range(count))
    but = " but for those marked iscrowd or difficult, which do not count" if marked else ""
    return (
        f"{source.name} ({getattr(source, 'path', 'drawn')}): {which} without a single box{but}, so that stage detect "
        "can neither learn nor be scored there. Give pictures with boxes."
    )


def shared_pictures(sources: Mapping[str, DataSource]) -> list[str]:
    """A line for each pair of splits with common pictures, whose scores would measure memorization.

    A file under several paths, and copies of it, are one picture.
    """
    of_files = [source.identities for source in sources.values() if isinstance(source, ListedSource)]
    files = {identity: path for its in of_files for path, identity in its.items()}
    sizes = Counter(identity[2] for identity in files)
    known = {identity: alike(path) if sizes[identity[2]] > 1 else str(identity) for identity, path in files.items()}
    seen: dict[str, dict[str, str]] = {}
    for name, source in sources.items():
        if isinstance(source, ListedSource):
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


def open_source(data: dict[str, Any], split: str, pictures: PictureReader) -> DataSource:
    """Opens one split of a data set, ``train``, ``val`` or ``test``, and logs which entries are left out."""
    source = build_source(data, split, pictures)
    if isinstance(source, ListedSource) and source.problems:
        LOG.warning("%s", source.left_out())
    return source


def build_source(data: dict[str, Any], split: str, pictures: PictureReader) -> DataSource:
    """See ``open_source``, without the log; pictures that a full decode found damaged are bad entries."""
    component = source_class(data["type"])
    known = inspect.signature(component).parameters
    covered = getattr(pictures, "panorama_fov_deg", None)
    if covered is not None and "reader" not in known:
        raise ValueError(
            f"crop.panorama_fov_deg={list(covered)} is for pictures in files, and those of data={data['name']} are "
            "drawn whole. Leave it out."
        )
    others = ("type", "name", "dir", *(key for options in OF_TRAINING for key in part_of(data, options)))
    options = {k: v for k, v in source_arguments(data, split).items() if k not in others}
    given = {
        "split": split,
        "reader": pictures.read,
        "check": Decoded().checked(pictures.check),
        "name": f"{data['name']}-{split}",
        "dir": data.get("dir"),
    }
    source: DataSource = component(**options, **{key: value for key, value in given.items() if key in known})
    return source


def source_arguments(data: dict[str, Any], split: str) -> dict[str, Any]:
    """Arguments of a split's source: ``train_scenes`` is ``scenes`` of the training split, other keys are common."""
    arguments: dict[str, Any] = {}
    for key, value in data.items():
        prefix, _, rest = key.partition("_")
        if prefix not in SPLITS:
            arguments[key] = value
        elif prefix == split:
            arguments["path" if rest in FILE_KINDS else rest] = value
    return arguments
