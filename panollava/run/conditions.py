"""What trained stages and answers depend on: recorded beside them, and compared before they are used again.

A record is a mapping of plain values. Keys that only one of two records has are not compared.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from panollava.checkpoint import BEST, LAST, STANDS_ON, TRAINED, checkpoints, follow, read_state
from panollava.component import outside_packages, outside_types
from panollava.crop.strategies import choosing_class
from panollava.data.source import DataSource, PlacesSource, processing_of
from panollava.data.world import WorldSource
from panollava.evaluation.measure import AUTO
from panollava.logs import LOG
from panollava.model.api import PanoLlava
from panollava.model.backbones import Backbones
from panollava.model.places import found_boxes, token_frames
from panollava.run.config_check import EvaluationOptions
from panollava.run_folder import (
    CONFIG,
    Experiment,
    as_written,
    described,
    flatten,
    prompt_date,
    recorded_metadata,
)
from panollava.stages.registry import stages_of
from panollava.store.identity import FileIdentity, class_digest, code_digest, package_digest
from panollava.training.precision import Compute

Record = Mapping[str, Any]
TEST_SET = ("questions", "references", "pictures")
"""Keys of the test set; the others are of the model and its decoding."""
_OF_MODEL = ("base", "vision", "language", "weights", "choice", "code", "prompt.template")
_DIGESTS = (*TEST_SET, "names", "places", "processing", *_OF_MODEL)
_DRAWN_TEXTS = 64
FAIR = ("generation", "precision")
"""Conditions that make runs hard to compare where they differ."""

FINISHED, SKIPPED = "finished", "skipped"
"""States of a stage."""
STARTED_WEIGHTS = "started_weights"
"""Entry of a stage's state: digest of the weights that it started from, None for new ones; older records lack it."""


def pending_stages(config: Mapping[str, Any], experiment: Experiment, known: FileIdentity) -> list[str]:
    """Stages of ``stage.run`` that are not finished in this experiment with this config, in order.

    Args:
        known: identifies weights, which may be large and are looked at in each start.

    Raises:
        ValueError: a stage's folder holds a run of another config, an unfinished one with ``resume=none``, or one
            that started from an earlier stage which has changed since, or which is to be trained further.
    """
    listed, replaced = list(config["stage"]["run"]), experiment.replaced
    pending = [name for name in listed if name in replaced or not _is_done(config, experiment, name)]
    for name in listed:
        changed = None if name in replaced else _changed_start(config, experiment, name, pending, known)
        if changed is not None:
            first = f"train it (stage={changed}), then this stage" if changed in pending else "train this stage"
            raise ValueError(
                f"{experiment.stage_folder(name)} was trained from an earlier {changed} stage than the "
                f"{'one that this start would train' if changed in pending else 'present one'}. Either {first} anew "
                f"(stage={name} overwrite=true), or give this run a name of its own (experiment_name=<name>)."
            )
    return pending


def _changed_start(
    config: Mapping[str, Any], experiment: Experiment, name: str, pending: list[str], known: FileIdentity
) -> str | None:
    """The earlier stage that a begun or finished stage would have other weights of if it started today."""
    earlier, state = stages_of(config["stage"])[name].starts_from, experiment.state(name)
    goes_on = config["resume"] == "auto" and STARTED_WEIGHTS in state and begun(experiment.stage_folder(name))
    if name in pending and not goes_on:
        return None
    digest, names_run = state.get(STARTED_WEIGHTS), config["init_from"] != "auto"
    if digest is None or (names_run and not set(earlier) & set(config["stage"]["run"])):
        return next((one for one in earlier if _is_newer(experiment, one, name, pending)), None)
    changed = None
    for one in earlier:
        if one in pending:
            return one
        if (best := follow(experiment.stage_folder(one) / BEST)) is not None:
            if known.identify(best / TRAINED) == digest:
                return None
            changed = changed or one
        if experiment.state(one).get("status") == FINISHED:  # the others would not be started from
            break
    return changed


def _is_done(config: Mapping[str, Any], experiment: Experiment, name: str) -> bool:
    state, folder = experiment.state(name), experiment.stage_folder(name)
    if state.get("status") == SKIPPED:
        return len(config["stage"]["run"]) > 1  # alone it is an error, which names the reason
    if state.get("status") != FINISHED and not checkpoints(folder):
        return False  # whatever its config: nothing of it can be lost
    recorded = recorded_config(folder)
    if recorded is None:
        return False
    experiment.check_same_config(name, config, recorded)
    epochs, steps = config["stage"][name]["epochs"], config["trainer"]["max_steps"]
    if state.get("status") == FINISHED and state.get("epochs", 0) >= epochs and state.get("max_steps") == steps:
        if state["epochs"] > epochs:
            LOG.warning(
                "Stage %s was trained for %d epochs and stays as it is: stage.%s.epochs=%d needs a run of its own "
                "(experiment_name=<name>) or overwrite=true.",
                name, state["epochs"], name, epochs,
            )  # fmt: skip
        return True
    if config["resume"] == "none" and begun(folder):
        raise ValueError(
            f"{folder} holds an unfinished run of this config. Continue it with resume=auto, or start it anew with "
            "overwrite=true."
        )
    return False


def begun(folder: Path) -> Path | None:
    """The checkpoint that an unfinished stage continues from."""
    return follow(folder / LAST) or follow(folder / BEST)


def _is_newer(experiment: Experiment, earlier: str, name: str, pending: list[str]) -> bool:
    """Whether ``earlier`` was, or is about to be, trained after ``name`` had started."""
    times = experiment.state(earlier).get("finished"), experiment.state(name).get("started")
    if earlier in pending or None in times:
        return earlier in pending
    finished, started = map(datetime.fromisoformat, map(str, times))  # clocks are put back once a year
    return finished > started


def recorded_config(folder: Path) -> dict[str, Any] | None:
    """The ``config.yaml`` of a stage's folder, None where there is none.

    Raises:
        ValueError: it is not YAML.
    """
    path, reason = folder / CONFIG, "it is empty"
    if not path.is_file():
        return None
    values: Any = None
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, ValueError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())[:200]
    if not isinstance(values, dict) or not values:
        raise ValueError(
            f"{path} does not say with which config the folder was trained ({reason}). Put the right one there, give "
            "this run a name of its own (experiment_name=<name>), or replace it (overwrite=true)."
        )
    return values


def recorded_inputs(folder: Path) -> dict[str, Any]:
    """The content of what a stage's folder was trained on, empty where its metadata do not record it."""
    found = recorded_metadata(folder).get("inputs")
    return dict(found) if isinstance(found, dict) else {}


def questions_record(source: DataSource, known: FileIdentity) -> dict[str, str]:
    """Digests of a split's questions, in order, of their references, and of their pictures."""
    questions = source.questions()
    return {
        "questions": _digest(
            (one.sample_id, one.image_id, one.history, one.question, one.question_type) for one in questions
        ),
        "references": _digest(one.references for one in questions),
        "pictures": _pictures(source, [source.question_picture(one) for one in questions], known),
    }


def training_record(source: DataSource, known: FileIdentity) -> dict[str, str]:
    """Digests of a split's records, as the first epoch reads them, and of their pictures."""
    return {
        "texts": _digest((source.record(place, 0).turns, source.directions(place)) for place in _told(source)),
        "pictures": pictures_digest(source, known),
        **_processing(source),
    }


def _processing(source: DataSource) -> dict[str, str]:
    """What makes the panoramas of a source of another package out of its pictures; empty for the others."""
    return {"processing": processing} if (processing := processing_of(source)) else {}


def pictures_digest(source: DataSource, known: FileIdentity) -> str:
    """Digest of the pictures of a split's records, in their order."""
    return _pictures(source, [source.picture(place) for place in range(len(source))], known)


def directions_digest(source: DataSource) -> str:
    """Digest of what allows the pictures of a split to be rotated, for stages that read no texts."""
    return _digest(source.directions(place) for place in _told(source))


def places_digest(source: DataSource) -> str:
    """Digest of the classes, boxes and masks of a split, as a stage that finds boxes reads them."""
    assert isinstance(source, PlacesSource)
    found = hashlib.sha256(json.dumps(source.class_names).encode())
    for index in _told(source):
        places = source.places(index)
        found.update(places.boxes.boxes.tobytes() + places.boxes.classes.tobytes())
        if (ignored := places.boxes.ignored) is not None:
            found.update(ignored.boxes.tobytes() + ignored.classes.tobytes())
        if places.pixels is not None:
            found.update(np.ascontiguousarray(places.pixels).data)  # not copied: it is as large as the picture
    return found.hexdigest()[:16]


def _told(source: DataSource) -> range:
    """Records whose texts and boxes are digested; of the built-in world a few, enough to notice other code."""
    return range(min(len(source), _DRAWN_TEXTS) if type(source) is WorldSource else len(source))


def answer_conditions(
    checkpoint: Path,
    settings: Mapping[str, Any],
    source: DataSource,
    known: FileIdentity,
    *,
    prompt: Mapping[str, Any] | None = None,
    precision: str | None = None,
    in_4bit: bool | None = None,
) -> dict[str, Any]:
    """All that the answers of a checkpoint depend on.

    Args:
        settings: ``model``, ``crop``, ``generation``, ``inputs`` and ``prompt`` of the run's metadata.
        source: the split with the questions.
        prompt: ``ChatFormat.record()`` of the model; None opens the tokenizer for it.
        precision: number format of the backbones; None leaves it to the machine.
        in_4bit: whether the language model that was in four bits in training still is, for which a machine may lack the
            package; None leaves it to the machine.
    """
    backbones = Backbones(settings["model"], settings["crop"], today=prompt_date(settings))
    if prompt is None:
        try:
            prompt = backbones.prompt.format.record()
        except FileNotFoundError:  # results are compared on machines that never saw the model: then it stays unknown
            prompt = None
    return {
        **questions_record(source, known),
        "prompt": prompt,
        "generation": settings["generation"],
        "precision": precision,
        **{part: _part_digest(backbones, part, settings, known) for part in ("vision", "language")},
        "weights": fingerprint(checkpoint, known),
        "crop": settings["crop"],
        "join": settings["model"].get("join"),
        **({"in_4bit": in_4bit} if settings["model"]["language"].get("load_in_4bit") else {}),
        **_newer_parts(settings, source),
    }


def _newer_parts(settings: Mapping[str, Any], source: DataSource) -> dict[str, Any]:
    """What answers depend on beside the keys of earlier versions, whose answers are those of today without it.

    ``tokens_per_side`` where there is one, the rule of a crop that chooses the views of each panorama, and the packages
    of other parts of the model, and of a source that processes pictures.
    """
    side = settings["model"].get("tokens_per_side")
    found = {} if side is None else {"tokens_per_side": side}
    if (kind := choosing_class(settings["crop"]["type"])) is not None:
        found["choice"] = class_digest(kind, "choose", "finest")
    parts = {"model": settings["model"], "crop": settings["crop"]}
    found |= _processing(source)
    if "processing" in found:
        parts["data"] = {"type": f"{type(source).__module__}:{type(source).__name__}"}
    return {**found, "packages": packages} if (packages := _packages(parts)) else found


def _packages(config: Mapping[str, Any]) -> dict[str, str]:
    """Version and code of each other package whose classes a config names; of those alone that are here."""
    modules = sorted({value.partition(":")[0] for _, value in outside_types(config)})
    found = {}
    for name, installed in outside_packages(config).items():
        code = package_digest(*(module for module in modules if module.partition(".")[0] == name))
        if code:
            found[name] = f"{installed}, code {code}"
    return found


def model_conditions(pano: PanoLlava, compute: Compute) -> dict[str, Any]:
    """Those of an open model, as keywords of ``answer_conditions``."""
    return {
        "prompt": pano.prompt.format.record(),
        "precision": compute.name,
        "in_4bit": pano.model.is_4bit,
    }


def place_conditions(
    checkpoint: Path,
    settings: Mapping[str, Any],
    source: DataSource,
    known: FileIdentity,
    *,
    precision: str | None = None,
) -> dict[str, Any]:
    """All that the detections of a checkpoint in a split depend on, and their scores.

    Args:
        settings: ``model``, ``crop`` and ``inputs`` of the run's metadata.
        source: the split; the names of its pictures count, as detections are kept under them.
        precision: number format of the encoder; None leaves it to the machine.
    """
    return {
        "pictures": pictures_digest(source, known),
        "names": _digest(source.image_id(index) for index in range(len(source))),
        "places": places_digest(source),
        "precision": precision,
        "vision": _part_digest(Backbones(settings["model"], settings["crop"]), "vision", settings, known),
        "weights": fingerprint(checkpoint, known),
        "base": (read_state(checkpoint).get(STANDS_ON) or {}).get("digest"),
        "crop": dict(settings["crop"]),
        "code": code_digest(found_boxes, token_frames),
        **_newer_parts(settings, source),
    }


def unusable_places(settings: Record, now: Record, max_samples: int | None) -> str:
    """Why recorded detections do not stand for present ones, in words; empty where they do.

    Args:
        settings: of the evaluation's ``metrics.json``; one of an older version lacks conditions.
        now: of ``place_conditions``.
        max_samples: number of pictures that are needed; None for all. Scores are of exactly so many.
    """
    recorded = settings.get("conditions") or {}
    if lacking := [key for key, value in now.items() if value is not None and recorded.get(key) is None]:
        return f"their record lacks {', '.join(lacking)}"
    found = differences(recorded, now)
    if settings.get("max_samples") != max_samples:
        found["max_samples"] = settings.get("max_samples"), max_samples
    return describe(found)


def _part_digest(backbones: Backbones, part: str, settings: Mapping[str, Any], known: FileIdentity) -> str | None:
    """Digest of the files of ``vision`` or ``language``, or of what the run recorded of them; None if unknown.

    What was recorded counts too where a folder stands in for a model of the hub, whose record is a commit.
    """
    found, recorded = backbones.record(part, known.identify), settings.get("inputs", {}).get(part)
    if not found or (recorded and ("files" in found) != ("files" in recorded)):
        found = recorded
    return None if found is None else _digest([found])


def fingerprint(checkpoint: Path, known: FileIdentity) -> str:
    """A short digest of the weights in a checkpoint: the same for the same weights in any folder."""
    return known.identify(checkpoint / TRAINED)[:16]


def differences(recorded: Record, now: Record) -> dict[str, tuple[Any, Any]]:
    """Keys that both records have and whose values differ: key -> (recorded, now)."""
    shared = [key for key in now if now[key] is not None and recorded.get(key) is not None]
    old, new = (flatten({key: each[key] for key in shared}) for each in (recorded, now))
    pairs = {key: (old.get(key), new.get(key)) for key in sorted({*old, *new})}
    return {key: (one, other) for key, (one, other) in pairs.items() if as_json(one) != as_json(other)}


def mismatch(settings: Record, now: Record, max_samples: int | None) -> dict[str, tuple[Any, Any]] | None:
    """Which conditions of an evaluation differ from the present ones; None where it recorded none.

    Args:
        settings: of its ``metrics.json``.
        max_samples: number of answers that are needed; None for all.
    """
    if not isinstance(settings.get("conditions"), Mapping):
        return None
    found, limit = differences(settings["conditions"], now), settings.get("max_samples")
    if limit is not None and (max_samples is None or max_samples > limit):
        found["max_samples"] = limit, max_samples
    return found


def scoring(options: EvaluationOptions, data: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation's scores depend on beside the answers; ``data`` is the section of its split."""
    found = {key: getattr(options, key) for key in ("blank", "words", "meteor", "clip")}
    # Defaults are left out, so that results from before there was the key have the same record.
    named = {"metrics": options.metrics, "measure": None if options.measure == AUTO else options.measure}
    named = {key: value for key, value in named.items() if value is not None}
    if data.get("score_by"):
        found["score_by"] = list(data["score_by"])
    return {**found, **named, "packages": _packages(named)} if named else found


def describe(found: Mapping[str, tuple[Any, Any]]) -> str:
    """Differences in words; of digests the keys alone."""
    return "; ".join(f"other {key}" if key in _DIGESTS else described(key, *values) for key, values in found.items())


def unequal(records: Mapping[str, Record]) -> list[str]:
    """A sentence for each condition of ``FAIR``, and four bits, in which several answers differ, given by name."""
    flat = {name: flatten({key: record.get(key) for key in (*FAIR, "in_4bit")}) for name, record in records.items()}
    lines = []
    for key in sorted({key for each in flat.values() for key in each}):
        # Only of models in four bits is it recorded whether they were in the answers.
        values = {name: each.get(key) for name, each in flat.items() if (key, each.get(key)) != ("in_4bit", None)}
        if len({json.dumps(value) for value in values.values()}) > 1:
            shown = ", ".join(f"{as_written(value)} ({name})" for name, value in values.items())
            lines.append(f"{key} is not the same for all: {shown}")
    return lines


def unlike_times(records: Mapping[str, Record]) -> list[str]:
    """Why the times of an answer of several evaluations may not compare; by name, empty records of older ones."""
    known = {name: record for name, record in records.items() if record}
    keys = dict.fromkeys(key for record in known.values() for key in record)
    parts = [
        f"{key} is {shown}" for key in keys if (shown := unlike({name: one.get(key) for name, one in known.items()}))
    ]
    if len(known) < len(records):
        lacking = [name for name in records if name not in known]
        parts.append(f"how it was measured is not recorded for {', '.join(lacking) if known else 'any'}")
    return [f"The times of an answer may not compare: {'; '.join(parts)}"] if parts else []


def unlike(values: Mapping[str, Any]) -> str:
    """The values of several, given by name, with the names that have each; empty where all have the same."""
    names: dict[str, list[str]] = {}
    for name, value in values.items():
        names.setdefault(str(value), []).append(name)
    return ", ".join(f"{value} ({', '.join(own)})" for value, own in names.items()) if len(names) > 1 else ""


def _pictures(source: DataSource, pictures: list[Path | str], known: FileIdentity) -> str:
    """Digest of pictures in order: of the content of files, or of the scenes that are drawn and of one drawing."""
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


def as_json(value: Any) -> str:
    """A value as JSON keeps it, so that a record that was read equals the one that was written."""
    return json.dumps(value, sort_keys=True, default=str)
