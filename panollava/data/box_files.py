"""Files of annotated boxes: COCO's JSON, read and written, and VOC's XML and YOLO's text, read.

A bad box is a problem of the result, with its file, place, value and what is allowed; ``BoxAnnotations.checked`` raises
them. A file that cannot be read at all is a ValueError.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np

from panollava.data.boxes import BoxAnnotations, Conventions, collected, read_box, written_box
from panollava.data.csv import Problem, found_file, spelling
from panollava.disk import MAX_DOCUMENT_BYTES, utf8_text, write_json
from panollava.logs import counted, log_once

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Pictures that a YOLO file of the same name is searched among."""
_VOC_ANGLES = ("center_lon", "center_lat", "bfov_w", "bfov_h", "bfov_roll")
_VOC_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_CROWD, _DIFFICULT = "iscrowd", "difficult"
"""Marks of COCO, for regions of several things, and of VOC, for single things. Both leave such boxes out of scores."""
_Rows = dict[str, list[tuple[Any, int, float | None]]]


class _Collector:
    """Gathers boxes and problems of a file or folder; `mark` is the key by which a box is ignored."""

    def __init__(self, source: Path, conventions: Conventions, mark: str = "") -> None:
        self.source, self.conventions, self.mark = source, conventions, mark
        self.rows: _Rows = {}
        self.ignored: dict[str, list[tuple[np.ndarray, int]]] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.problems: list[Problem] = []
        self.bad: list[str] = []
        self.centres: list[list[float]] = []
        self.count = 0
        self.repeated: list[str] = []
        self._listed: dict[str, tuple[str, str]] = {}  # place and name of each picture, by its normal spelling
        self._written: set[tuple[Any, ...]] = set()

    def list_picture(self, place: str, picture: str) -> None:
        """Adds a picture; one that is listed twice, perhaps in another spelling, is a problem."""
        self.rows.setdefault(picture, [])
        first, name = self._listed.setdefault(spelling(picture), (place, picture))
        if first != place:
            self.refuse(first, f"names the picture {name}, as {place} does; list it once", name)
            self.refuse(place, f"names the picture {picture}, as {first} does; list it once", picture)

    def refuse(self, place: str, reason: str, picture: str) -> None:
        """Adds a problem of a whole picture."""
        self.problems.append(Problem(0, place, reason))
        self.bad.append(picture)

    def add(
        self,
        place: str,
        picture: str,
        number: int | str,
        values: Sequence[Any],
        score: Any = None,
        mark: Any = None,
    ) -> None:
        """Adds a box; `number` is its class, or a text that says what is wrong with the class."""
        self.count += 1
        reasons = [number] if isinstance(number, str) else []
        if (is_ignored := _is_marked(mark)) is None:
            reasons.append(f"{self.mark} is {mark!r}: allowed are 0 and 1")
        numbers = [_number(value) for value in [*values, *([] if score is None else [score])]]
        centre = [value for value in numbers[:2] if value is not None and math.isfinite(value)]
        self.centres += [centre] if len(centre) == 2 else []
        if reasons:
            pass
        elif None in numbers:
            bad = [*values, score][numbers.index(None)]
            reasons.append(f"{bad!r} is not a number")
        else:
            box, reason = read_box(numbers[: len(values)], self.conventions, self.sizes.get(picture))  # type: ignore[arg-type]
            reasons += [reason] if reason else []
            if score is not None and not math.isfinite(numbers[-1]):  # type: ignore[arg-type]
                reasons.append(f"the score {score!r} is not a finite number")
        if not reasons and picture not in self.rows:
            reasons.append(f"{picture!r} is a picture that the file does not list")
        if reasons:
            self.problems += [Problem(self.count, place, reason) for reason in reasons]
            self.bad += [picture if picture in self.rows else ""] * len(reasons)
        elif is_ignored:
            assert not isinstance(number, str)
            self.ignored.setdefault(picture, []).append((box, number))
        else:
            assert not isinstance(number, str)
            given = None if score is None else numbers[-1]
            self.rows[picture].append((box, number, given))
            written = picture, number, given, *box.tolist()
            self.repeated += [place] if written in self._written else []
            self._written.add(written)

    def finished(self, names: Sequence[str]) -> BoxAnnotations:
        """The annotations. Raises a ValueError where nothing was found."""
        if not self.rows:
            raise ValueError(f"{self.source}: lists no pictures. Check the path and the format.")
        try:
            pictures = collected(self.rows, self.ignored, are_regions=self.mark == _CROWD)
        except ValueError as error:
            raise ValueError(f"{self.source}: {error}") from None
        centres = np.array(self.centres, dtype=np.float64).reshape(-1, 2)
        if ignored := sum(map(len, self.ignored.values())):
            line = (
                f"{self.source}: {self.mark} is 1 for {ignored:,} of {self.count:,} boxes: they are no targets, and a "
                "detection of one is neither right nor wrong."
            )
            if ignored > self.count / 2:
                doubt = "Are they really no single, clear things? Some programs mark all masks so."
                log_once(f"{line} {doubt}", is_warning=True)
            else:
                log_once(line)
        problems, bad, repeated = tuple(self.problems), tuple(self.bad), tuple(self.repeated)
        return BoxAnnotations(
            tuple(names), pictures, self.sizes, problems, str(self.source), self.count, bad, repeated, centres
        )


def read_coco(path: Path, conventions: Conventions) -> BoxAnnotations:
    """Boxes of a COCO file: ``images``, ``annotations`` with ``bbox`` and perhaps ``score``, and ``categories``.

    Annotations with ``iscrowd`` 1 are ignored.

    Args:
        path: JSON file.
        conventions: of ``bbox``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such JSON.
    """
    document = _json(path)
    images, annotations, categories = (_objects(path, document, key) for key in ("images", "annotations", "categories"))
    out = _Collector(path, conventions, _CROWD)
    names_by_id, file_by_id = _listed(out, images, categories)
    places = [f"annotation {at} (id {one.get('id', 'missing')})" for at, one in enumerate(annotations, start=1)]
    _add_annotations(out, annotations, places, names_by_id, file_by_id)
    return out.finished(list(names_by_id.values()))


def read_coco_results(path: Path, truth: Path, conventions: Conventions) -> BoxAnnotations:
    """Detections of a COCO file of results: a list of ``image_id``, ``category_id``, ``bbox`` and perhaps ``score``.

    Args:
        path: JSON file; an empty list is one without detections.
        truth: COCO file with the pictures and classes that the ids name. All its pictures are in the result.
        conventions: of ``bbox``.

    Raises:
        FileNotFoundError: one of the files does not exist.
        ValueError: one of them is no such JSON.
    """
    document, rows = _json(truth), _json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: no list of objects. COCO results are a list of image_id, category_id, bbox, score.")
    out = _Collector(path, conventions)
    images, categories = _objects(truth, document, "images"), _objects(truth, document, "categories")
    names_by_id, file_by_id = _listed(out, images, categories)
    places = [f"row {at}" for at in range(1, len(rows) + 1)]
    _add_annotations(out, rows, places, names_by_id, file_by_id, all_or_none=True)
    return out.finished(list(names_by_id.values()))


def is_coco_results(path: Path) -> bool:
    """Whether a JSON file is a list, as COCO's results are; raises as ``read_coco`` does."""
    return isinstance(_json(path), list)


def _json(path: Path) -> Any:
    text = utf8_text(found_file(path))
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON: {str(error)[:200]}. Fetch or write the file again.") from None


def _objects(path: Path, document: Any, key: str) -> list[dict[str, Any]]:
    """The list of objects of a key of a COCO file."""
    rows = document.get(key) if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: {key} is not a list of objects. A COCO file has images, annotations, categories.")
    return rows


def _listed(
    out: _Collector, images: Sequence[dict[str, Any]], categories: Sequence[dict[str, Any]]
) -> tuple[dict[Any, str], dict[Any, str]]:
    """Names of classes and of pictures by their ids; the pictures and their sizes are added to `out`.

    Raises:
        ValueError: a key is missing, or two categories have one id or name, so that no box has a certain class.
    """
    try:
        names_by_id = {one["id"]: str(one["name"]) for one in categories}
        file_by_id = {one["id"]: str(one["file_name"]) for one in images}
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{out.source}: an image needs id and file_name, a category id and name; wrong: {error}."
        ) from None
    first: dict[tuple[str, Any], Any] = {}
    for at, one in enumerate(categories, start=1):
        for key in ("id", "name"):
            if (before := first.setdefault((key, one[key]), at)) != at:
                raise ValueError(
                    f"{out.source}: categories {before} and {at} have the {key} {one[key]!r}. Give each its own {key}."
                )
    for at, one in enumerate(images, start=1):
        picture, place = str(one["file_name"]), f"image {at} (id {one['id']})"
        out.list_picture(place, picture)
        before, also = first.setdefault(("image", one["id"]), (at, picture))
        if before != at:
            for number, other, name in ((before, at, also), (at, before, picture)):
                reason = f"image {other} has the same id, so that their boxes cannot be told apart; give each its own"
                out.refuse(f"image {number} (id {one['id']})", reason, name)
        if _is_size(one.get("height"), one.get("width")):
            out.sizes[picture] = (int(one["height"]), int(one["width"]))
    return names_by_id, file_by_id


def _add_annotations(
    out: _Collector,
    rows: Sequence[dict[str, Any]],
    places: Sequence[str],
    names_by_id: dict[Any, str],
    file_by_id: dict[Any, str],
    *,
    all_or_none: bool = False,  # whether a row without a score is bad where others have one
) -> None:
    place_of = {key: place for place, key in enumerate(names_by_id)}
    is_scored = all_or_none and any(one.get("score") is not None for one in rows)
    for place, one in zip(places, rows, strict=True):
        category, image, values, score = (one.get(key) for key in ("category_id", "image_id", "bbox", "score"))
        number: int | str = place_of.get(category, "") if isinstance(category, int | str) else ""
        if number == "":
            number = f"category_id {category!r} is none of the categories {_some(names_by_id)}"
        elif not isinstance(image, int | str) or image not in file_by_id:
            number = f"image_id {image!r} is none of the ids of images {_some(file_by_id)}"
        elif not isinstance(values, list):
            number = f"bbox is {values!r}, and should be a list of numbers"
        elif is_scored and score is None:
            number = "has no score, while others have one; give all of them a score, or none"
        picture = file_by_id.get(image, "") if isinstance(image, int | str) else ""
        out.add(place, picture, number, values or [], score, one.get(out.mark))


def write_coco(path: Path, annotations: BoxAnnotations, conventions: Conventions) -> None:
    """Writes a file that ``read_coco`` reads with the same conventions; see ``written_box`` for what it refuses.

    Detections are written: boxes that are ignored are left out.
    """
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for number, (name, one) in enumerate(annotations.pictures.items(), start=1):
        size = annotations.sizes.get(name)
        images.append({"id": number, "file_name": name, **({"height": size[0], "width": size[1]} if size else {})})
        for at, (box, kind) in enumerate(zip(one.boxes, one.classes.tolist(), strict=True)):
            row = {
                "id": len(rows) + 1,
                "image_id": number,
                "category_id": kind + 1,
                "bbox": written_box(box, conventions),
            }
            rows.append(row if one.scores is None else {**row, "score": float(one.scores[at])})
    categories = [{"id": at, "name": name} for at, name in enumerate(annotations.names, start=1)]
    write_json(path, {"images": images, "annotations": rows, "categories": categories})


def read_voc(source: Path, conventions: Conventions, names: Sequence[str] | None = None) -> BoxAnnotations:
    """Boxes of VOC files, one for each picture: ``object`` with ``name`` and ``BFOV``, or ``bndbox`` for corners.

    Objects with ``difficult`` 1 are ignored.

    Args:
        source: folder of XML files.
        conventions: of the numbers; of rectangles only ``corners``.
        names: the allowed classes; None takes all that occur, sorted.

    Raises:
        ValueError: a file is no such XML or declares a document type, whose entities could name other files; there are
            no files; the conventions are of other rectangles.
    """
    if conventions.boxes not in ("angles", "corners"):
        raise ValueError(f"boxes={conventions.boxes}: VOC files have angles or corners.")
    out = _Collector(source, conventions, _DIFFICULT)
    trees = [(path, _xml(path)) for path in _files(source, ".xml")]
    said = {_text(one, "name") for _, tree in trees for one in tree.iter("object")}
    allowed = list(names) if names is not None else sorted(name for name in said if name)
    keys = _VOC_ANGLES if conventions.boxes == "angles" else _VOC_CORNERS
    for path, tree in trees:
        picture = _text(tree, "filename") or path.stem
        height, width = (_number(_text(tree, f"size/{key}")) for key in ("height", "width"))
        out.list_picture(path.name, picture)
        if height and width and _is_size(height, width):
            out.sizes[picture] = (int(height), int(width))
        for at, one in enumerate(tree.iter("object"), start=1):
            place, name = f"{path.name}, object {at}", _text(one, "name")
            box = next(
                (each for each in one if each.tag.lower() == ("bfov" if keys == _VOC_ANGLES else "bndbox")), None
            )
            values = [] if box is None else [_text(box, key) for key in keys]
            if values and values[-1] == "" and keys == _VOC_ANGLES:
                values.pop()  # without a roll
            number: int | str = allowed.index(name) if name in allowed else ""
            if number == "":
                number = f"name {name!r} is none of the classes {_some(allowed)}"
            elif box is None:
                number = f"has no {'BFOV' if keys == _VOC_ANGLES else 'bndbox'}"
            out.add(place, picture, number, values, mark=_text(one, out.mark))
    return out.finished(allowed)


def read_yolo(
    source: Path,
    conventions: Conventions,
    names: Sequence[str],
    folder: Path | None = None,
    *,
    scores: Literal["none", "auto", "after roll"] = "none",
) -> BoxAnnotations:
    """Boxes of YOLO files, one for each picture: lines of a class's number and the numbers of a box.

    Args:
        source: folder of text files.
        conventions: of the numbers; of rectangles only ``shares``, as no size is stated.
        names: of the classes, by number from 0.
        folder: of the pictures, from which the name of the picture of each file is taken; None names pictures without a
            suffix. Two pictures for one file are a problem; those without a file are counted in the log.
        scores: whether detections end in one, as ``save_conf`` of YOLO writes them. ``auto`` takes the last number of
            all lines if it comes after the roll, or if all are from 0 to 1 and not all 0; ``after roll`` only the
            former, as boxes are known to have a roll.

    Raises:
        ValueError: a file is not UTF-8 text, there are no files, or the conventions are of other rectangles.
    """
    if conventions.boxes not in ("angles", "shares"):
        raise ValueError(f"boxes={conventions.boxes}: YOLO files have angles or shares, as they state no size.")
    out = _Collector(source, conventions)
    lines = {path: _lines(path) for path in _files(source, ".txt")}
    is_scored = scores != "none" and _ends_in_scores(
        [cells for its in lines.values() for _, cells in its], conventions, scores
    )
    there = {} if folder is None else _pictures_in(folder)
    for path, its in lines.items():
        found = there.get(spelling(path.stem), [path.stem])
        picture = found[0]
        out.list_picture(path.name, picture)
        if found[1:]:
            out.refuse(path.name, f"could be of {' and '.join(found)}; keep one of them in {folder}", picture)
        for at, cells in its:
            number: int | str = int(cells[0]) if cells[0].isdecimal() and int(cells[0]) < len(names) else ""
            if number == "":
                number = f"class {cells[0]} is none of 0 to {len(names) - 1}"
            values, score = (cells[1:-1], cells[-1]) if is_scored else (cells[1:], None)
            out.add(f"{path.name}, line {at}", picture, number, values, score)
    if others := there.keys() - {spelling(path.stem) for path in lines}:
        log_once(
            f"{source}: left out {counted(len(others), 'picture')} of {folder} without a .txt file of the same name, "
            f"such as {there[min(others)][0]}. An empty file states that there is no box in a picture."
        )
    return out.finished(names)


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The lines of a YOLO file that are not empty, with their numbers, in words."""
    return [(at, cells) for at, line in enumerate(utf8_text(path).splitlines(), start=1) if (cells := line.split())]


def _ends_in_scores(rows: Sequence[Sequence[str]], conventions: Conventions, scores: str) -> bool:
    """Whether all lines of YOLO detections, with a class first, end in a score; see ``read_yolo``."""
    counts = {len(row) - 1 for row in rows}
    if conventions.boxes != "angles":
        return counts == {5}
    last = [_number(row[-1]) for row in rows]
    are_shares = all(value is not None and 0 <= value <= 1 for value in last) and any(last)
    return counts == {6} or (scores == "auto" and counts == {5} and are_shares)


def _pictures_in(folder: Path) -> dict[str, list[str]]:
    """Names of the pictures of a folder, sorted, by their names without suffix in normal spelling."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in _SUFFIXES and path.is_file():
            found.setdefault(spelling(path.stem), []).append(path.name)
    return found


def box_file_kind(path: Path) -> str:
    """Form of a box file or folder: ``coco``, ``voc`` or ``yolo``; raises a ValueError for a folder of neither."""
    if not path.is_dir():
        return "coco"
    for suffix, kind in ((".xml", "voc"), (".txt", "yolo")):
        if any(path.glob(f"*{suffix}")):
            return kind
    raise ValueError(f"{path}: the folder has neither .xml (VOC) nor .txt (YOLO) files. Check the path.")


def box_files(folder: Path) -> list[Path]:
    """The files of a VOC or YOLO folder that hold its boxes."""
    return _files(folder, ".xml" if box_file_kind(folder) == "voc" else ".txt")


def read_segments(path: Path) -> dict[str, list[tuple[str, int, Any]]]:
    """The ``segmentation`` of each annotation of a COCO file: its place, class and value, by picture.

    The class of one that is ignored is counted on from the last class. Annotations of no class or picture, which
    ``read_coco`` reports, are left out. Raises as ``read_coco`` does.
    """
    document = _json(path)
    images, annotations, categories = (_objects(path, document, key) for key in ("images", "annotations", "categories"))
    names_by_id, file_by_id = _listed(_Collector(path, Conventions()), images, categories)
    place_of = {key: place for place, key in enumerate(names_by_id)}
    found: dict[str, list[tuple[str, int, Any]]] = {name: [] for name in file_by_id.values()}
    for at, one in enumerate(annotations, start=1):
        category, image = one.get("category_id"), one.get("image_id")
        is_known = isinstance(category, int | str) and isinstance(image, int | str)
        if is_known and category in place_of and image in file_by_id:
            place = f"annotation {at} (id {one.get('id', 'missing')})"
            number = place_of[category] + (len(place_of) if _is_marked(one.get(_CROWD)) else 0)
            found[file_by_id[image]].append((place, number, one.get("segmentation")))
    return found


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a document type: its entities could name other files, or grow without bound."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type, which annotations do not need. Delete the line <!DOCTYPE …>")


def _xml(path: Path) -> ElementTree.Element:
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, more than annotations of one picture have.")
    try:
        return ElementTree.fromstring(path.read_bytes(), parser=ElementTree.XMLParser(target=_NoDoctype()))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path}: no XML of annotations: {error}.") from None


def _files(source: Path, suffix: str) -> list[Path]:
    found = sorted(path for path in source.glob(f"*{suffix}") if path.is_file()) if source.is_dir() else []
    if not found:
        raise ValueError(f"{source}: there is no {suffix} file in this folder. Check the path of the annotations.")
    return found


def _text(node: ElementTree.Element, path: str) -> str:
    return (node.findtext(path) or "").strip()


def _number(value: Any) -> float | None:
    """A number, or a text of one, as float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _is_marked(value: Any) -> bool | None:
    """Whether a mark is 1 and not 0, as number or text, or missing; None for anything else."""
    if isinstance(value, str):
        value = {"true": 1, "false": 0, "unspecified": 0}.get(value.strip().lower(), value)
    number = 0 if value in (None, "") else _number(int(value) if isinstance(value, bool) else value)
    return bool(number) if number in (0, 1) else None


def _is_size(*sides: Any) -> bool:
    return all(isinstance(side, int | float) and math.isfinite(side) and side >= 1 for side in sides)


def _some(names: Iterable[Any]) -> str:
    """The first names of a list, in words."""
    every = [str(name) for name in names]
    return ", ".join(every[:10]) + (f" and {len(every) - 10} more" if len(every) > 10 else "")
