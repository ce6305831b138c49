"""python -m panollava.predict: answers questions about panoramas, or finds what is where.

One question about a panorama or about each of a folder, or the questions of a file.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval
from omegaconf import DictConfig

from panollava.config.entrypoint import entrypoint
from panollava.disk import csv_text
from panollava.logs import LOG, say

if TYPE_CHECKING:
    from torch import Tensor

    from panollava.crop.crop import Cut
    from panollava.data.question_file import FileQuestion
    from panollava.model.api import PanoLlava
    from panollava.prompt import Encoded
    from panollava.training.precision import Compute

Answered = tuple[Path, str]
KEEP_S = 30.0
"""Time between two writings of the answers so far."""


@dataclass(frozen=True)
class PredictOptions:
    """Plain keys of ``conf/predict.yaml``; see there."""

    checkpoint: str
    image: str | None
    question: str | None
    questions: str | None
    out: str | None
    batch_size: Annotated[int, Interval(ge=1)]
    device: str
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None
    allow: str | list[str]


@entrypoint("predict", positional=("checkpoint", "image", "question"))
def main(cfg: DictConfig) -> None:
    """Asks one question."""
    from panollava.run.sections import read_config  # here, so that --help needs no PyTorch

    example = 'ask such as checkpoint=runs/demo image=panorama.jpg question="what is behind me?"'
    options, sections = read_config(cfg, PredictOptions, required=["checkpoint"], example=example)
    if options.question is not None and not options.question.strip():
        raise ValueError("question= is empty: give a question.")
    if options.questions is not None and options.question is not None:
        raise ValueError("question= and questions= are both given. Ask one question, or those of a file.")
    if options.image is None and options.questions is None:
        raise ValueError(f"image is missing: {example}.")

    from panollava.data.csv import is_address
    from panollava.data.fetch import FetchOptions
    from panollava.model.api import PanoLlava
    from panollava.run.image_commands import checked_out, command_compute, find_panoramas
    from panollava.run.memory import answers_too_large, explained

    finds = options.question is None and options.questions is None
    order = ("detect",) if finds else ()
    compute = command_compute(options.checkpoint, options.device, options.precision, order)
    if options.questions is not None:
        _answer_file(options, Path(options.questions).expanduser(), compute, sections["generation"])
        return
    assert options.image is not None
    paths = find_panoramas(options.image, FetchOptions(**sections["fetch"]))
    if options.question is None:
        _find(options, paths, compute)
        return
    out = None
    if options.out is not None:
        out = checked_out(Path(options.out).expanduser(), paths, "answers.csv", "answers are a CSV")
    pano = PanoLlava.from_pretrained(
        options.checkpoint, device=compute.device, dtype=compute.dtype, allow=options.allow
    )
    pano.generation = pano.generation.changed(sections["generation"])
    is_folder = Path(options.image).expanduser() not in paths and not is_address(options.image)
    new, question = pano.generation.max_new_tokens, options.question
    with (
        compute.autocast(),
        explained(lambda: answers_too_large(options.batch_size, new)),
        _Table(out, ("image", "query", "prediction")) as table,  # the names that panollava.score reads
    ):
        for number, (path, answer) in enumerate(_answers(pano, paths, options, skips=is_folder)):
            table.add(number, (_shown(path, options.image), question, answer))
            say(f"{path.name}\t{' '.join(answer.split())}" if is_folder else answer)
    _check_all(paths, len(table.rows), options.image)


class _Table:
    """Answers that are written as CSV when all are there; from time to time, and when it is stopped, beside that file.

    A file of earlier answers stays until then. SIGTERM, which batch systems send, ends the block as Ctrl-C does.

    Attributes:
        rows: by their place in the file.
    """

    def __init__(self, out: Path | None, header: Sequence[str]) -> None:
        self._out, self._header = out, tuple(header)
        self.rows: dict[int, tuple[str, ...]] = {}
        self._written = time.monotonic()
        self._earlier: Any = None

    def __enter__(self) -> _Table:
        self._earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def add(self, number: int, row: Sequence[str]) -> None:
        """Keeps a row."""
        self.rows[number] = tuple(row)
        if self._out is not None and time.monotonic() - self._written > KEEP_S:
            self._write(self._part)
            self._written = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        signal.signal(signal.SIGTERM, self._earlier)
        if self._out is None or not self.rows:
            return
        self._write(self._out if kind is None else self._part)
        if kind is None:
            self._part.unlink(missing_ok=True)
        where = self._out if kind is None else f"{self._part} (the rest is missing)"
        LOG.info("%d answers: %s", len(self.rows), where)

    @property
    def _part(self) -> Path:
        assert self._out is not None
        return self._out.with_name(f"{self._out.stem}.part{self._out.suffix}")

    def _write(self, path: Path) -> None:
        from panollava.run.image_commands import write_out

        write_out(path, csv_text([self._header, *(self.rows[number] for number in sorted(self.rows))]))


def _answer_file(options: PredictOptions, path: Path, compute: Compute, generation: Mapping[str, Any]) -> None:
    """Answers the questions of a file: a line each, and the file with the answers in a column."""
    from panollava.data.files import Pictures
    from panollava.data.question_file import ANSWER, read_questions
    from panollava.model.api import PanoLlava
    from panollava.run.image_commands import checked_out
    from panollava.run.memory import answers_too_large, explained

    file, folder = read_questions(path), path.parent if options.image is None else Path(options.image).expanduser()
    names = Pictures(folder, inside=[Path(folder.absolute().anchor)])  # the user's own file may name any place
    pictures = {one.image: Path(names.path(one.image)) for one in file.questions}
    out = None
    if options.out is not None:
        out = checked_out(Path(options.out).expanduser(), list(pictures.values()), "answers.csv", "answers are a CSV")
        if out.exists() and out.samefile(path):
            raise ValueError(f"out={out} is the file of questions itself, which would be lost. Choose another name.")
    if missing := [str(place) for place in pictures.values() if not place.is_file()]:
        raise FileNotFoundError(
            f"questions={path}: {len(missing)} of {len(pictures)} pictures are not there, such as {missing[0]}. Names "
            f"are relative to {folder}; image=<folder> names another."
        )
    pano = PanoLlava.from_pretrained(
        options.checkpoint, device=compute.device, dtype=compute.dtype, allow=options.allow
    )
    pano.generation = pano.generation.changed(generation)
    new = pano.generation.max_new_tokens
    with (
        compute.autocast(),
        explained(lambda: answers_too_large(options.batch_size, new)),
        _Table(out, (*file.header, ANSWER)) as table,
    ):
        for number, answer in _answers_by_picture(pano, file.questions, pictures, options.batch_size):
            one = file.questions[number]
            table.add(number, (*one.cells, answer))
            say("\t".join((one.image, " ".join(one.text.split()), " ".join(answer.split()))))
    if len(table.rows) < len(file.questions):
        raise ValueError(
            f"{len(file.questions) - len(table.rows)} of {len(file.questions)} questions of {path} were not answered. "
            "They are named above."
        )


def _answers_by_picture(
    pano: PanoLlava, questions: Sequence[FileQuestion], pictures: Mapping[str, Path], batch_size: int
) -> Iterator[tuple[int, str]]:
    """Numbers of the questions with their answers, picture by picture; each picture is encoded once.

    What cannot be read or does not fit the model is logged and left out.
    """
    asked: dict[str, list[tuple[int, Encoded]]] = {name: [] for name in pictures}
    for number, one in enumerate(questions):
        try:
            asked[one.image].append((number, pano.encode(one.text)))
        except ValueError as error:
            LOG.warning("Left out: question %d: %s", number + 1, error)
    group: list[tuple[int, Encoded, str]] = []
    features: dict[str, tuple[Tensor, Tensor]] = {}  # with the cameras
    for name, path in pictures.items():
        try:
            cut = pano.cut(path) if asked[name] else None
        except (ValueError, OSError) as error:
            LOG.warning("Left out, with %d questions: %s", len(asked[name]), error)
            continue
        if cut is not None:
            features[name] = pano.features(cut.views), cut.cameras
        group += [(number, text, name) for number, text in asked[name]]
        while len(group) >= batch_size:
            yield from _answered(pano, group[:batch_size], features)
            group = group[batch_size:]
            features = {name: features[name] for _, _, name in group}
    yield from _answered(pano, group, features)


def _answered(
    pano: PanoLlava, group: Sequence[tuple[int, Encoded, str]], features: Mapping[str, tuple[Tensor, Tensor]]
) -> Iterator[tuple[int, str]]:
    if not group:
        return
    names = list(dict.fromkeys(name for _, _, name in group))
    rows = [names.index(name) for _, _, name in group]
    shown, cameras = zip(*(features[name] for name in names), strict=True)
    batch = pano.feature_batch(shown, [text for _, text, _ in group], rows, cameras)
    yield from zip((number for number, _, _ in group), pano.answer(batch), strict=True)


def _check_all(paths: Sequence[Path], count: int, image: str) -> None:
    if count < len(paths):
        raise ValueError(
            f"{len(paths) - count} of {len(paths)} pictures in {image} could not be read. They are named above."
        )


def _find(options: PredictOptions, paths: Sequence[Path], compute: Compute) -> None:
    """Finds boxes and masks in each picture: a line a box, and a picture or a COCO file."""
    from panollava.data.box_files import write_coco
    from panollava.data.boxes import BoxAnnotations, Conventions
    from panollava.evaluation.drawing import encode_png
    from panollava.evaluation.gallery import with_boxes, with_masks
    from panollava.model.detector import SURE, PanoDetector, find_detector
    from panollava.run.image_commands import checked_out, read_twice, write_out

    out = None if options.out is None else Path(options.out).expanduser()
    if out is not None:
        suffix = out.suffix.lower()
        if suffix not in (".png", ".json") or (suffix == ".png" and len(paths) > 1):
            raise ValueError(
                f"out={out}: without a question, boxes and masks are found; of one panorama give a picture (.png), of "
                "several a COCO file (.json). To ask something, give question=."
            )
        checked_out(out, paths, f"found{suffix}")
    try:
        find_detector(Path(options.checkpoint).expanduser())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"question= is missing, and {error} Or ask something.") from error
    detector = PanoDetector.from_pretrained(
        options.checkpoint, device=compute.device, dtype=compute.dtype, allow=options.allow
    )
    found = {}
    for path in paths:
        try:
            with compute.autocast():
                found[path.name] = one = detector.detect(path)
        except (ValueError, OSError) as error:
            if len(paths) == 1:
                raise
            LOG.warning("Left out: %s", error)
            continue
        if not len(one):
            LOG.info("%s: nothing with a score of %g or more.", path.name, SURE)
        for thing in one:
            where = f"yaw {thing.yaw:.1f}, pitch {thing.pitch:.1f}, {thing.horizontal:.1f} x {thing.vertical:.1f}"
            say(f"{path.name}\t{thing.name}\t{thing.score:.2f}\t{where}")
    if out is not None and out.suffix.lower() == ".png" and found:
        panorama, _ = read_twice(paths[0], detector.crop)
        (one,) = found.values()
        drawn = with_boxes(with_masks(panorama, one.mask, one.names), one.boxes, one.names)
        write_out(out, encode_png(drawn))
    elif out is not None and found:
        boxes = {name: one.boxes for name, one in found.items()}
        write_coco(out, BoxAnnotations(detector.names, boxes), Conventions())
    if out is not None and found:
        LOG.info("Boxes of %d pictures: %s", len(found), out)
    _check_all(paths, len(found), str(options.image))


def _answers(pano: PanoLlava, paths: Sequence[Path], options: PredictOptions, *, skips: bool) -> Iterator[Answered]:
    """Answers in the order of the paths; where ``skips``, a picture that cannot be read is logged and left out."""
    question = pano.encode(options.question or "")
    group: list[tuple[Path, Cut]] = []
    for count, path in enumerate(paths, start=1):
        try:
            group.append((path, pano.cut(path)))
        except (ValueError, OSError) as error:
            if not skips:
                raise
            LOG.warning("Left out: %s", error)
        if group and (len(group) == options.batch_size or count == len(paths)):
            answers = pano.answer(pano.batch([cut for _, cut in group], [question] * len(group)))
            yield from zip([path for path, _ in group], answers, strict=True)
            group = []


def _shown(path: Path, image: str) -> str:
    """The name of a picture in the table: as in ``image=``; in a folder the file's alone."""
    from panollava.data.csv import is_address

    if is_address(image):
        return image
    return path.as_posix() if path == Path(image).expanduser() else path.name


if __name__ == "__main__":
    main()
