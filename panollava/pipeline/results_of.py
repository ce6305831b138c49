"""The answers that a checkpoint gave to a test set: read where they are on disk, else asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panollava.assemble.check import EvaluationOptions
from panollava.assemble.datasets import describe_split
from panollava.assemble.features import open_features
from panollava.assemble.sources import open_source
from panollava.evaluation.predictions import Prediction
from panollava.evaluation.read_predictions import read_answers
from panollava.evaluation.results import result_folder
from panollava.logs import LOG
from panollava.model.facade import PanoLlava
from panollava.pipeline.evaluate import Evaluation, evaluate_answers
from panollava.pipeline.restore import Restored
from panollava.store.options import StoreOptions
from panollava.tracking.tracker import Tracker
from panollava.training.precision import Compute

METRICS, PREDICTIONS = "metrics.json", "predictions.csv"


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
    source = open_source(dict(data), split, pano.crop)
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
            settings={**run.subject(), "split": split, "data": dict(data)},
        )


def find_answers(
    run: Restored, data: Mapping[str, Any], split: str, results_dir: Path, max_samples: int | None
) -> tuple[list[Prediction], int] | None:
    """The newest answers on disk of these weights to these questions, and their image tokens; None without any."""
    folder, subject = result_folder(results_dir, run.settings["experiment_name"]), run.subject()
    asked = {"split": split, "data": dict(data), "fingerprint": subject["fingerprint"], "crop": subject["crop"]}
    for path in sorted(folder.glob(f"predictions_*/{METRICS}"), reverse=True):
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
        except (json.JSONDecodeError, KeyError):
            LOG.warning("%s cannot be read and is passed over.", path)
            continue
        if {key: settings.get(key) for key in asked} != asked or "image_tokens" not in settings:
            continue
        answers = read_answers(path.with_name(PREDICTIONS))
        if max_samples is not None:
            answers = answers[:max_samples]
        if settings.get("max_samples") is None or len(answers) == max_samples:
            return answers, int(settings["image_tokens"])
    return None
