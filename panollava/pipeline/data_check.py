"""Reads every split of a data set and tells what there is and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from panollava.assemble.sources import build_source
from panollava.crop.file import Panorama, check_panorama
from panollava.crop.gpano import names_tags
from panollava.crop.partial import Covered
from panollava.data.entries import BadEntries, Problem, bad_numbers
from panollava.data.files import FilesSource
from panollava.data.records import Source
from panollava.logs import counted


@dataclass
class Split:
    """One split as it was found.

    Attributes:
        name: ``train``, ``val`` or ``test``.
        source: its good entries; None where there are none.
        problems: a line each.
        bad: entries that cannot be used; 1 where it is the file itself.
    """

    name: str
    source: Source | None = None
    problems: list[str] = field(default_factory=list)
    bad: int = 0

    def line(self) -> str:
        """What there is, in words."""
        if self.source is None:
            return f"{self.name}: nothing that can be used"
        questions = self.source.questions()
        turns = sum(len(self.source.record(index, 0).turns) for index in range(len(self.source)))
        left_out = f", {self.bad:,} bad" if self.bad else ""
        pictures = counted(len(self.pictures()), "picture")
        references = sum(len(each.references) for each in questions)
        return (
            f"{self.name}: {counted(len(self.source), 'record')}{left_out}, {pictures}, "
            f"{counted(turns, 'turn')}; {counted(len(questions), 'question')} with {counted(references, 'reference')}"
            f"{self._tags()}"
        )

    def _tags(self) -> str:
        """What the GPano tags of the pictures say, in words; empty where there are none."""
        found = self.source.panoramas.values() if isinstance(self.source, FilesSource) else ()
        counts = {
            "with GPano tags": sum(names_tags(panorama.header.xmp) for panorama in found),
            "placed by them in a part of the sphere": sum(bool(each.part and each.part.is_said) for each in found),
            "tilted": sum(bool(panorama.tilt) for panorama in found),
        }
        return (
            f"; pictures {', '.join(f'{what}: {count:,}' for what, count in counts.items())}"
            if any(counts.values())
            else ""
        )

    def pictures(self) -> list[str]:
        """Every picture once."""
        source = self.source
        return [] if source is None else list(dict.fromkeys(source.image_id(index) for index in range(len(source))))

    @property
    def files(self) -> list[str]:
        """The pictures that are files; those of the built-in world are drawn."""
        return self.pictures() if isinstance(self.source, FilesSource) else []

    def add(self, path: Path, problems: Sequence[Problem]) -> None:
        """Takes the problems of a file's entries."""
        self.problems += [f"{path}, {problem}" for problem in problems]
        self.bad += len(bad_numbers(problems))


class Headers:
    """Looks at the headers of pictures, and opens none.

    Args:
        covered: degrees that the pictures cover; None for the whole sphere.
    """

    def __init__(self, covered: Covered | None) -> None:
        self.covered = covered

    def check(self, path: str) -> Panorama:
        """Refuses a file that could not be read."""
        return check_panorama(path, self.covered)

    def read(self, path: Path) -> np.ndarray:
        """Nobody asks a check for a picture."""
        raise NotImplementedError(path)


def look_at(data: dict[str, Any], name: str, covered: Covered | None) -> Split:
    """One split of a data set: its file, its entries and the headers of its pictures.

    Args:
        data: the ``data`` section, which is right.
        name: of the split.
        covered: degrees that the pictures cover; None for the whole sphere.
    """
    split = Split(name)
    options = {**data, "on_error": "skip"} if "on_error" in data else data
    try:
        split.source = build_source(options, name, Headers(covered))
    except BadEntries as error:  # collected, as are those below: finding them is what this is for
        split.add(error.path, error.problems)
    except (OSError, ValueError) as error:
        split.problems, split.bad = [str(error)], 1
    if isinstance(split.source, FilesSource):
        split.add(split.source.path, split.source.problems)
    return split
