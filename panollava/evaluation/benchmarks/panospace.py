"""PanoSpace-Bench: questions with four options, and boxes (fields of view) on the sphere.

The authors' function is known by what it computes and by its faults: a picture that is missing is skipped silently, an
answer without a letter is matched by substrings of the options, and the IoU of boxes is planar. They let models write
16 tokens, so a longer answer is cut. Not stated are the order of its steps and the form of boxes; here the letter comes
first, and a box is four numbers: yaw, pitch, horizontal and vertical extent in degrees.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from panollava.crop.boxes import box_problem, iou
from panollava.evaluation.benchmarks.angles import as_box
from panollava.evaluation.benchmarks.files import field, picture_file, read_objects
from panollava.evaluation.benchmarks.parsing import find_letter, find_numbers
from panollava.evaluation.benchmarks.protocol import Benchmark, Box, Item, Mark

CHOICE, BOX = "4_way_multiple_choice", "bfov_regression"
THRESHOLDS = (0.1, 0.25, 0.5)
"""IoU from which a box counts as found."""
_SOME_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class PanoSpace(Benchmark):
    """Reads ``benchmark.jsonl`` and scores the answers; see the module."""

    name: ClassVar[str] = "panospace"
    patterns: ClassVar[tuple[str, ...]] = ("benchmark.jsonl", "*.jsonl")
    new_tokens: ClassVar[int] = 16  # the authors'

    def items(self, path: Path, images: Path | None) -> list[Item]:
        """The items; pictures are below `images` or the folder of the file."""
        (file,) = self.files(path)
        folder = images or file.parent
        return [_item(file, place, row, folder) for place, row in read_objects(file)]

    def released_mark(self, item: Item, answer: str) -> Mark | None:
        """Whether a choice is right or invalid, or the planar IoU of a box; None for an item without a picture."""
        if not item.picture.is_file():
            return None
        if item.box is None:
            return _choice_mark(released_choice(answer, item.options), item)
        numbers = [float(one) for one in _SOME_NUMBER.findall(answer)]
        if len(numbers) < 4:
            return _box_mark(None)
        return _box_mark(planar_iou((numbers[0], numbers[1], numbers[2], numbers[3]), item.box))

    def corrected_mark(self, item: Item, answer: str) -> Mark:
        """The same with letters found wherever they stand, and the exact IoU on the sphere.

        Raises FileNotFoundError for an item without a picture.
        """
        if not item.picture.is_file():
            raise FileNotFoundError(f"{item.picture}: the picture of item {item.id} is not there.")
        if item.box is None:
            return _choice_mark(find_letter(answer, item.options), item)
        numbers = find_numbers(answer)
        if len(numbers) != 4 or box_problem(np.array([*numbers, 0.0])):
            return _box_mark(None)
        return _box_mark(spherical_iou((numbers[0], numbers[1], numbers[2], numbers[3]), item.box))


def released_choice(answer: str, options: Sequence[tuple[str, str]]) -> str | None:
    """The option that the released rule reads: a letter that stands alone, else a substring.

    It is the first capital letter of an option that stands alone; without one it is the first option, in the given
    order, whose text occurs in the answer in any case, also within a word.
    """
    letters = {letter for letter, _ in options}
    alone = [letter for letter in re.findall(r"\b([A-Z])\b", answer) if letter in letters]
    if alone:
        return alone[0]
    return next((letter for letter, text in options if text.lower() in answer.lower()), None)


def planar_iou(first: Box, second: Box) -> float:
    """IoU of two boxes as rectangles in a plane of yaw and pitch, which ends at the seam."""
    shared = 1.0
    for centre, extent in ((0, 2), (1, 3)):
        low = max(first[centre] - first[extent] / 2, second[centre] - second[extent] / 2)
        high = min(first[centre] + first[extent] / 2, second[centre] + second[extent] / 2)
        shared *= max(0.0, high - low)
    union = first[2] * first[3] + second[2] * second[3] - shared
    return shared / union if union > 0 else 0.0


def spherical_iou(first: Box, second: Box) -> float:
    """Exact IoU of two boxes of the set by solid angle, right at the seam and at the poles."""
    return float(iou(as_box(first)[None], as_box(second)[None])[0])


def _choice_mark(said: str | None, item: Item) -> Mark:
    return Mark({"accuracy": float(said == item.references[0]), "invalid": float(said is None)}, said is not None)


def _box_mark(overlap: float | None) -> Mark:
    """The mark of a box with an IoU; None where the answer is no box."""
    value = overlap or 0.0
    found = {f"IoU@{least:g}": float(overlap is not None and value >= least) for least in THRESHOLDS}
    return Mark({"IoU": value, **found, "invalid": float(overlap is None)}, overlap is not None)


def _item(path: Path, place: str, row: dict[str, Any], folder: Path) -> Item:
    kind = field(path, place, row, "answer_format")
    id, image, question = (field(path, place, row, key) for key in ("item_id", "image_path", "question"))
    common = {"id": id, "image": image, "picture": picture_file(folder, image), "question": question, "group": id}
    task = field(path, place, row, "task_id")
    if kind == BOX:
        box = _box(path, place, row.get("answer"))
        prompt = f"{question}\nAnswer with yaw, pitch, width and height in degrees, such as 10, -5, 30, 20."
        return Item(**common, prompt=prompt, references=(json.dumps(box),), kind=task, box=box)
    if kind != CHOICE:
        raise ValueError(f"{path}, {place}, key answer_format: {kind!r} is neither {CHOICE} nor {BOX}.")
    listed = field(path, place, row, "options", list)
    options = tuple((field(path, place, one, "key"), field(path, place, one, "text")) for one in listed)
    answer = field(path, place, row, "answer")
    if answer not in dict(options):
        raise ValueError(f"{path}, {place}, key answer: {answer!r} is none of {', '.join(dict(options))}.")
    lines = "\n".join(f"{letter}. {text}" for letter, text in options)
    prompt = f"{question}\n{lines}\nAnswer with the letter of the right option."
    return Item(**common, prompt=prompt, references=(answer,), kind=task, options=options)


def _box(path: Path, place: str, value: Any) -> Box:
    """A box as four numbers, in a list or in a text of a JSON list."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
        yaw, pitch, horizontal, vertical = (float(one) for one in found)
    except (TypeError, ValueError):
        raise ValueError(
            f"{path}, {place}, key answer: {str(value)[:60]!r} is no box. Give [yaw, pitch, horizontal, vertical] in "
            "degrees."
        ) from None
    if problem := box_problem(np.array([yaw, pitch, horizontal, vertical, 0.0])):
        raise ValueError(f"{path}, {place}, key answer: {problem}")
    return yaw, pitch, horizontal, vertical
