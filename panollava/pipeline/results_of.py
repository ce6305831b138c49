"""The answers that a checkpoint gave to a test set: read where they are on disk, else asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panollava.assemble.check import EvaluationOptions
from panollava.assemble.conditions import answer_conditions, mismatch, told
from panollava.assemble.datasets import describe_split
from panollava.assemble.features import open_features
from panollava.assemble.sources import open_source
from panollava.data.records import Question, Source
from panollava.evaluation.predictions import Prediction
from panollava.evaluation.read_predictions import read_answers
from panollava.evaluation.results import METRICS, result_folder
from panollava.logs import LOG
from panollava.model.facade import PanoLlava
from panollava.pipeline.evaluate import Evaluation, evaluate_answers
from panollava.pipeline.restore import Restored
from panollava.store.catalogue import known_pictures
from panollava.store.options import StoreOptions
from panollava.tracking.tracker import Tracker
from panollava.training.precision import Compute


@dataclass(frozen=True)
class Answers:
    """Answers to a split, given now or before.

    Attributes:
        predictions: in the order of the questions.
        image_tokens: tokens that a panorama takes in the language model.
        conditions: what they depend on.
    """

    predictions: Sequence[Prediction]
    image_tokens: int
    conditions: Mapping[str, Any]


def answer_split(
    run: Restored,
    data: Mapping[str, Any],
    split: str,
    options: EvaluationOptions,
    compute: Compute,
    tracker: Tracker,
    *,
    pano: PanoLlava,
    store: StoreOptions,
    num_workers: int = 0,
) -> Evaluation:
    """Evaluates a checkpoint on a split.

    Args:
        run: the checkpoint.
        data: the ``data`` section.
        split: ``train``, ``val`` or ``test``.
        options: batch size, answer length, limits.
        compute: device and precision.
        tracker: gets the result.
        pano: its model.
        store: of the encoder's features.
        num_workers: processes that cut panoramas.
    """
    source, known = open_source(dict(data), split, pano.crop), known_pictures(store)
    prompt = pano.prompt.format.record()
    tracker.inputs([describe_split(data, split, source)])
    features = open_features(store, pano.model.vision.tower, pano.crop)
    with compute.autocast():
        return evaluate_answers(
            pano,
            source,
            options,
            experiment=run.settings["experiment_name"],
            tracker=tracker,
            num_workers=num_workers,
            features=features,
            conditions=answer_conditions(
                run.checkpoint, run.settings, source, known, prompt=prompt, precision=compute.name
            ),
            settings={**run.subject(known), "split": split, "data": dict(data)},
        )


def find_answers(
    run: Restored, source: Source, results_dir: Path, max_samples: int | None, conditions: Mapping[str, Any]
) -> Answers | None:
    """The newest answers on disk that were given under these conditions; the log says which, or what is in the way.

    Args:
        run: whose answers.
        source: the split that is asked.
        results_dir: where evaluations are kept.
        max_samples: how many questions are asked; None for all.
        conditions: see ``assemble.conditions``.
    """
    nearest: tuple[Path, dict[str, tuple[Any, Any]]] | None = None
    untold = None
    folder, asked = result_folder(results_dir, run.settings["experiment_name"]), source.questions()[:max_samples]
    for path in sorted(folder.glob(f"predictions_*/{METRICS}"), reverse=True):
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            settings = metrics["settings"]
        except (json.JSONDecodeError, KeyError):
            LOG.warning("%s cannot be read and is passed over.", path)
            continue
        found = mismatch(settings, conditions, max_samples)
        if found is None and settings.get("fingerprint") == conditions["weights"]:
            untold = path.parent
        if found and settings.get("stage") == run.stage and (nearest is None or len(found) < len(nearest[1])):
            nearest = path.parent, found
        if found is None or found or "image_tokens" not in settings:
            continue
        try:
            answers = read_answers(path.parent, metrics)[:max_samples]
        except (OSError, ValueError, KeyError) as error:
            LOG.warning("%s is passed over: %s.", path.parent, str(error).rstrip("."))
            continue
        if difference := first_difference(asked, answers):
            LOG.warning("%s was changed since it was written (%s) and is passed over.", path.parent, difference)
            continue
        LOG.info("Reusing the answers in %s, given on %s.", path.parent, metrics.get("created", "an unknown date"))
        return Answers(answers, int(settings["image_tokens"]), settings["conditions"])
    if nearest is not None:
        LOG.info("The answers in %s are not used: %s.", nearest[0], told(nearest[1]))
    elif untold is not None:
        LOG.info("%s does not record the conditions of its answers, so they are not used.", untold)
    return None


def first_difference(asked: Sequence[Question | Prediction], other: Sequence[Question | Prediction]) -> str:
    """What differs first between two lists of what was asked, with its sample id; empty where they are the same."""
    by_id = {one.sample_id: one for one in other}
    for one in asked:
        if (same := by_id.pop(one.sample_id, None)) is None:
            return f"{one.sample_id} is in only one of them"
        for part in ("image_id", "history", "question", "references", "kind"):
            values = getattr(one, part), getattr(same, part)
            if values[0] != values[1]:
                return f"{part} of {one.sample_id}: {values[0]!r} and {values[1]!r}"
    return f"{next(iter(by_id))} is in only one of them" if by_id else ""
