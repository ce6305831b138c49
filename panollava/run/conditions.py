"""What answers and trained weights depend on, recorded beside them, and compared before they are used again.

A record is a mapping of plain values. What a record does not hold, or cannot be found out now, is not compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from panollava.checkpoint import TRAINED
from panollava.data.source import DataSource
from panollava.evaluation.metrics import metrics_record
from panollava.model.backbones import Backbones
from panollava.run.config_check import EvaluationOptions
from panollava.run_folder import flatten, prompt_date
from panollava.store.identity import FileIdentity

Record = Mapping[str, Any]
ASKED = ("questions", "references", "pictures")
"""Keys that say what was asked; the others say who answered, and how."""
_DIGESTS = (*ASKED, "vision", "language", "weights", "prompt.template")
_DRAWN_TEXTS = 64
FAIR = ("generation", "precision")
"""Keys of how answers were given that are as a rule no subject of a comparison."""


def asked_record(source: DataSource, known: FileIdentity) -> dict[str, str]:
    """The content of a split's questions, in their order, and of the pictures that they are about."""
    questions = source.questions()
    return {
        "questions": _digest(
            (one.sample_id, one.image_id, one.history, one.question, one.question_type) for one in questions
        ),
        "references": _digest(one.references for one in questions),
        "pictures": _pictures(source, [source.question_picture(one) for one in questions], known),
    }


def learnt_record(source: DataSource, known: FileIdentity) -> dict[str, str]:
    """The content of a split's records, as the first epoch sees them, and of their pictures.

    Data that are drawn follow from what their pictures are drawn from: a few texts tell whether the code is the same.
    """
    is_drawn = len(source) > 0 and isinstance(source.picture(0), str)
    places = range(min(len(source), _DRAWN_TEXTS) if is_drawn else len(source))
    return {
        "texts": _digest((source.record(place, 0).turns, source.directions(place)) for place in places),
        "pictures": _pictures(source, [source.picture(place) for place in range(len(source))], known),
    }


def answer_conditions(
    checkpoint: Path,
    settings: Mapping[str, Any],
    source: DataSource,
    known: FileIdentity,
    *,
    prompt: Mapping[str, Any] | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """All that the answers of a checkpoint depend on.

    Args:
        checkpoint: of which the weights are.
        settings: of its run, as in ``checkpoint_metadata.json``; of it ``model``, ``crop``, ``generation``,
            ``inputs`` and ``prompt`` are read.
        source: the split that is asked.
        known: recognises files.
        prompt: ``ChatFormat.record()`` of the model; None opens the tokenizer for it.
        precision: number format of the backbones; None for whichever the machine chooses.
    """
    backbones = Backbones(settings["model"], settings["crop"], today=prompt_date(settings))
    recorded = settings.get("inputs", {})
    if prompt is None:
        try:
            prompt = backbones.prompt.format.record()
        except FileNotFoundError:  # results are compared on machines that never saw the model: then it stays unknown
            prompt = None
    parts = {part: backbones.record(part, known.identify) or recorded.get(part) for part in ("vision", "language")}
    return {
        **asked_record(source, known),
        "prompt": prompt,
        "generation": settings["generation"],
        "precision": precision,
        **{part: None if found is None else _digest([found]) for part, found in parts.items()},
        "weights": fingerprint(checkpoint, known),
        "crop": settings["crop"],
        "join": settings["model"].get("join"),
    }


def fingerprint(checkpoint: Path, known: FileIdentity) -> str:
    """A short digest of the weights in a checkpoint: the same for the same weights, wherever they lie."""
    return known.identify(checkpoint / TRAINED)[:16]


def differences(recorded: Record, now: Record) -> dict[str, tuple[Any, Any]]:
    """Keys of two records whose values differ: key -> (recorded, now); what only one of them knows is left out."""
    shared = [key for key in now if now[key] is not None and recorded.get(key) is not None]
    old, new = (flatten({key: each[key] for key in shared}) for each in (recorded, now))
    pairs = {key: (old.get(key), new.get(key)) for key in sorted({*old, *new})}
    return {key: (one, other) for key, (one, other) in pairs.items() if _plain(one) != _plain(other)}


def mismatch(settings: Record, now: Record, max_samples: int | None) -> dict[str, tuple[Any, Any]] | None:
    """Why the answers of an evaluation are not those that are wanted; empty where they are.

    Args:
        settings: of its ``metrics.json``.
        now: conditions of the answers that are wanted.
        max_samples: how many are wanted; None for all.

    Returns:
        None where the evaluation recorded no conditions.
    """
    if not isinstance(settings.get("conditions"), Mapping):
        return None
    found, limit = differences(settings["conditions"], now), settings.get("max_samples")
    if limit is not None and (max_samples is None or max_samples > limit):
        found["max_samples"] = limit, max_samples
    return found


def scoring(options: EvaluationOptions) -> dict[str, Any]:
    """What an evaluation's scores depend on beside the answers."""
    return {key: getattr(options, key) for key in ("blank", "words", "meteor", "clip")} | metrics_record(
        options.metrics
    )


def told(found: Mapping[str, tuple[Any, Any]]) -> str:
    """Differences in words; digests say nothing to people."""
    return "; ".join(
        f"other {key}" if key in _DIGESTS else f"{key}: {old!r} there, {new!r} now" for key, (old, new) in found.items()
    )


def unequal(records: Mapping[str, Record]) -> list[str]:
    """What makes answers of several models hard to compare beside the models: a sentence a key.

    Args:
        records: conditions of each one's answers, by name.
    """
    flat = {name: flatten({key: record.get(key) for key in FAIR}) for name, record in records.items()}
    lines = []
    for key in sorted({key for each in flat.values() for key in each}):
        values = {name: each.get(key) for name, each in flat.items()}
        if len({json.dumps(value) for value in values.values()}) > 1:
            lines.append(f"{key} is not the same for all: " + ", ".join(f"{v!r} ({n})" for n, v in values.items()))
    return lines


def _pictures(source: DataSource, pictures: list[Path | str], known: FileIdentity) -> str:
    """Digest of pictures in their order: by the content of files; by what drawn ones show, and how one is drawn."""
    files = known.identify_all(one for one in pictures if isinstance(one, Path))
    names = [one.partition(": ")[2] or one if isinstance(one, str) else files[one] for one in pictures]
    if any(isinstance(one, str) for one in pictures):
        names.append(hashlib.sha256(source.panorama(0).tobytes()).hexdigest())
    return _digest(names)


def _digest(values: Iterable[object]) -> str:
    found = hashlib.sha256()
    for value in values:
        found.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return found.hexdigest()[:16]


def _plain(value: Any) -> str:
    """A value as JSON keeps it, so that a record that was read equals the one that was written."""
    return json.dumps(value, sort_keys=True, default=str)
