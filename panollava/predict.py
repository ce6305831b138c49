"""python -m panollava.predict: answers a question about a panorama, or about every panorama of a folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from panollava.config.check import check_section, refuse
from panollava.config.entrypoint import entrypoint
from panollava.data.csv import is_address
from panollava.data.fetch import FetchOptions
from panollava.disk import write_file
from panollava.logs import LOG, configure_console, say
from panollava.model.api import PanoLlava
from panollava.run.image_commands import check_fetch, find_panoramas
from panollava.run.memory import answers_too_large, explained
from panollava.run.sections import check_generation
from panollava.training.precision import choose_compute

Answered = tuple[Path, str]


@dataclass(frozen=True)
class PredictOptions:
    """Plain keys of ``conf/predict.yaml``; see there."""

    checkpoint: str
    image: str
    question: str
    out: str | None
    batch_size: Annotated[int, Interval(ge=1)]
    device: str
    allow: str | list[str]


@entrypoint("predict")
def main(cfg: DictConfig) -> None:
    """Asks one question.

    Args:
        cfg: composed from ``conf/predict.yaml`` and the command line.
    """
    configure_console()
    options, fetch, generation = _checked(cfg)
    paths = find_panoramas(options.image, fetch)
    out = None if options.out is None else _checked_out(Path(options.out).expanduser())
    compute = choose_compute(options.device, "auto", section="")
    pano = PanoLlava.from_pretrained(
        options.checkpoint, device=compute.device, dtype=compute.dtype, allow=options.allow
    )
    pano.generation = pano.generation.changed(generation)
    is_folder = Path(options.image).expanduser() not in paths and not is_address(options.image)
    answered: list[Answered] = []
    try:
        new = pano.generation.max_new_tokens
        with compute.autocast(), explained(lambda: answers_too_large(options.batch_size, new)):
            for path, answer in _answers(pano, paths, options, skips=is_folder):
                answered.append((path, answer))
                say(f"{path.name}\t{' '.join(answer.split())}" if is_folder else answer)
    finally:  # a folder may have taken hours
        if out is not None and answered:
            _write(out, [(_shown(path, options.image), answer) for path, answer in answered], options.question)
    bad = len(paths) - len(answered)
    if bad:
        raise ValueError(f"{bad} of {len(paths)} pictures in {options.image} could not be read. They are named above.")


def _answers(pano: PanoLlava, paths: Sequence[Path], options: PredictOptions, *, skips: bool) -> Iterator[Answered]:
    """Answers in the order of the paths; where ``skips``, a bad picture is named and passed over."""
    question = pano.encode(options.question)
    for group in _groups(_views(pano, paths, skips), options.batch_size):
        batch = pano.batch([views for _, views in group], [question] * len(group))
        answers = pano.answer(batch)
        yield from zip([path for path, _ in group], answers, strict=True)


def _views(pano: PanoLlava, paths: Iterable[Path], skips: bool) -> Iterator[tuple[Path, Tensor]]:
    for path in paths:
        try:
            yield path, pano.views(path)
        except (ValueError, OSError) as error:
            if not skips:
                raise
            LOG.warning("Left out: %s", error)


def _groups(items: Iterable[tuple[Path, Tensor]], size: int) -> Iterator[list[tuple[Path, Tensor]]]:
    group: list[tuple[Path, Tensor]] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _checked(cfg: DictConfig) -> tuple[PredictOptions, FetchOptions, dict[str, Any]]:
    missing = [key for key in ("checkpoint", "image", "question") if OmegaConf.is_missing(cfg, key)]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} missing: ask such as checkpoint=runs/demo image=panorama.jpg "
            'question="what is behind me?".'
        )
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    fetch, generation = values.pop("fetch"), values.pop("generation")
    problems = check_section(values, PredictOptions, "") + check_fetch(fetch)
    refuse(problems + check_generation(generation, recorded=True))
    if not str(values["question"]).strip():
        raise ValueError("question= is empty: write what you want to know.")
    return PredictOptions(**values), FetchOptions(**fetch), generation


def _checked_out(out: Path) -> Path:
    if out.suffix.lower() != ".csv":
        raise ValueError(f"out={out}: the answers are a CSV file. Give it a name that ends in .csv.")
    if out.is_dir():
        raise ValueError(f"out={out} is a folder. Name a file in it, such as out={out / 'answers.csv'}.")
    return out


def _shown(path: Path, image: str) -> str:
    """How the table names a picture: as it was asked for, in a folder by its name alone."""
    if is_address(image):
        return image
    return path.as_posix() if path == Path(image).expanduser() else path.name


def _write(out: Path, answered: Sequence[tuple[str, str]], question: str) -> None:
    """The answers under the column names that ``panollava.score`` reads."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("image", "query", "prediction"))
    writer.writerows((image, question, answer) for image, answer in answered)
    try:
        write_file(out, table.getvalue())
    except OSError as error:
        raise OSError(f"out={out} cannot be written ({error.strerror}). Choose another folder.") from error
    LOG.info("%d answers: %s", len(answered), out)


if __name__ == "__main__":
    main()
