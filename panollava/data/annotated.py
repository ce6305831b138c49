"""Data sets of annotated boxes and masks: files of boxes as splits, with questions that are made of them."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import MinLen

from panollava.crop.boxes import NOTHING, PictureBoxes, Places
from panollava.crop.image_file import check_panorama
from panollava.data.box_doubts import convention_doubts, repeated_boxes
from panollava.data.box_files import box_file_kind, read_coco, read_segments, read_voc, read_yolo
from panollava.data.boxes import (
    PRESETS,
    Angles,
    BoxAnnotations,
    Boxes,
    Conventions,
    Origin,
    Pitch,
    Roll,
    box_text,
    with_classes,
)
from panollava.data.csv import Entry, Listing, Problem, wrong_text
from panollava.data.files import ListedSource, Pictures
from panollava.data.masks import read_index_mask, segment_shapes, segments_mask
from panollava.data.source import Question, Record
from panollava.logs import LOG, log_once

SEGMENTATION = "segmentation"
"""Value of ``masks`` for those of the COCO file."""
WHERE, WHICH, NONE = "where exactly is the {}?", "which things are here?", "nothing"
"""Questions about a class with a single box and about the classes of a picture, and the answer where there are none."""
_THREADS = 8  # that read masks


class AnnotatedSource(ListedSource):
    """A file or folder of boxes as a split of a data set; a record is a picture, with a conversation about its boxes.

    Each class with exactly one box in the picture is asked for, and the answer is ``box_text``. Without such a class
    the question is which classes are there. A box that is ignored is there, but no answer.

    Args:
        path: COCO JSON, a folder of VOC XML or a folder of YOLO text.
        reader, check, image_dir, dir, name: see `FilesSource`.
        on_error: `stop` refuses bad boxes, pictures and masks; `skip` leaves out each picture with one, as a picture
            that lacks some of its boxes would be a wrong truth.
        preset: conventions of the numbers, see ``PRESETS``; None for those of this package.
        angles, origin, pitch, roll, boxes: single conventions, see ``Conventions``; None for those of the preset.
        masks: folder of index pictures, which have the names of their pictures and end in .png (see ``masks``);
            ``segmentation`` for those of the COCO file; None for none.
        classes: names of the classes to use, in their order; None for those of the COCO file. VOC and YOLO files need
            them: YOLO's numbers count them from 0.

    Raises:
        FileNotFoundError: there is no such file.
        BadEntries: some pictures are bad and `on_error` is `stop`, or all are.
        ValueError: the file cannot be read, or a key does not fit it.
    """

    def __init__(
        self,
        *,
        path: str,
        reader: Callable[[Path], np.ndarray],
        check: Callable[[str], object] = check_panorama,
        image_dir: str | None = None,
        dir: str | None = None,
        name: str = "",
        on_error: Literal["stop", "skip"] = "stop",
        preset: Literal["pandora", "indoor360", "rbfov", "era"] | None = None,
        angles: Angles | None = None,
        origin: Origin | None = None,
        pitch: Pitch | None = None,
        roll: Roll | None = None,
        boxes: Boxes | None = None,
        masks: str | None = None,
        classes: Annotated[list[str], MinLen(1)] | None = None,
    ) -> None:
        file = Path(path).expanduser()
        stated: dict[str, Any] = {"angles": angles, "origin": origin, "pitch": pitch, "roll": roll, "boxes": boxes}
        conventions = Conventions() if preset is None else PRESETS[preset]
        conventions = replace(conventions, **{key: value for key, value in stated.items() if value is not None})
        folder = Path(image_dir).expanduser() if image_dir is not None else file
        self.conventions = conventions
        found, of_class = _read(file, conventions, classes, folder)
        for doubt in convention_doubts(found, conventions):
            LOG.warning("%s: %s: state data.%s=%s.", file, doubt.what, doubt.field, doubt.way_out)
        if repeated := repeated_boxes(found):
            LOG.warning("%s: %s.", file, repeated)
        self.class_names = found.names
        self._boxes = found.pictures
        self._of_class = of_class
        self._is_rectangles = conventions.boxes != "angles"
        self._masks = None if masks in (None, SEGMENTATION) else Pictures(Path(str(masks)).expanduser())
        if masks == SEGMENTATION and file.is_dir():
            raise ValueError(
                f"data.masks={SEGMENTATION}: {file} is a folder, and only COCO JSON has them. Name a folder."
            )
        if self._masks is not None and not self._masks.folder.is_dir():
            raise ValueError(f"data.masks={masks}: there is no such folder. Check the path, or write {SEGMENTATION}.")
        self._segments = read_segments(file) if masks == SEGMENTATION else None
        super().__init__(
            file,
            _listing(found),
            reader=reader,
            check=check,
            image_dir=image_dir,
            dir=dir,
            name=name,
            on_error=on_error,
            directions="words",
        )

    def image_id(self, index: int) -> str:
        """Name of picture `index` as in the file of boxes, so that detections have it from any working directory."""
        return self.entries[index].image

    def picture(self, index: int) -> Path:
        """File of picture `index`."""
        return Path(self._paths[self.image_id(index)])

    def boxes(self, index: int) -> PictureBoxes:
        """Boxes of picture `index`."""
        return self._boxes[self.image_id(index)]

    def places(self, index: int) -> Places:
        """Boxes, and with masks the class of each pixel, of picture `index`; a mask changed since raises ValueError."""
        return Places(self.boxes(index), self._pixels(self.image_id(index)))

    def rotated_record(self, index: int, epoch: int, yaw_deg: float) -> Record:
        """The conversation of picture `index` rotated to the right, with the yaws of its boxes."""
        record = self.record(index, epoch)
        found = self.boxes(index)
        moved = replace(found, boxes=found.boxes + np.array([yaw_deg, 0, 0, 0, 0]))
        return Record(record.sample_id, box_turns(moved, self.class_names))

    def questions(self) -> list[Question]:
        """Each turn as a question without history, since no answer depends on another one."""
        return [
            replace(question, history=(), sample_id=f"{question.sample_id}{'' if question.history else '-turn1'}")
            for question in super().questions()
        ]

    def _wrong_entries(self, entries: Sequence[Entry]) -> list[Problem]:
        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            reasons = list(pool.map(self._wrong_places, (entry.image for entry in entries)))
        return [
            Problem(entry.number, f"{entry.place}, {entry.image_key}", reason)
            for entry, reason in zip(entries, reasons, strict=True)
            if reason
        ]

    def _wrong_places(self, image: str) -> str:
        has_masks = self._masks is not None or self._segments is not None
        checked = self.panoramas.get(self._paths[image])
        if checked is not None and checked.part is not None and (has_masks or self._is_rectangles):
            what = "masks" if has_masks else "rectangles in pixels"
            return f"the picture shows a part of the sphere, and {what} need a whole panorama"
        try:
            if self._segments is None:
                self._pixels(image)
            else:
                segment_shapes(self._segments[image], self.panoramas[self._paths[image]].size)  # drawn when used
        except (OSError, ValueError) as error:  # collected, so that all bad masks are named at once
            return str(error)
        return ""

    def _pixels(self, image: str) -> np.ndarray | None:
        if self._masks is None and self._segments is None:
            return None
        size = self.panoramas[self._paths[image]].size
        if self._segments is not None:
            return segments_mask(self._segments[image], self._of_class, size)
        assert self._masks is not None
        name = str(PurePosixPath(image.replace("\\", "/")).with_suffix(".png"))
        try:
            path = self._masks.path(name)
        except ValueError:
            raise ValueError(
                f"its mask {name} would lie outside of data.masks={self._masks.folder}. Name the pictures relative to "
                "data.image_dir"
            ) from None
        return read_index_mask(Path(path), self._of_class, size)


def box_turns(found: PictureBoxes, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The questions and answers about one picture's boxes, in the order of the classes."""
    counts = Counter(found.annotated()[1].tolist())
    turns = [
        (WHERE.format(name), box_text(found.boxes[found.classes == kind][0]))
        for kind, name in enumerate(names)
        if counts[kind] == 1 and kind in found.classes
    ]
    there = ", ".join(name for kind, name in enumerate(names) if counts[kind])
    return tuple(turns) or ((WHICH, there or NONE),)


def _read(
    path: Path, conventions: Conventions, classes: Sequence[str] | None, folder: Path
) -> tuple[BoxAnnotations, np.ndarray]:
    """The boxes of the chosen classes, and the class (K,) of each class of the file, NOTHING for one left out."""
    kind = box_file_kind(path)
    if classes is not None and len(set(classes)) < len(classes):
        raise ValueError(f"data.classes={list(classes)}: a class is named twice. Name each once.")
    if kind == "yolo":
        if classes is None:
            raise ValueError(
                f"{path}: YOLO files do not name their classes. Name them in the order of their numbers, from 0 on: "
                'data.classes="[chair,lamp,…]".'
            )
        found = read_yolo(path, conventions, classes, folder)
    else:
        found = read_coco(path, conventions) if kind == "coco" else read_voc(path, conventions)
    if classes is None and kind == "voc":
        raise ValueError(
            f"{path}: VOC files name only the classes that occur in them, so that splits may differ. Name all in one "
            f'order. Those of this folder: data.classes="[{",".join(found.names)}]".'
        )
    wanted = found.names if classes is None else tuple(classes)
    if kind == "coco" and (missing := [name for name in wanted if name not in found.names]):
        raise ValueError(f"data.classes: {missing[0]} is no class of {path}. Its classes: {', '.join(found.names)}.")
    if wrong := [name for name in wanted if not name.strip() or wrong_text(name)]:
        raise ValueError(f"{path}: a class has the name {wrong[0]!r}, which is no text. Rename it.")
    if others := [name for name in found.names if name not in wanted]:
        log_once(f"{path}: classes left out by data.classes: {', '.join(others)}.")
    order = found.names if kind == "coco" else wanted
    of_class = np.array([wanted.index(name) if name in wanted else NOTHING for name in order], dtype=np.int16)
    return with_classes(found, wanted), of_class


def _listing(found: BoxAnnotations) -> Listing:
    number_of = {name: number for number, name in enumerate(found.pictures, start=1)}
    problems = [
        Problem(number_of.get(picture, 0), problem.place, problem.reason)  # 0: a row about no picture
        for problem, picture in zip(found.problems, found.bad, strict=True)
    ]
    bad = {problem.number for problem in problems}
    entries = []
    for name, number in number_of.items():
        if number not in bad:
            turns = box_turns(found.pictures[name], found.names)
            kind = "classes" if turns[0][0] == WHICH else "box"
            entries.append(Entry(number, f"picture {number}", name, name, turns, question_type=kind))
    return Listing("picture", len(number_of), entries, problems)
