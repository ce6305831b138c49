"""python -m panollava.check data=…: reads a whole data set, and reports what is in it and what is wrong with it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval, MinLen
from omegaconf import DictConfig
from tqdm import tqdm

from panollava.config.check import check_section
from panollava.config.entrypoint import entrypoint
from panollava.crop.gpano import has_gpano_tags
from panollava.crop.image_file import PanoramaFile, check_panorama
from panollava.crop.partial import Covered
from panollava.data.annotated import AnnotatedSource
from panollava.data.csv import BadEntries, Problem, bad_numbers
from panollava.data.files import ListedSource
from panollava.data.source import DataSource, PlacesSource, spread_indices
from panollava.logs import LOG, counted, say
from panollava.prompt import ChatPrompt
from panollava.run.sections import read_config
from panollava.run.sources import (
    Decoded,
    build_source,
    check_data,
    differing_classes,
    examined,
    shared_pictures,
    source_class,
    unscored,
    without_boxes,
)
from panollava.stages.registry import STAGES

_SAMPLE = 16
"""Pictures, from all over the data set, by which the time for all is estimated."""
_DRAWN = 6
"""Pictures that show whether boxes were read rightly."""
_SAVE_EVERY_S = 30.0


@dataclass(frozen=True)
class CheckOptions:
    """Plain keys of ``conf/check.yaml``; see there."""

    splits: Annotated[list[Literal["train", "val", "test"]], MinLen(1)]
    full: bool
    texts: Annotated[int, Interval(ge=0)] | None
    out: str | None
    num_workers: Annotated[int, Interval(ge=0)]
    allow: str | list[str]


@dataclass(frozen=True)
class PictureOptions:
    """The only key of ``crop`` that is about the files."""

    panorama_fov_deg: Covered | None


@entrypoint("check")
def main(cfg: DictConfig) -> None:
    """Checks one data set."""
    options, values = read_config(cfg, CheckOptions, check=_problems)
    fov = values["crop"].get("panorama_fov_deg")
    covered = None if fov is None else (fov[0], fov[1])
    data, names = values["data"], list(dict.fromkeys(options.splits))
    out = _picture(options.out, data)
    splits = [read_split(data, name, covered) for name in names]
    if options.full and decode_all([file for split in splits for file in split.files], covered, options.num_workers):
        splits = [read_split(data, name, covered) for name in names]  # which refuse the damaged pictures now
    for split in splits:
        for problem in split.problems:
            say(problem)
    for split in splits:
        say(split.line())
    sources = {split.name: split.source for split in splits if split.source is not None}
    for line in shared_pictures(sources):
        say(f"Note: {line}.")
    if line := differing_classes(sources):
        raise ValueError(line)
    for source in sources.values():
        if isinstance(source, PlacesSource) and (line := without_boxes(source)):
            say(f"Note: {line}")
    if out is not None and (drawn := draw_places(sources, out, covered)):
        say(f"Boxes of {', '.join(drawn)}: {out}")
    if options.texts != 0 and sources:
        language = values["model"]["language"]
        say(f"Text tokens of {language['name']}:")
        for line in text_lines(sources, language, values["stage"], options.texts):
            say(f"  {line}")
    _conclude(splits, data.get("on_error"))


def _problems(values: dict[str, Any]) -> list[str]:
    covered = {"panorama_fov_deg": values["crop"].get("panorama_fov_deg")}
    return check_data(values["data"]) + check_section(covered, PictureOptions, "crop")


def _picture(out: str | None, data: Mapping[str, Any]) -> Path | None:
    """The PNG file that is written for a data set with boxes, None for another; raises as ``checked_out``."""
    if out is None or source_class(data["type"]) is not AnnotatedSource:
        return None
    from panollava.run.image_commands import checked_out  # here, as it imports torch

    return checked_out(Path(out).expanduser(), [], "boxes.png")


def _conclude(splits: Sequence[Split], on_error: str | None) -> None:
    bad = {split.name: split.bad for split in splits if split.bad}
    if not bad:
        say("Nothing is wrong.")
        return
    counts = ", ".join(f"{count:,} in {name}" for name, count in bad.items())
    if on_error == "skip" and all(split.source is not None for split in splits):
        say(f"Bad: {counts}; data.on_error=skip leaves them out.")
        return
    raise ValueError(
        f"bad entries or files: {counts}. They are named above. Mend them; bad entries may also be deleted, or left "
        "out with data.on_error=skip."
    )


@dataclass
class Split:
    """One split as it was found."""

    name: str  # ``train``, ``val`` or ``test``
    source: DataSource | None = None  # its good entries; None where there are none
    problems: list[str] = field(default_factory=list)  # a line each
    bad: int = 0  # number of entries that cannot be used; 1 where the file itself cannot be read

    def add(self, path: Path, problems: Sequence[Problem]) -> None:
        """Adds the problems of a file's entries."""
        self.problems += [f"{path}, {problem}" for problem in problems]
        self.bad += len(bad_numbers(problems))

    @property
    def files(self) -> list[str]:
        """Each picture file once; pictures of the built-in world are drawn and have none."""
        source = self.source
        if not isinstance(source, ListedSource):
            return []
        return list(dict.fromkeys(str(source.picture(index)) for index in range(len(source))))

    def line(self) -> str:
        """Counts of records, pictures, turns, questions and tags, in words."""
        if self.source is None:
            return f"{self.name}: nothing that can be used"
        questions = self.source.questions()
        turns = sum(len(self.source.record(index, 0).turns) for index in range(len(self.source)))
        left_out = f", {self.bad:,} bad" if self.bad else ""
        return (
            f"{self.name}: {counted(len(self.source), 'record')}{left_out}, {counted(len(self._pictures()), 'picture')}"
            f", {counted(turns, 'turn')}; {counted(len(questions), 'question')} with "
            f"{counted(sum(len(each.references) for each in questions), 'reference')}{self._tags()}"
        )

    def _pictures(self) -> list[str]:
        source = self.source
        return [] if source is None else list(dict.fromkeys(source.image_id(index) for index in range(len(source))))

    def _tags(self) -> str:
        """What the GPano tags of the pictures say, in words; empty where there are none."""
        found = self.source.panoramas.values() if isinstance(self.source, ListedSource) else ()
        counts = {
            "with GPano tags": sum(has_gpano_tags(panorama.header.xmp) for panorama in found),
            "placed by them in a part of the sphere": sum(bool(each.part and each.part.from_tags) for each in found),
            "tilted": sum(bool(panorama.tilt) for panorama in found),
        }
        words = ", ".join(f"{what}: {count:,}" for what, count in counts.items())
        return f"; pictures {words}" if any(counts.values()) else ""


@dataclass(frozen=True)
class Headers:
    """Checks the headers of pictures; a source that is only checked decodes none."""

    covered: Covered | None

    def check(self, path: str) -> PanoramaFile:
        """Refuses a file that could not be read."""
        return check_panorama(path, self.covered)

    def read(self, path: Path) -> np.ndarray:
        """Is never called."""
        raise NotImplementedError(path)


def read_split(data: dict[str, Any], name: str, covered: Covered | None) -> Split:
    """One split of a data set: its file, its entries and the headers of its pictures.

    Args:
        data: the checked ``data`` section.
        name: of the split.
        covered: degrees that the pictures cover; None for the whole sphere.
    """
    split = Split(name)
    options = data if name == "test" else unscored(data)
    options = {**options, "on_error": "skip"} if "on_error" in data else options
    try:
        split.source = build_source(options, name, Headers(covered))
    except BadEntries as error:  # no entry is good; the problems are collected, not raised
        split.add(error.path, error.problems)
    except (OSError, ValueError) as error:
        split.problems, split.bad = [str(error)], 1
    if isinstance(split.source, ListedSource):
        split.add(split.source.path, split.source.problems)
    return split


def decode_all(pictures: Sequence[str], covered: Covered | None, num_workers: int) -> list[str]:
    """Decodes pictures in full, and remembers which are damaged for every later opening of a data set in this folder.

    Args:
        pictures: paths of files whose headers are valid.
        covered: degrees that they cover; None for the whole sphere.
        num_workers: threads that decode.

    Returns:
        The damaged pictures.
    """
    decoded = Decoded()
    found = {picture: decoded.verdict(picture) for picture in dict.fromkeys(pictures)}
    sizes = {name: os.path.getsize(name) if os.path.isfile(name) else 0 for name in found if found[name] is None}
    known, megabytes = len(found) - len(sizes), sum(sizes.values()) / 1e6
    LOG.info("Full decode: %d pictures to do (%.1f MB), %d known from before.", len(sizes), megabytes, known)
    saved = time.monotonic()
    try:
        for picture, identity, reason in _decoded(sizes, covered, num_workers):
            decoded.learn(picture, identity, reason)
            found[picture] = reason
            if time.monotonic() - saved > _SAVE_EVERY_S:
                decoded.save()
                saved = time.monotonic()
    finally:  # it may have taken hours
        if sizes:
            decoded.save()
    return [picture for picture, reason in found.items() if reason]


def _decoded(
    sizes: Mapping[str, int], covered: Covered | None, num_workers: int
) -> Iterator[tuple[str, list[int], str]]:
    """Results of ``examined`` in any order: of a sample first, by which the time for the others is estimated."""
    pictures = list(sizes)
    first = pictures[:: -(-len(pictures) // _SAMPLE) or 1]
    rest = [picture for picture in pictures if picture not in set(first)]
    examine = partial(examined, covered=covered)
    with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, desc="decoding", delay=1.0) as bar:
        start = time.perf_counter()
        for found in map(examine, first):
            bar.update(sizes[found[0]])
            yield found
        elapsed = time.perf_counter() - start
        if left := sum(sizes[picture] for picture in rest):
            seconds = elapsed * left / max(1, sum(sizes[picture] for picture in first)) / max(1, num_workers)
            LOG.info("The other %d pictures take about %s.", len(rest), _duration(seconds))
        with ThreadPoolExecutor(max(1, num_workers)) as pool:
            for found in pool.map(examine, rest):
                bar.update(sizes[found[0]])
                yield found


def draw_places(sources: Mapping[str, DataSource], out: Path, covered: Covered | None) -> list[str]:
    """Draws some pictures with their boxes and masks, so that a wrong convention is seen.

    Args:
        sources: splits by name; those without boxes and those of drawn panoramas are left out.
        out: PNG file that is written.
        covered: degrees that the pictures cover; None for the whole sphere.

    Returns:
        Names of the pictures, spread over those with boxes; empty where nothing was written.

    Raises:
        ValueError: ``out`` is one of the pictures.
    """
    annotated = {split: source for split, source in sources.items() if isinstance(source, AnnotatedSource)}
    places = [(split, at) for split, its in annotated.items() for at in range(len(its)) if len(its.boxes(at).boxes)]
    if not places:
        return []
    from panollava.crop.crop import read_panorama  # here, as these import torch
    from panollava.crop.strategies import global_camera
    from panollava.evaluation.drawing import PANEL, encode_png
    from panollava.evaluation.gallery import places_page
    from panollava.run.image_commands import checked_out, write_out

    checked_out(out, [source.picture(at) for source in annotated.values() for at in range(len(source))], "boxes.png")
    chosen = spread_indices(len(places), _DRAWN)
    whole, panels = [global_camera("resize", PANEL)], []
    for split, at in (places[number] for number in chosen):
        source = annotated[split]
        panorama = read_panorama(source.picture(at), whole, PANEL, covered)
        panels.append((f"{split}: {source.picture(at).name}", panorama, source.places(at)))
    source = next(iter(annotated.values()))
    read_as = ", ".join(asdict(source.conventions).values())
    write_out(out, encode_png(places_page(f"Boxes, read as {read_as}", panels, source.class_names)))
    return [caption for caption, _, _ in panels]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def text_lines(
    splits: Mapping[str, DataSource], language: Mapping[str, Any], stages: Mapping[str, Any], most: int | None
) -> list[str]:
    """Lengths of the texts in tokens, what each stage's limit cuts, and texts with control tokens, a line each.

    Args:
        splits: by name.
        language: the ``model.language`` section.
        stages: the ``stage`` section.
        most: records of each split to look at; None for all.

    Raises:
        FileNotFoundError: there is no such tokenizer.
        ValueError: a ``max_text_length`` is not a whole number from 1 on.
    """
    from panollava.data.dataset import TextEncoder, control_texts  # here, as these import torch
    from panollava.model.hub import load_tokenizer

    limits = {name: stages[name]["max_text_length"] for name, record in STAGES.items() if record.targets}
    for name, limit in limits.items():
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"stage.{name}.max_text_length={limit!r}: allowed is a whole number from 1 on.")
    prompt = ChatPrompt(load_tokenizer(language["name"]), system=language["system"])
    encoder = TextEncoder(prompt, image_tokens=1)  # the limits do not count the panorama, which is one token here
    lines, learnt = [], []
    for name, source in splits.items():
        chosen = spread_indices(len(source), most)
        lengths = np.array([len(encoder.record(source.record(index, 0)).ids) - 1 for index in chosen])
        middle, high, last = np.percentile(lengths, [50, 95, 100])
        part = "" if len(chosen) == len(source) else f" of {len(chosen):,} spread evenly"
        lines.append(
            f"{name}: {middle:,.0f} in the median, at most {high:,.0f} in 95 % of the records and {last:,.0f} in all"
            f"{part}"
        )
        if name != "test":  # whose questions no limit cuts
            learnt.append(lengths)
    notes = [control_texts(source, prompt) for source in splits.values() if isinstance(source, ListedSource)]
    lines += [f"Note: {note}." for note in notes if note]
    if learnt:
        every = np.concatenate(learnt)
        for stage, limit in limits.items():
            cut = int((every > limit).sum())
            share = f"{cut:,} of {len(every):,} ({cut / len(every):.1%})" if cut else "none of them"
            lines.append(f"stage.{stage}.max_text_length={limit} cuts {share}")
    return lines


if __name__ == "__main__":
    main()
