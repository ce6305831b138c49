"""Evaluation of a detection stage: what it finds in a split, scored and written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from panollava.batch import Batch
from panollava.checkpoint import find_checkpoint
from panollava.crop.boxes import IGNORED, NOTHING, PictureBoxes, Places
from panollava.data.box_files import read_coco, write_coco
from panollava.data.boxes import BoxAnnotations, Conventions, renumbered
from panollava.data.source import DataSource, PlacesSource
from panollava.disk import flush, read_document, rename_free, temporary_folder
from panollava.evaluation.detection import BoxScores, MaskScores, score_boxes, score_masks
from panollava.evaluation.drawing import encode_png
from panollava.evaluation.gallery import places_page
from panollava.evaluation.predictions import METRICS
from panollava.evaluation.results import result_folder
from panollava.evaluation.statistics import Interval, finite
from panollava.logs import LOG, counted
from panollava.model.backbones import Backbones
from panollava.model.detector import SURE, Detections, PanoDetector, mask_size
from panollava.run.box_scores import box_table
from panollava.run.conditions import place_conditions
from panollava.run.config_check import EvaluationOptions
from panollava.run.data import GREY, RunData
from panollava.run.features import open_features
from panollava.run.restore import Restored
from panollava.run.run import Run, finding_stage
from panollava.run.sources import part_of, without_boxes
from panollava.run.tools import Tools
from panollava.training.options import StageOptions

DETECTIONS, MASKS, PICTURE = "detections.json", "masks", "detections.png"
SHOWN = 2
"""Panoramas in the picture of an evaluation."""


@dataclass(frozen=True)
class PlaceEvaluation:
    """Scores of what a detection stage found in a split, and where they are written."""

    names: tuple[str, ...]  # of the classes
    boxes: BoxScores
    masks: MaskScores | None  # None for data without masks, or whose masks show no class
    blank: BoxScores | None  # of a blank picture in place of each one
    folder: Path

    def summary(self, title: str) -> str:
        """The tables."""
        found = self.boxes
        counts = f"{counted(found.pictures, 'picture')}, {found.true_boxes:,} true boxes"
        lines = [f"\n{title}, {counts}:\n", box_table(found, least_score=SURE)]
        if self.masks is not None:
            lines += ["", "| mean IoU of masks | value |", "|---|---|"]
            lines += [f"| by solid angle | {self.masks.by_solid_angle} |", f"| by pixel | {self.masks.by_pixel} |"]
            lines += [
                f"| {name}, by solid angle | {'–' if value is None else f'{100 * value:.1f} %'} |"
                for name, value in self.masks.of_class.items()
            ]
        if self.blank is not None:
            blank = self.blank.with_scores
            lines += ["", f"On blank pictures: AP {blank.ap}, AP50 {blank.ap50}."]
        return "\n".join([*lines, ""])

    def metrics(self) -> dict[str, float]:
        """The main scores, for the tracker."""
        scores, equal = self.boxes.with_scores, self.boxes.with_equal_scores
        values: dict[str, Interval | None] = {
            "AP": scores.ap, "AP50": scores.ap50, "AP75": scores.ap75, "AR": scores.ar, "AP_equal_scores": equal.ap,
            "AP50_equal_scores": equal.ap50, "precision": self.boxes.precision, "recall": self.boxes.recall,
            "F1": self.boxes.f1, "box_IoU": self.boxes.mean_iou, "centre_error_deg": self.boxes.centre_error_deg,
            "count_error": self.boxes.count_error,
        }  # fmt: skip
        if self.masks is not None:
            values |= {"mIoU": self.masks.by_solid_angle, "mIoU_by_pixel": self.masks.by_pixel}
        if self.blank is not None:
            values["AP_blank"] = self.blank.with_scores.ap
        return {name: value.value for name, value in values.items() if value is not None}


def evaluate_run_places(run: Run) -> None:
    """Evaluates the run's detection stage, if it has one that was not evaluated yet."""
    if not run.places_due:
        return
    name, test = finding_stage(run.cfg.stage.run, run.stages), run.data.test
    assert name is not None
    assert test is not None
    folder = run.experiment.stage_folder(name)
    checkpoint = find_checkpoint(folder)
    settings = {"experiment_name": run.experiment.name, "stage": name, "model": run.backbones.model}
    settings |= {key: run.plain[key] for key in ("crop", "data")} | {"stage_settings": run.plain["stage"][name]}
    settings |= {"classes": list(getattr(test, "class_names", ())), "inputs": run.inputs(name)}
    device: dict[str, Any] = {"device": run.compute.device, "dtype": run.compute.dtype}
    detector = PanoDetector.from_checkpoint(checkpoint, settings, **device)
    result = evaluate_places(
        Restored(checkpoint, settings),
        detector,
        test,
        "test",
        EvaluationOptions(**run.plain["evaluation"]),
        run.tools,
    )
    run.experiment.record(name, evaluated=str(result.folder))
    LOG.info("%s", result.summary("Test split"))
    LOG.info("Detections, masks and scores: %s", result.folder)


def evaluate_places(
    run: Restored,
    detector: PanoDetector,
    source: DataSource,
    split: str,
    options: EvaluationOptions,
    tools: Tools,
) -> PlaceEvaluation:
    """Finds what is where in a split, scores it, and records the result on disk and in the tracker.

    Raises:
        ValueError: the split has no boxes, or classes that the stage has not learnt.
    """
    if not isinstance(source, PlacesSource):
        raise ValueError(f"data={source.name} has no boxes. Use data=boxes, or the built-in world (data=world).")
    if problem := without_boxes(source, options.max_samples):
        raise ValueError(problem)
    number = as_learnt(source.class_names, detector.names)
    truth: dict[str, PictureBoxes] = {}
    found: dict[str, Detections] = {}
    true_masks: dict[str, np.ndarray] = {}
    blanks: dict[str, PictureBoxes] = {}
    for index, places, one, nothing in _detections(run, detector, source, options, tools):
        name = source.image_id(index)
        if nothing is not None:
            blanks[name] = nothing.boxes
        truth[name] = renumbered(places.boxes, number)
        found[name] = one
        if places.pixels is not None:
            true_masks[name] = number[resized(places.pixels, one.mask.shape)]
    names = detector.names
    scores = score_boxes(truth, {name: one.boxes for name, one in found.items()}, names, least_score=SURE)
    masks = None
    if any((mask >= 0).any() for mask in true_masks.values()):
        masks = score_masks(true_masks, {name: found[name].mask for name in true_masks}, names)
    blank = score_boxes(truth, blanks, names, least_score=SURE) if options.blank else None
    settings = {
        **run.subject(tools.known),
        "split": split,
        "max_samples": options.max_samples,
        "conditions": place_conditions(run.checkpoint, run.settings, source, tools.known, precision=tools.compute.name),
    }
    parts = {"boxes": scores, "masks": masks, "blank": blank}
    document = {key: None if one is None else asdict(one) for key, one in parts.items()} | {"settings": settings}
    experiment, picture = run.settings["experiment_name"], _picture(source, found, run)
    folder = _write(result_folder(Path(options.results_dir), experiment), experiment, found, names, document, picture)
    result = PlaceEvaluation(names, scores, masks, blank, folder)
    tools.tracker.metrics({f"test/{name}": value for name, value in result.metrics().items()}, step=0)
    tools.tracker.folder(folder, "detection")
    tools.tracker.flush()
    return result


def as_learnt(names: Sequence[str], learnt: Sequence[str]) -> np.ndarray:
    """Position of each class of data among those that a stage has learnt ``(C + 2,)``.

    The last two entries are those of ``IGNORED`` and ``NOTHING``, which are negative and stay as they are.

    Raises:
        ValueError: a class is none of those.
    """
    if unknown := [name for name in names if name not in learnt]:
        raise ValueError(
            f"data: the class {unknown[0]} is none that the stage has learnt ({', '.join(learnt)}). Evaluate on data "
            "whose classes are all among these, or train with it."
        )
    return np.array([*(learnt.index(name) for name in names), IGNORED, NOTHING])


def _detections(
    run: Restored, detector: PanoDetector, source: DataSource, options: EvaluationOptions, tools: Tools
) -> Iterator[tuple[int, Places, Detections, Detections | None]]:
    """Number of each record of a split, with what is in its picture, what is found there, and in grey views of it."""
    backbones = Backbones(run.settings["model"], run.settings["crop"], dtype=detector.vision.tower.dtype)
    vars(backbones).update(crop=detector.crop, tower=detector.vision.tower, outline=detector.vision)
    section = {**part_of(run.settings["stage_settings"], StageOptions), "batch_size": options.batch_size}
    features = open_features(tools.store, detector.vision.tower, detector.crop)
    loaded = RunData(source, source, None, backbones).batches(
        None, StageOptions(**section), num_workers=tools.num_workers, features=features
    )
    assert isinstance(source, PlacesSource)
    first, most = 0, options.max_samples or len(source)
    nothing: list[Detections] | None = None  # in grey views, which are the same where cameras are
    for batch in loaded.validation():
        indices = range(first, first + len(batch))
        true = [source.places(index) for index in indices]  # once: a mask takes long to read or to draw
        sizes = [None if one.pixels is None else mask_size(one.pixels.shape) for one in true]
        with tools.compute.autocast():
            found = detector.find(batch.to(tools.compute.device), sizes)
            if options.blank and (nothing is None or detector.crop.is_adaptive):
                rows = batch.cameras if detector.crop.is_adaptive else batch.cameras[:1]
                nothing = detector.find(_blank(detector, rows.cpu()).to(tools.compute.device), [None] * len(rows))
        greys = (nothing if len(nothing) > 1 else nothing * len(true)) if nothing else [None] * len(true)
        yield from list(zip(indices, true, found, greys, strict=True))[: most - first]
        first += len(batch)
        if first >= most:
            return


def _blank(detector: PanoDetector, cameras: Tensor) -> Batch:
    """Grey views of pictures with cameras ``(B, V, C)``."""
    pixels = torch.full((*cameras.shape[:2], 3, *detector.crop.view_size), GREY, dtype=torch.uint8)
    return Batch(["blank"] * len(cameras), pixels, cameras, torch.ones(cameras.shape[:2], dtype=torch.bool))


def resized(pixels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Classes (H, W) at another size, those of the nearest pixels."""
    return cv2.resize(pixels.astype(np.int16), (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)


def _picture(source: DataSource, found: Mapping[str, Detections], run: Restored) -> bytes:
    """A PNG of the first panoramas with what is in them and what was found."""
    assert isinstance(source, PlacesSource)
    panels = []
    for index in range(min(SHOWN, len(found))):
        name, panorama, true = source.image_id(index), source.panorama(index), source.places(index)
        one = found[name]
        assert one.boxes.scores is not None
        kept = one.boxes.scores >= SURE
        boxes = PictureBoxes(one.boxes.boxes[kept], one.boxes.classes[kept], one.boxes.scores[kept])
        number = as_learnt(source.class_names, one.names)
        pixels = None if true.pixels is None else number[true.pixels]
        truth = Places(renumbered(true.boxes, number), pixels)
        panels.append((f"{name}: true", panorama, truth))
        panels.append((f"{name}: found", panorama, Places(boxes, one.mask if one.mask.size else None)))
    names = next(iter(found.values())).names
    note = f"Found boxes have a score of {SURE} or more."
    return encode_png(places_page(f"{run.settings['experiment_name']}: {source.name}", panels, names, note))


def _write(
    parent: Path,
    experiment: str,
    found: Mapping[str, Detections],
    names: Sequence[str],
    document: Mapping[str, Any],
    picture: bytes,
) -> Path:
    """Writes detections (COCO), masks (PNG, a class is its position plus one), a picture and scores, all or nothing.

    Returns:
        A new folder, ``detections_<time>``.
    """
    now = datetime.now()
    head = {"experiment_name": experiment, "created": now.isoformat(timespec="seconds"), "measure": "AP"}
    record = json.loads(json.dumps({**head, "classes": names, **document}, default=str))
    target = parent / f"detections_{now:%Y%m%d_%H%M%S}"
    with temporary_folder(target) as temporary:
        text = json.dumps(finite(record), indent=2, ensure_ascii=False)
        (temporary / METRICS).write_text(text, encoding="utf-8")
        (temporary / PICTURE).write_bytes(picture)
        write_detections(temporary, found, names)
        for path in temporary.rglob("*"):
            flush(path)
        return rename_free(temporary, target)


def _mask_file(folder: Path, number: int) -> Path:
    """The mask of a picture by its id in ``detections.json``: names of pictures may be no names of files."""
    return folder / MASKS / f"{number}.png"


def write_detections(folder: Path, found: Mapping[str, Detections], names: Sequence[str]) -> None:
    """Writes boxes and masks of pictures into the folder of an evaluation; ``read_detections`` reads them."""
    sizes = {name: one.mask.shape for name, one in found.items() if one.mask.size}
    boxes, dtype = {name: one.boxes for name, one in found.items()}, np.uint8 if len(names) < 255 else np.uint16
    write_coco(folder / DETECTIONS, BoxAnnotations(tuple(names), boxes, sizes), Conventions())
    for number, one in enumerate(found.values(), start=1):
        if one.mask.size:
            _mask_file(folder, number).parent.mkdir(exist_ok=True)
            cv2.imwrite(str(_mask_file(folder, number)), (one.mask + 1).astype(dtype))


def read_detections(folder: Path) -> tuple[dict[str, PictureBoxes], dict[str, np.ndarray]]:
    """Boxes, and the class of each pixel (H, W), of the pictures in the folder of an evaluation.

    Raises:
        FileNotFoundError: a mask is missing.
    """
    found, masks = read_coco(folder / DETECTIONS, Conventions()), {}
    for number, name in enumerate(found.pictures, start=1):  # the ids that ``write_coco`` gives
        path = _mask_file(folder, number)
        if name not in found.sizes:  # without a mask
            continue
        if (values := cv2.imread(str(path), cv2.IMREAD_UNCHANGED)) is None:
            raise FileNotFoundError(f"{path}: there is no such mask. Delete {folder}, so that it is made again.")
        masks[name] = values.astype(np.int16) - 1
    return found.pictures, masks


def recorded_ap(folder: Path) -> float:
    """AP of a recorded evaluation."""
    value = read_document(folder / METRICS)["boxes"]["with_scores"]["ap"]["value"]
    return float(value) if value is not None else math.nan
