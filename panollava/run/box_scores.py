"""Scores of a file of detections against true boxes: conventions, reading, the table and the record.

A box file is a COCO file, a list of COCO results, a folder of VOC files or a folder of YOLO files. Its conventions are
words: a preset, then values of single conventions, such as ``[pandora, cw]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from panollava.component import closest
from panollava.data.box_doubts import convention_doubts, repeated_boxes
from panollava.data.box_files import box_file_kind, is_coco_results, read_coco, read_coco_results, read_voc, read_yolo
from panollava.data.boxes import PRESETS, BoxAnnotations, Conventions, same_names
from panollava.evaluation.detection import BoxScores, score_boxes
from panollava.evaluation.statistics import Interval, finite
from panollava.logs import LOG

_FIELDS = {value: one.name for one in fields(Conventions) for value in get_args(get_type_hints(Conventions)[one.name])}
"""Each value of a convention -> its convention; no two conventions share a value."""
_SIZES = {"small": "below 10 x 10°", "medium": "10 x 10° to 30 x 30°", "large": "30 x 30° and more"}


def chosen_conventions(words: str | Sequence[str] | None, key: str) -> Conventions:
    """The conventions that words state, upon those of this package.

    Args:
        words: a preset, values of single conventions, or both; None states nothing.
        key: key of the config, for messages.

    Raises:
        ValueError: a word is unknown, or two of them are presets or of one convention.
    """
    chosen: dict[str, str] = {}
    found = Conventions()
    listed = words if isinstance(words, list | tuple) else [] if words is None else [words]
    for word in map(str, listed):  # the type is checked with the other keys
        name = "preset" if word in PRESETS else _FIELDS.get(word)
        if name is None:
            close = closest(word, [*PRESETS, *_FIELDS])
            raise ValueError(
                f"{key}={word} is neither a preset nor a convention of boxes."
                + (f" Did you mean {close}?" if close else "")
                + f" Presets: {', '.join(PRESETS)}. Conventions: {', '.join(_FIELDS)}. Several: {key}=[pandora,cw]."
            )
        if name in chosen:
            raise ValueError(f"{key}: {chosen[name]} and {word} exclude each other. State one of them.")
        chosen[name] = word
    if "preset" in chosen:
        found = PRESETS[chosen.pop("preset")]
    return replace(found, **chosen)  # type: ignore[arg-type]


@dataclass(frozen=True)
class BoxReport:
    """Scores of detections, and how both files were read."""

    detections: Path
    truth: Path
    conventions: Conventions  # of the truth
    detection_conventions: Conventions
    least_score: float | None
    has_scores: bool  # whether detections have scores of their own; else their order is unknown
    scores: BoxScores

    def record(self) -> dict[str, Any]:
        """As JSON keeps it: what is not defined is null, shares are from 0 to 1."""
        scores = finite(asdict(self.scores))
        if not self.has_scores:
            scores["with_scores"] = None
        return {
            "detections": str(self.detections),
            "truth": str(self.truth),
            "conventions": asdict(self.conventions),
            "detection_conventions": asdict(self.detection_conventions),
            "least_score": self.least_score,
            "has_scores": self.has_scores,
            **scores,
        }

    def table(self) -> str:
        """Markdown; see ``box_table``."""
        return box_table(self.scores, has_scores=self.has_scores, least_score=self.least_score)


def box_table(found: BoxScores, *, has_scores: bool = True, least_score: float | None = None) -> str:
    """Markdown: AP and AR under both conventions of scores, then what needs no scores.

    Args:
        has_scores: whether detections have scores of their own.
        least_score: of the detections that count where no scores are needed; None for all.
    """
    both = [found.with_scores if has_scores else None, found.with_equal_scores]
    names = {"AP": "ap", "AP50": "ap50", "AP75": "ap75", "AR": "ar"}
    rows: list[tuple[str, list[Any]]] = []
    rows += [(name, [one and getattr(one, field) for one in both]) for name, field in names.items()]
    rows += [(f"AP, {size} ({what})", [one and one.ap_by_size[size] for one in both]) for size, what in _SIZES.items()]
    for name in found.with_equal_scores.ap_by_class:
        rows.append((f"AP, {name}", [one and one.ap_by_class[name] for one in both]))
        rows.append((f"AP50, {name}", [one and one.ap50_by_class[name] for one in both]))
    lines = ["| score (95 % interval over pictures, from five on) | given scores | equal scores |", "|---|---|---|"]
    lines += [f"| {name} | {' | '.join(map(_shown, values))} |" for name, values in rows]
    counted = f" of detections with a score of {least_score:g} or more" if least_score is not None else ""
    single = {
        "precision": found.precision,
        "recall": found.recall,
        "F1": found.f1,
        "mean IoU": found.mean_iou,
        "centre error in degrees": found.centre_error_deg,
        "count error": found.count_error,
    }
    lines += ["", f"| score at IoU 0.5{counted} | value |", "|---|---|"]
    lines += [f"| {name} | {_shown(value)} |" for name, value in single.items()]
    return "\n".join(lines)


def score_box_files(
    detections: Path,
    truth: Path,
    conventions: Conventions,
    found: Conventions,
    least_score: float | None,
    *,
    has_roll: bool = False,
) -> BoxReport:
    """Reads both files and scores the detections.

    Args:
        detections: COCO results, or another box file.
        truth: box file that names its classes.
        conventions: of the truth.
        found: of the detections.
        least_score: detections below it count for AP and AR alone; None counts all.
        has_roll: whether YOLO's detections are known to have a roll, so that the number after the extents is no score.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file or a box is bad, a picture or class is unknown, only some detections have scores, or there is
            a least score without scores.
    """
    for key, path in (("predictions", detections), ("truth", truth)):
        if not path.exists():
            raise FileNotFoundError(f"{key}={path}: there is no such file or folder. Check the path.")
    true = _checked(_read_truth(truth, conventions), "boxes", conventions)
    got = _checked(_read_detections(detections, truth, true, found, has_roll), "detection_boxes", found)
    if unknown := [name for name in got.pictures if name not in true.pictures]:
        names = ", ".join(list(true.pictures)[:3])
        raise ValueError(
            f"{detections}: the picture {unknown[0]} is none of the {len(true.pictures)} of {truth} ({names} …). "
            "Remove its detections, or add it to the truth, without boxes if it has none."
        )
    lacking = [name for name, one in got.pictures.items() if len(one.boxes) and one.scores is None]
    has_scores = not lacking
    if lacking and any(one.scores is not None for one in got.pictures.values()):
        raise ValueError(
            f"{detections}: detections of {lacking[0]} have no score, while those of other pictures have one. Give all "
            "of them a score, or none."
        )
    if least_score is not None and not has_scores:
        raise ValueError(f"least_score={least_score:g} has no effect: {detections} has no scores. Leave it out.")
    least = -math.inf if least_score is None else least_score
    scores = score_boxes(true.pictures, got.pictures, true.names, least_score=least)
    return BoxReport(detections, truth, conventions, found, least_score, has_scores, scores)


def _checked(annotations: BoxAnnotations, key: str, conventions: Conventions) -> BoxAnnotations:
    """The annotations without bad boxes; a ValueError says how the file was read, as that may be the mistake."""
    try:
        found = annotations.checked()
    except ValueError as error:
        raise ValueError(f"{error}\nThe file was read as {key}=[{','.join(asdict(conventions).values())}].") from None
    for doubt in convention_doubts(found, conventions):
        LOG.warning("%s: %s: state %s=%s.", annotations.source, doubt.what, key, doubt.way_out)
    if repeated := repeated_boxes(found):
        LOG.warning("%s: %s.", annotations.source, repeated)
    return found


def _read_truth(path: Path, conventions: Conventions) -> BoxAnnotations:
    kind = box_file_kind(path)
    if kind == "voc":
        return read_voc(path, conventions)
    if kind == "yolo":
        raise ValueError(f"truth={path}: YOLO files do not name their classes. Give the truth as COCO JSON or VOC XML.")
    if is_coco_results(path):
        raise ValueError(
            f"truth={path}: a list of results does not name pictures and classes. Give the COCO file with images, "
            "annotations and categories."
        )
    return read_coco(path, conventions)


def _read_detections(
    path: Path, truth_path: Path, truth: BoxAnnotations, conventions: Conventions, has_roll: bool
) -> BoxAnnotations:
    kind = box_file_kind(path)
    if kind == "voc":
        return read_voc(path, conventions, truth.names)
    if kind == "yolo":
        got = read_yolo(path, conventions, truth.names, scores="after roll" if has_roll else "auto")
        if any(one.scores is not None for one in got.pictures.values()):
            way_out = "" if has_roll else " If it is a roll, add ccw or cw to detection_boxes."
            LOG.info("%s: the last number of each line is read as its score.%s", path, way_out)
        return _with_suffixes(got, truth)
    if not is_coco_results(path):
        return same_names(read_coco(path, conventions), truth.names)
    if truth_path.is_dir():
        raise ValueError(
            f"{path}: COCO results name pictures and classes by the ids of a COCO file, and truth={truth_path} is a "
            "folder. Give a COCO file as truth, or detections with images and categories."
        )
    return read_coco_results(path, truth_path, conventions)


def _with_suffixes(found: BoxAnnotations, truth: BoxAnnotations) -> BoxAnnotations:
    """The names of pictures as the truth has them: YOLO files name pictures without a suffix."""
    names: dict[str, str] = {}
    for name in truth.pictures:
        stem = Path(name).stem
        if stem in names and stem in found.pictures:
            raise ValueError(f"{found.source}: {stem}.txt may be of {names[stem]} or of {name}. Use COCO JSON.")
        names[stem] = name
    return replace(found, pictures={names.get(stem, stem): one for stem, one in found.pictures.items()})


def _shown(value: Interval | float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, Interval) else f"{100 * value:.1f} %"
