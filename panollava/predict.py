"""python -m panollava.predict: answers a question about a panorama, or about every panorama of a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Interval
from omegaconf import DictConfig

from panollava.config.entrypoint import entrypoint
from panollava.disk import csv_text
from panollava.logs import LOG, configure_console, say

if TYPE_CHECKING:
    from torch import Tensor

    from panollava.model.api import PanoLlava

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
    """Asks one question."""
    from panollava.run.sections import read_config  # here, so that --help needs no PyTorch

    configure_console()
    example = 'ask such as checkpoint=runs/demo image=panorama.jpg question="what is behind me?"'
    required = ["checkpoint", "image", "question"]
    options, sections = read_config(cfg, PredictOptions, required=required, example=example)
    if not options.question.strip():
        raise ValueError("question= is empty: give a question.")

    from panollava.data.csv import is_address
    from panollava.data.fetch import FetchOptions
    from panollava.model.api import PanoLlava
    from panollava.run.image_commands import find_panoramas
    from panollava.run.memory import answers_too_large, explained
    from panollava.training.precision import choose_compute

    paths = find_panoramas(options.image, FetchOptions(**sections["fetch"]))
    out = None if options.out is None else _checked_out(Path(options.out).expanduser())
    compute = choose_compute(options.device, "auto", section="")
    pano = PanoLlava.from_pretrained(
        options.checkpoint, device=compute.device, dtype=compute.dtype, allow=options.allow
    )
    pano.generation = pano.generation.changed(sections["generation"])
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
    """Answers in the order of the paths; where ``skips``, a picture that cannot be read is logged and left out."""
    question = pano.encode(options.question)
    group: list[tuple[Path, Tensor]] = []
    for count, path in enumerate(paths, start=1):
        try:
            group.append((path, pano.views(path)))
        except (ValueError, OSError) as error:
            if not skips:
                raise
            LOG.warning("Left out: %s", error)
        if group and (len(group) == options.batch_size or count == len(paths)):
            answers = pano.answer(pano.batch([views for _, views in group], [question] * len(group)))
            yield from zip([path for path, _ in group], answers, strict=True)
            group = []


def _checked_out(out: Path) -> Path:
    if out.suffix.lower() != ".csv":
        raise ValueError(f"out={out}: the answers are a CSV file. Give it a name that ends in .csv.")
    if out.is_dir():
        raise ValueError(f"out={out} is a folder. Name a file in it, such as out={out / 'answers.csv'}.")
    return out


def _shown(path: Path, image: str) -> str:
    """The name of a picture in the table: as in ``image=``; in a folder the file's alone."""
    from panollava.data.csv import is_address

    if is_address(image):
        return image
    return path.as_posix() if path == Path(image).expanduser() else path.name


def _write(out: Path, answered: Sequence[tuple[str, str]], question: str) -> None:
    """The answers under the column names that ``panollava.score`` reads."""
    from panollava.run.image_commands import write_out

    header = ("image", "query", "prediction")
    write_out(out, csv_text([header, *((image, question, answer) for image, answer in answered)]))
    LOG.info("%d answers: %s", len(answered), out)


if __name__ == "__main__":
    main()
