"""How long the texts of a data set are in a language model's tokens, what each stage's limit cuts, and odd ones."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from panollava.crop.gpano import has_gpano_tags
from panollava.crop.image_file import PanoramaFile, check_panorama
from panollava.crop.partial import Covered
from panollava.data.csv import BadEntries, Problem, bad_numbers
from panollava.data.dataset import TextEncoder, control_texts
from panollava.data.files import FilesSource
from panollava.data.source import DataSource
from panollava.logs import LOG, counted
from panollava.model.hub import load_tokenizer
from panollava.prompt import ChatPrompt
from panollava.run.sources import Decoded, build_source, examined
from panollava.stages.registry import STAGES


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
    source: DataSource | None = None
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
            "with GPano tags": sum(has_gpano_tags(panorama.header.xmp) for panorama in found),
            "placed by them in a part of the sphere": sum(bool(each.part and each.part.from_tags) for each in found),
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

    def check(self, path: str) -> PanoramaFile:
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


_TRIED = 16
"""Pictures, from all over the data set, by which the time for all is forecast."""
_SAVED_EVERY_S = 30.0

_Found = tuple[str, list[int], str]


def decode_all(pictures: Sequence[str], covered: Covered | None, num_workers: int) -> list[str]:
    """Decodes pictures in full; every opening of a data set in this folder knows from then on which are damaged.

    Args:
        pictures: paths of files whose headers are right.
        covered: degrees that they cover; None for the whole sphere.
        num_workers: threads that decode.

    Returns:
        The damaged ones.
    """
    decoded = Decoded()
    found = {picture: decoded.verdict(picture) for picture in dict.fromkeys(pictures)}
    sizes = {picture: _size(picture) for picture, verdict in found.items() if verdict is None}
    known = len(found) - len(sizes)
    LOG.info(
        "Full decode: %d pictures to do (%.1f MB), %d known from before.", len(sizes), sum(sizes.values()) / 1e6, known
    )
    saved = time.monotonic()
    try:
        for picture, identity, reason in _examined(sizes, covered, num_workers):
            decoded.learn(picture, identity, reason)
            found[picture] = reason
            if time.monotonic() - saved > _SAVED_EVERY_S:
                decoded.save()
                saved = time.monotonic()
    finally:  # it may have taken hours
        if sizes:
            decoded.save()
    return [picture for picture, reason in found.items() if reason]


def _examined(sizes: dict[str, int], covered: Covered | None, num_workers: int) -> Iterator[_Found]:
    """Verdicts in any order: of a few pictures first, by which the time for the others is told."""
    if not sizes:
        return
    pictures = list(sizes)
    first = pictures[:: -(-len(pictures) // _TRIED)]
    rest = [picture for picture in pictures if picture not in set(first)]
    look = partial(examined, covered=covered)
    with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, desc="decoding", delay=1.0) as bar:
        start = time.perf_counter()
        for found in map(look, first):
            bar.update(sizes[found[0]])
            yield found
        elapsed = time.perf_counter() - start
        left = sum(sizes[picture] for picture in rest)
        if left:
            seconds = elapsed * left / max(1, sum(sizes[picture] for picture in first)) / max(1, num_workers)
            LOG.info("The other %d pictures take about %s.", len(rest), _spoken(seconds))
        with ThreadPoolExecutor(max(1, num_workers)) as pool:
            for found in pool.map(look, rest):
                bar.update(sizes[found[0]])
                yield found


def _size(picture: str) -> int:
    return os.path.getsize(picture) if os.path.isfile(picture) else 0


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


READING = tuple(record.name for record in STAGES.values() if record.targets)
"""Stages that read text."""


def text_lines(
    splits: Mapping[str, DataSource], language: Mapping[str, Any], stages: Mapping[str, Any], most: int | None
) -> list[str]:
    """What there is to say of the lengths, a line a split and a line a stage, and of control tokens in the texts.

    Args:
        splits: by name.
        language: the ``model.language`` section.
        stages: the ``stage`` section.
        most: records of each split to look at; None for all.

    Raises:
        FileNotFoundError: there is no such tokenizer.
        ValueError: a stage's limit is none.
    """
    limits = {name: _limit(name, stages[name]["max_text_length"]) for name in READING}
    # One token stands for the panorama, whose tokens the limits do not count.
    prompt = ChatPrompt(load_tokenizer(language["name"]), system=language["system"])
    encoder = TextEncoder(prompt, image_tokens=1)
    lengths = {name: _lengths(source, encoder, most) for name, source in splits.items()}
    lines = [_described(name, found, len(splits[name])) for name, found in lengths.items()]
    learnt = [found for name, found in lengths.items() if name != "test"]  # whose questions no limit cuts
    odd = [control_texts(source, prompt) for source in splits.values() if isinstance(source, FilesSource)]
    lines += [f"Note: {told}." for told in odd if told]
    if not learnt:
        return lines
    every = np.concatenate(learnt)
    for stage, limit in limits.items():
        cut = int((every > limit).sum())
        share = f"{cut:,} of {len(every):,} ({cut / len(every):.1%})" if cut else "none of them"
        lines.append(f"stage.{stage}.max_text_length={limit} cuts {share}")
    return lines


def _described(name: str, lengths: np.ndarray, records: int) -> str:
    middle, high, last = np.percentile(lengths, [50, 95, 100])
    part = "" if len(lengths) == records else f" of {len(lengths):,} spread evenly"
    return (
        f"{name}: {middle:,.0f} in the median, at most {high:,.0f} in 95 % of the records and {last:,.0f} in all{part}"
    )


def _lengths(source: DataSource, encoder: TextEncoder, most: int | None) -> np.ndarray:
    count = len(source) if most is None else min(most, len(source))
    places: Sequence[int] = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    return np.array([len(encoder.record(source.record(index, 0)).ids) - 1 for index in places])


def _limit(stage: str, limit: Any) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"stage.{stage}.max_text_length={limit!r}: allowed is a whole number from 1 on.")
    return limit
