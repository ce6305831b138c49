"""EAGLE-360 and H*Bench: in which direction something is.

EAGLE-360's function counts a direction within a circle of half the diagonal of the box, which has 1.57 times its area
or more. H*Bench's ignores the pitch where the range of yaw goes over the seam, and its environment changes targets
across resets, which no file of answers shows. Not stated are the measure of the circle (here the angle on the sphere),
where yaw is 0 (here the centre of the picture; the scores do not depend on it), and how a direction is read from an
answer (here the first two numbers are yaw and pitch).
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from panollava.crop.boxes import box_problem, contains
from panollava.evaluation.benchmarks.angles import angle_between, as_box, unit
from panollava.evaluation.benchmarks.files import field, picture_file, read_objects
from panollava.evaluation.benchmarks.parsing import find_direction
from panollava.evaluation.benchmarks.protocol import Benchmark, Box, Item, Mark

EAGLE, HSTAR = "eagle360", "hstar"
"""``method`` of the items."""
ANNOTATION = "annotation.json"
_SOME_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_PICTURES = {".jpg", ".jpeg", ".png", ".webp"}
_EDGE = 1e-9  # degrees by which rounding may move a direction out of its range


class Direction360(Benchmark):
    """Reads either set and scores the answers; see the module."""

    name: ClassVar[str] = "direction360"
    patterns: ClassVar[tuple[str, ...]] = ("*.jsonl", "*.json")
    by_kind: ClassVar[tuple[str, ...]] = ("hits",)
    tops: ClassVar[Mapping[str, float]] = {"angle in degrees": 180.0}

    def files(self, path: Path) -> list[Path]:
        """Every ``annotation.json`` of a folder, itself or below; without one as other sets."""
        return (sorted(path.rglob(ANNOTATION)) if path.is_dir() else []) or super().files(path)

    def items(self, path: Path, images: Path | None) -> list[Item]:
        """The items: those of H*Bench if the folder has an ``annotation.json``, itself or below, else of EAGLE-360.

        EAGLE-360 is a JSON or JSON Lines file, or a folder with one; its items are named by their picture, with a
        number where there are several of one. H*Bench has a folder for each panorama with its only picture; its items
        are named ``<folder>/<number>``, from 1.
        """
        files = self.files(path)
        if files[0].name == ANNOTATION:
            root = path if path.is_dir() else path.parent.parent
            return [one for file in files for one in _hstar_items(root, file, images)]
        (file,) = files
        found: list[Item] = []
        seen: dict[str, int] = {}
        for place, row in read_objects(file):
            image = field(file, place, row, "panoramic_image")
            seen[image] = seen.get(image, 0) + 1
            id = image if seen[image] == 1 else f"{image}#{seen[image]}"
            found.append(_eagle_item(file, place, row, id, images or file.parent))
        return found

    def released_mark(self, item: Item, answer: str) -> Mark:
        """Whether the first two numbers hit the box or the range."""
        numbers = [float(each) for each in _SOME_NUMBER.findall(answer)]
        is_parsed = len(numbers) >= 2
        hit = is_parsed and released_hit(numbers[0], numbers[1], item)
        return Mark({"hits": float(hit)}, is_parsed)

    def corrected_mark(self, item: Item, answer: str) -> Mark:
        """Whether the direction is within the box or the range, and its angle from the centre where one was parsed."""
        said = find_direction(answer)
        values = {"hits": float(said is not None and corrected_hit(*said, item))}
        if said is not None:
            values["angle in degrees"] = angle_between(unit(*said), unit(*_box(item)[:2]))
        return Mark(values, said is not None)


def released_hit(yaw: float, pitch: float, item: Item) -> bool:
    """Whether a direction in degrees hits by the released rule; see the module."""
    centre_yaw, centre_pitch, width, height = _box(item)
    if item.method == EAGLE:
        return angle_between(unit(yaw, pitch), unit(centre_yaw, centre_pitch)) <= math.hypot(width, height) / 2
    in_pitch = abs(pitch - centre_pitch) <= height / 2
    if width >= 360:
        return in_pitch
    low, turn = (centre_yaw - width / 2) % 360, yaw % 360
    high = low + width
    if high > 360 + _EDGE:  # the range goes over the seam; one that ends on it does not
        return turn >= low or turn <= high - 360
    return low <= turn <= high and in_pitch


def corrected_hit(yaw: float, pitch: float, item: Item) -> bool:
    """Whether a direction in degrees is within the box of EAGLE-360, or within the yaws and pitches of H*Bench.

    At a pole all yaws are one direction, and a pitch beyond it is a direction on the other side.
    """
    centre_yaw, centre_pitch, width, height = _box(item)
    x, y, z = unit(yaw, pitch)
    if item.method == EAGLE:
        return bool(contains(as_box(_box(item))[None], unit(yaw, pitch)[None]))
    ring = math.hypot(x, z)
    real_yaw, real_pitch = math.degrees(math.atan2(x, z)), math.degrees(math.atan2(y, ring))
    is_pole = math.degrees(ring) < _EDGE
    turn = (real_yaw - centre_yaw + 180) % 360 - 180
    in_pitch = abs(real_pitch - centre_pitch) <= height / 2 + _EDGE
    return in_pitch and (is_pole or abs(turn) <= width / 2 + _EDGE)


def _box(item: Item) -> Box:
    if item.box is None:
        raise ValueError(f"{item.id}: the item has no box. Read it with Direction360.items.")
    return item.box


def _eagle_item(path: Path, place: str, row: dict[str, Any], id: str, folder: Path) -> Item:
    image, question = (field(path, place, row, key) for key in ("panoramic_image", "question"))
    metadata = field(path, place, row, "metadata", dict)
    keys = ("azimuth_degrees", "elevation_degrees", "bbox_width_degrees", "bbox_height_degrees")
    yaw, pitch, width, height = (float(field(path, place, metadata, key, (int, float))) for key in keys)
    box = yaw, pitch, width, height
    if problem := box_problem(as_box(box)):
        raise ValueError(f"{path}, {place}, key metadata: {problem}")
    prompt = f"{question}\nAnswer with azimuth and elevation in degrees, such as azimuth 10, elevation -5."
    picture = picture_file(folder, image)
    return Item(id, image, picture, question, prompt, (json.dumps(box),), id, EAGLE, method=EAGLE, box=box)


def _hstar_items(root: Path, path: Path, images: Path | None) -> list[Item]:
    name = path.parent.relative_to(root).as_posix()
    name = path.parent.resolve().name if name == "." else name
    folder = path.parent if images is None else images / name
    files = sorted(one for one in folder.glob("*") if one.suffix.lower() in _PICTURES)
    if len(files) > 1:
        raise ValueError(f"{folder}: {len(files)} pictures, and a panorama's folder has one. Move the others away.")
    picture = files[0] if files else folder / "<picture>"
    found = []
    for number, (place, row) in enumerate(read_objects(path), start=1):
        task = field(path, place, row, "task")
        (yaw, width), (pitch, height) = _range(path, place, row, "yaw"), _range(path, place, row, "pitch")
        levels = field(path, place, row, "level", list) if "level" in row else []
        kind = f"{HSTAR}, {levels[0]}" if levels else HSTAR
        id, box = f"{name}/{number}", (yaw, pitch, width, height)
        prompt = f"{task}\nAnswer with yaw and pitch in degrees, such as yaw 10, pitch -5."
        image = f"{name}/{picture.name}"
        found.append(Item(id, image, picture, task, prompt, (json.dumps(box),), id, kind, method=HSTAR, box=box))
    return found


def _range(path: Path, place: str, row: dict[str, Any], key: str) -> tuple[float, float]:
    """Middle and width of a range in degrees; a yaw whose end is below its start goes over the seam."""
    ends = field(path, place, row, key, list)
    if len(ends) != 2 or not all(isinstance(one, int | float) and math.isfinite(one) for one in ends):
        raise ValueError(f"{path}, {place}, key {key}: {ends} is no range. Give [least, most] in degrees.")
    low, high = (float(one) for one in ends)
    if key == "yaw" and high < low:
        high += 360 * math.ceil((low - high) / 360)
    if high < low or (key == "pitch" and not -90 <= low <= high <= 90):
        raise ValueError(f"{path}, {place}, key {key}: {ends} is no range of pitch within [-90, 90], in this order.")
    return (low + high) / 2, min(high - low, 360.0)
