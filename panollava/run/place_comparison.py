"""Compares runs of detection stages on the same pictures: AP, AP50 and mIoU with paired tests."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from panollava.crop.boxes import PictureBoxes
from panollava.data.boxes import renumbered
from panollava.data.source import DataSource, PlacesSource
from panollava.disk import csv_text, read_document, write_file
from panollava.evaluation.comparison import difference_text, ends_of
from panollava.evaluation.detection import SWAPS, PlaceComparison, compare_boxes, compare_masks
from panollava.evaluation.measure import AUTO
from panollava.evaluation.predictions import METRICS
from panollava.evaluation.results import result_folder
from panollava.evaluation.statistics import LEVEL, Interval, holm, rounded
from panollava.logs import LOG, counted
from panollava.model.detector import PanoDetector
from panollava.run.conditions import place_conditions, unequal, unusable_places
from panollava.run.data import data_name, evaluation_options
from panollava.run.evaluate_places import as_learnt, evaluate_places, read_detections, resized
from panollava.run.options import CompareOptions
from panollava.run.restore import Restored
from panollava.run.sources import open_source
from panollava.run.tools import Tools
from panollava.run.tracker import open_tracker
from panollava.store.catalogue import StoreOptions
from panollava.store.identity import FileIdentity
from panollava.training.precision import recorded_compute


@dataclass(frozen=True)
class Found:
    """What a run found in a split, and its scores."""

    boxes: dict[str, PictureBoxes]
    masks: dict[str, np.ndarray]  # (H, W), by picture
    scores: dict[str, Interval]
    conditions: Mapping[str, Any]


def compare_detections(
    runs: Mapping[str, Restored], data: dict[str, Any], options: CompareOptions, sections: dict[str, Any]
) -> None:
    """Scores every run and tests each two; writes tables into ``out``.

    Args:
        runs: by name.
        options: the plain keys of ``conf/compare.yaml``, checked.
        sections: its other keys.

    Raises:
        ValueError: the data have no boxes, the runs have learnt different classes, or a key is of answers alone.
    """
    of_answers = {
        "table": options.table,
        "words": options.words != "unicode",
        "score_by": options.score_by,
        "measure": sections["evaluation"]["measure"] != AUTO,
        **{f"generation.{key}": value is not None for key, value in sections["generation"].items()},
    }
    if idle := [key for key, value in of_answers.items() if value]:
        raise ValueError(
            f"{', '.join(idle)}: no effect on runs of stage detect, which give no answers: they are compared by AP, "
            "AP50 and mIoU, in comparison.md and scores.csv. Leave it out."
        )
    store = StoreOptions(**sections["store"])
    known = store.file_identity()
    classes = {name: tuple(run.settings["classes"]) for name, run in runs.items()}
    (first, names), *others = classes.items()
    for name, other in others:
        if other != names:
            raise ValueError(
                f"{first} has learnt the classes {', '.join(names)}, and {name} {', '.join(other)}: their scores are "
                "means over different things. Compare runs of the same classes."
            )
    found = {name: _found(name, run, data, options, store, known) for name, run in runs.items()}
    source = open_source(data, options.split, runs[first].reader)
    truth, masks = _truth(source, names, found[first])
    verdicts = _verdicts(truth, masks, found, len(names))
    title = f"{counted(len(runs), 'run')} on {data_name(options, data)}, {counted(len(truth), 'picture')}"
    text = _markdown(title, found, verdicts)
    LOG.info("\n%s", text)
    for line in unequal({name: one.conditions for name, one in found.items()}):
        LOG.warning("%s.", line)
        text += f"\n{line}.\n"
    out = Path(options.out).expanduser()
    write_file(out / "comparison.md", text)
    columns = list(next(iter(found.values())).scores)
    rows = [[name, *(end for key in columns for end in ends_of(one.scores[key]))] for name, one in found.items()]
    header = ["run", *(f"{key}{end}" for key in columns for end in ("", " low", " high"))]
    write_file(out / "scores.csv", csv_text([header, *rows]))
    tags = {"panollava.compared": ", ".join(runs)}
    placed: dict[str, Any] = {"outbox": out, "job": "compare", "about": [run.checkpoint for run in runs.values()]}
    with open_tracker(sections["tracking"], run_name=f"compare {' '.join(runs)}"[:200], tags=tags, **placed) as tracker:
        tracker.folder(out, "comparison")
    LOG.info("Tables: %s", out)


def _found(
    name: str, run: Restored, data: dict[str, Any], options: CompareOptions, store: StoreOptions, known: FileIdentity
) -> Found:
    """What a run found, read where it is on disk under the same conditions."""
    now = place_conditions(run.checkpoint, run.settings, open_source(data, options.split, run.reader), known)
    parent, newest = result_folder(Path(options.results_dir), run.settings["experiment_name"]), ""
    for folder in sorted(parent.glob("detections_*"), reverse=True):
        try:
            document = read_document(folder / METRICS)
            unusable = unusable_places(document.get("settings", {}), now, options.max_samples)
            found = None if unusable else _read(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            LOG.warning("%s cannot be read and is skipped (%r).", folder, error)
            continue
        if found is not None:
            LOG.info("Reusing the detections in %s.", folder)
            return found
        newest = newest or f"The detections in {folder} are not used: {unusable}."
    if newest:
        LOG.info("%s", newest)
    LOG.info("%s has no detections in these pictures yet: they are made now.", name)
    compute = recorded_compute(options.device, run.settings["precision"])
    detector = PanoDetector.from_checkpoint(run.checkpoint, run.settings, device=compute.device, dtype=compute.dtype)
    recorded = run.settings["evaluation"]
    evaluation = evaluation_options(options, recorded, **{**recorded, "max_samples": options.max_samples})
    source = open_source(data, options.split, detector.crop)
    tools = Tools(compute, store, known, num_workers=options.num_workers)
    return _read(evaluate_places(run, detector, source, options.split, evaluation, tools).folder)


def _read(folder: Path) -> Found:
    document = read_document(folder / METRICS)
    boxes, masks = read_detections(folder)
    scores = {key: Interval(**document["boxes"]["with_scores"][key.lower()]) for key in ("AP", "AP50", "AP75", "AR")}
    if document["masks"] is not None:
        scores["mIoU"] = Interval(**document["masks"]["by_solid_angle"])
    return Found(boxes, masks, scores, document["settings"]["conditions"])


def _truth(
    source: DataSource, names: Sequence[str], found: Found
) -> tuple[dict[str, PictureBoxes], dict[str, np.ndarray]]:
    """True boxes of the pictures in which something was looked for, and true masks at the size of those found."""
    assert isinstance(source, PlacesSource)
    number = as_learnt(source.class_names, names)
    boxes, masks = {}, {}
    for index in range(len(source)):
        picture = source.image_id(index)
        if picture not in found.boxes:
            continue
        places = source.places(index)
        boxes[picture] = renumbered(places.boxes, number)
        if places.pixels is not None and picture in found.masks:
            masks[picture] = number[resized(places.pixels, found.masks[picture].shape)]
    return boxes, masks


def _verdicts(
    truth: Mapping[str, PictureBoxes], masks: Mapping[str, np.ndarray], found: Mapping[str, Found], classes: int
) -> list[tuple[str, str, PlaceComparison, float]]:
    """Each two runs by each score, with the p-value after Holm's correction for the number of pairs."""
    rows: list[tuple[str, str, PlaceComparison]] = []
    pairs = list(itertools.combinations(found.items(), 2))
    swaps = SWAPS * math.ceil(len(pairs) / 25)
    for number, ((one, first), (other, second)) in enumerate(pairs, start=1):
        LOG.info("Pair %d of %d: %s less %s, with %s swaps.", number, len(pairs), other, one, f"{swaps:,}")
        scores = compare_boxes(truth, first.boxes, second.boxes, classes, swaps=swaps)
        if masks:
            scores.append(compare_masks(masks, first.masks, second.masks, classes, swaps=swaps))
        rows += [(one, other, score) for score in scores]
    verdicts = []
    for name in dict.fromkeys(row[2].score for row in rows):
        own = [row for row in rows if row[2].score == name]
        adjusted, _ = holm([row[2].p_value for row in own])
        verdicts += [(*row, p) for row, p in zip(own, adjusted, strict=True)]
    return verdicts


def _markdown(
    title: str, found: Mapping[str, Found], verdicts: Sequence[tuple[str, str, PlaceComparison, float]]
) -> str:
    columns = list(next(iter(found.values())).scores)
    lines = [f"# {title}", "", f"| run | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    ranked = sorted(found.items(), key=lambda pair: -pair[1].scores["AP"].value)
    lines += [f"| {name} | {' | '.join(str(one.scores[key]) for key in columns)} |" for name, one in ranked]
    lines += ["", "| score | runs | difference | adjusted p | differ |", "|---|---|---|---|---|"]
    for one, other, score, p in verdicts:
        gap, shown = difference_text(score.difference), rounded(p, 4, LEVEL)
        lines.append(f"| {score.score} | {other} less {one} | {gap} | {shown} | {'yes' if p < LEVEL else 'no'} |")
    lines += [
        "",
        "p-values of a permutation test that swaps what two runs found in a picture, after Holm's correction for the "
        "number of pairs; intervals are 95 % ones of the jackknife over pictures, from five on, and are not corrected. "
        "Differences over seeds are not tested, so this is about these trained models and not about their settings.",
        "",
    ]
    return "\n".join(lines)
