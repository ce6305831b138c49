"""Certifies a checkpoint: asks it about panoramas that are shown in other ways, and records what follows."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval, MinLen

from panollava.component import allow
from panollava.data.source import FREE_TEXT, DataSource, Question
from panollava.data.world import WorldSource
from panollava.disk import (
    csv_text,
    read_document,
    rename_free,
    temporary_folder,
    write_file,
    write_json,
)
from panollava.evaluation.box_words import asks_box
from panollava.evaluation.certificate_report import Certificate, certificates_table, fired, judge, picture, report
from panollava.evaluation.certificates import NAMES, Name, Plan, Shown, ask, focused, make_plan
from panollava.evaluation.changes import UNCHANGED, Change, tile_step_deg
from panollava.evaluation.exact_match import is_correct
from panollava.evaluation.results import result_folder
from panollava.logs import LOG, counted
from panollava.model.api import PanoLlava
from panollava.model.fusion import crop_misfits
from panollava.run.changed import ModelSubject, directions_of, scene_of
from panollava.run.conditions import FAIR, TEST_SET, answer_conditions, fingerprint, model_conditions
from panollava.run.data import data_name, data_overrides, describe_split, evaluation_options
from panollava.run.options import AskOptions
from panollava.run.restore import Restored, changed_crop, restore
from panollava.run.sources import open_source
from panollava.run.tools import Tools
from panollava.run.tracker import open_tracker
from panollava.store.catalogue import StoreOptions
from panollava.store.identity import FileIdentity
from panollava.tracking.tracker import Tracker
from panollava.training.precision import recorded_compute

DOCUMENT = "certificates.json"
ASKED = ("split", "max_pictures", "tilt_deg", "least_effect", "other_crop")
"""Settings of a document that certificates depend on, beside its conditions."""
OF_TILES: tuple[Name, ...] = ("tile_phase", "view_order", "view_loss")
"""Certificates about tiles that are known before the panorama is."""


@dataclass(frozen=True)
class CertifyOptions(AskOptions):
    """Plain keys of ``conf/certify.yaml``; see there."""

    checkpoint: str | None
    config: str | None
    names_directions: Literal["none", "words"] | None
    only: Annotated[list[Name], MinLen(1)] | None
    max_pictures: Annotated[int, Interval(ge=1)] | None
    tilt_deg: Annotated[float, Interval(gt=0.0, le=45.0)]
    least_effect: Annotated[float, Interval(gt=0.0, le=1.0)]


def certify(options: CertifyOptions, sections: Mapping[str, Any]) -> list[Certificate]:
    """Certifies one checkpoint, and writes and tracks the certificates.

    Args:
        options: the plain keys of ``conf/certify.yaml``, checked.
        sections: its other keys: ``crop``, ``generation``, ``store`` and ``tracking``.
    """
    allow(options.allow)
    run = restore(options.checkpoint, config=options.config, generation=sections["generation"])
    for line in run.lines():
        LOG.info("%s", line)
    if not run.record.answers:
        raise ValueError(
            f"{run.checkpoint} is of stage {run.stage}, which gives no answers that could be certified. Name a run of "
            "stage resampler or finetune."
        )
    data = data_overrides(options, run.settings["data"])
    if options.names_directions is not None:
        if data["type"] != "files":
            raise ValueError(f"names_directions says how the texts of data files do; the data are {data['type']}.")
        data["names_directions"] = options.names_directions
    if sections["crop"] and "crop_swap" not in (options.only or NAMES):
        raise ValueError("crop.* is the other crop of crop_swap, which only= leaves out. Leave it out too, or add it.")
    changed_crop(run.settings["crop"], sections["crop"])  # a wrong one is refused before the model is opened
    compute = recorded_compute(options.device, run.settings["precision"])
    pano = PanoLlava.from_checkpoint(run.checkpoint, run.settings, device=compute.device, dtype=compute.dtype)
    source, store = open_source(data, options.split, pano.crop), StoreOptions(**sections["store"])
    known, name = store.file_identity(), f"certify {run.settings['experiment_name']}"
    placed: dict[str, Any] = {"outbox": Path(options.results_dir), "job": "certify", "about": [run.checkpoint]}
    tags = {"panollava.folder": str(run.folder)}
    with open_tracker(sections["tracking"], run_name=name, tags=tags, **placed) as tracker:
        tracker.inputs([describe_split(data, options.split, source)])
        tools = Tools(compute, store, known, tracker, options.num_workers)
        subject, plan = _prepare(run, options, sections["crop"], data, source, pano, tools)
        said = ask(plan, subject)
        found = judge(plan, said, least_effect=options.least_effect)
        experiment = run.settings["experiment_name"]
        title = f"{experiment} on {data_name(options, data)}"
        settings = {
            **run.subject(known),
            "split": options.split,
            "data": data,
            "max_pictures": options.max_pictures,
            "least_effect": options.least_effect,
            "tilt_deg": options.tilt_deg,
            "other_crop": dict(sections["crop"]),
            "conditions": subject.conditions,
        }
        folder = _write(subject.folder, experiment, title, found, plan, said, settings)
        _track(tracker, folder, found)
        for change in plan.by_change():
            subject.log(change).discard()
    LOG.info("\n%s", report(found, title, options.least_effect))
    LOG.info("Certificates: %s", folder)
    return found


def _prepare(
    run: Restored,
    options: CertifyOptions,
    other_crop: Mapping[str, Any],
    data: dict[str, Any],
    source: DataSource,
    pano: PanoLlava,
    tools: Tools,
) -> tuple[ModelSubject, Plan]:
    """The model as a subject, and the plan of the certificates that it is asked for."""
    spec, only = run.settings["crop"], tuple(options.only or NAMES)
    questions, scene = _questions(source, options.max_pictures), None
    if isinstance(source, WorldSource):
        world = source
        scene = lambda picture: scene_of(world, picture)  # noqa: E731
    of = directions_of(source)
    directions = {one.sample_id: of(one) for one in questions}
    cameras = () if pano.crop.is_adaptive else pano.crop.cameras
    shown = Shown(questions, directions, cameras, scene, (), options.tilt_deg)
    of_model = model_conditions(pano, tools.compute)
    conditions = answer_conditions(run.checkpoint, run.settings, source, tools.known, **of_model)
    subject = ModelSubject(
        pano,
        spec,
        source,
        lambda crop: open_source(data, options.split, crop),
        evaluation_options(options, run.settings["evaluation"], max_samples=None, log_interval=100),
        tools,
        {} if scene is None else {one[0].image_id: name for _, name, one in focused(shown) if one},
        conditions,
        result_folder(Path(options.results_dir), run.settings["experiment_name"]),
    )
    subject.check(pano, source)
    crops = []
    for crop in _other_crops(spec, other_crop) if "crop_swap" in only else []:
        misfits = crop_misfits(changed_crop(spec, dict(crop)), run.settings["model"])
        reason = "\n  ".join(misfits) or subject.refuses(Change(crop=crop))
        if reason and other_crop:
            raise ValueError(f"crop_swap: crop={dict(crop)} cannot be the other crop. {reason}")
        if reason:
            LOG.info("crop_swap leaves out %s: %s", dict(crop), reason)
        else:
            crops.append(crop)
    own = f"crop={spec['type']} chooses the tiles of each panorama by itself"
    plan = make_plan(replace(shown, crops=crops), only, dict.fromkeys(OF_TILES, own) if pano.crop.is_adaptive else None)
    step = tile_step_deg(cameras)
    LOG.info(
        "%s about %s, each answered as it is and in %s; the tile step is %s.",
        counted(len(questions), "question"), counted(len({one.image_id for one in questions}), "picture"),
        counted(len(plan.by_change().keys() - {UNCHANGED}), "change"), "none" if step is None else f"{step:g} degrees",
    )  # fmt: skip
    return subject, plan


def _questions(source: DataSource, max_pictures: int | None) -> list[Question]:
    """The questions about the first pictures whose answers can be right or wrong."""
    every = source.questions()
    pictures = list(dict.fromkeys(one.image_id for one in every))[:max_pictures]
    kept = [one for one in every if one.image_id in set(pictures) and not asks_box(one)]
    if not kept:
        raise ValueError(
            f"{source.name} has no question whose answer is right or wrong, so there is nothing to certify."
        )
    if all(one.question_type == FREE_TEXT and len(one.references[0].split()) > 8 for one in kept):
        LOG.warning("The right answers are whole sentences. Exact match of them is low, and certificates see little.")
    return kept


def _other_crops(spec: Mapping[str, Any], given: Mapping[str, Any]) -> list[tuple[tuple[str, Any], ...]]:
    """What the crop swap changes: the keys given, else the renderer by itself and the overlap by itself."""
    if given:
        return [tuple((key, _frozen(value)) for key, value in given.items())]
    found: list[tuple[tuple[str, Any], ...]] = [(("renderer", "cv2" if spec.get("renderer") == "torch" else "torch"),)]
    overlap = spec.get("overlap")
    if overlap is not None:
        found.append((("overlap", overlap / 2 if overlap >= 0.25 else 0.25),))
    return found


def _frozen(value: Any) -> Any:
    """Lists as tuples, as a change is the key of a mapping."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _write(
    parent: Path,
    experiment: str,
    title: str,
    found: Sequence[Certificate],
    plan: Plan,
    said: Sequence[str],
    settings: Mapping[str, Any],
) -> Path:
    """Writes a new ``certificates_<time>`` folder, which is complete or does not exist."""
    least_effect = settings["least_effect"]
    head = ["change", "sample_id", "image_id", "kind", "question", "prediction", "references", "correct"]
    rows: list[Sequence[object]] = [head]
    for (change, one), answer in zip(plan.slots, said, strict=True):
        references, is_right = json.dumps(one.references, ensure_ascii=False), int(is_correct(answer, one.references))
        own = [one.sample_id, one.image_id, one.question_type, one.question, answer, references, is_right]
        rows.append([str(change), *own])
    files: dict[str, str | bytes] = {
        "answers.csv": csv_text(rows),
        "certificates.md": report(found, title, least_effect),
    }
    files |= {f"certificates.{kind}": content for kind, content in picture(found, title, least_effect).items()}
    now = datetime.now()
    document = {
        "experiment_name": experiment,
        "created": now.isoformat(timespec="seconds"),
        "certificates": [one.record() for one in found],
        "settings": dict(settings),
    }
    target = parent / f"certificates_{now:%Y%m%d_%H%M%S}"
    with temporary_folder(target) as temporary:
        for name, content in files.items():
            write_file(temporary / name, content)
        write_json(temporary / DOCUMENT, json.loads(json.dumps(document, default=str), parse_constant=str))
        return rename_free(temporary, target)


def _track(tracker: Tracker, folder: Path, found: Sequence[Certificate]) -> None:
    values = {}
    for one in found:
        if one.found is not None:
            values[f"certificates/{one.name}"] = one.found.difference.value
            values[f"certificates/{one.name}/fires"] = float(one.verdict == "fires")
    tracker.metrics(values, step=0)
    tracker.tags({"panollava.certificates": ", ".join(fired(found)) or "none fires"})
    tracker.folder(folder, "certificates")
    tracker.flush()


def recorded_certificates(runs: Mapping[str, Restored], results_dir: Path, known: FileIdentity) -> str:
    """Markdown: the newest certificates on disk of each run's weights, a column a run; empty where none has any."""
    newest = {name: newest_document(run, results_dir, known) for name, run in runs.items()}
    found = {name: one for name, one in newest.items() if one is not None}
    if not found:
        return ""
    differing = differing_settings(found.values())
    note = f"The certificates differ in {', '.join(differing)}, so their numbers do not compare.\n" if differing else ""
    if others := differing_changes(found.values()):
        note += f"Asked in other changes by other crops, so that its numbers do not compare: {', '.join(others)}.\n"
    return certificates_table(found) + note


def differing_settings(documents: Iterable[Mapping[str, Any]]) -> list[str]:
    """What several ``certificates.json`` were not asked alike, beside the model: keys of the command and conditions."""
    asked: dict[str, set[str]] = {}
    for one in documents:
        settings, conditions = one["settings"], one["settings"]["conditions"]
        values = {key: settings.get(key) or None for key in ASKED} | {
            key: conditions.get(key) for key in (*TEST_SET, *FAIR)
        }
        for key, value in {**values, "only": [each["name"] for each in one["certificates"]]}.items():
            asked.setdefault(key, set()).add(json.dumps(value, sort_keys=True))
    return [key for key, values in asked.items() if len(values) > 1]


def differing_changes(documents: Iterable[Mapping[str, Any]]) -> list[str]:
    """Certificates that several ``certificates.json`` ask in other changes, as other crops have other tiles.

    Which tile is grey in ``view_loss`` is a matter of their number, and not compared.
    """
    asked: dict[str, set[tuple[str, ...]]] = {}
    for one in (each for document in documents for each in document["certificates"] if each.get("changes")):
        asked.setdefault(one["name"], set()).add(tuple(sorted(one["changes"])))
    return [name for name in NAMES if name != "view_loss" and len(asked.get(name, ())) > 1]


def newest_document(run: Restored, results_dir: Path, known: FileIdentity) -> dict[str, Any] | None:
    """The newest ``certificates.json`` on disk that is of the weights of a run."""
    weights = fingerprint(run.checkpoint, known)
    folder = result_folder(results_dir, run.settings["experiment_name"])
    ours = []
    for path in sorted(folder.glob(f"certificates_*/{DOCUMENT}")):
        try:
            document = read_document(path)
            if document["settings"]["fingerprint"] == weights and document["certificates"]:
                # It has what is read later.
                certificates_table({"": document}), differing_settings([document]), differing_changes([document])
                ours.append((str(document["created"]), document))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            LOG.warning("%s cannot be read and is skipped (%r).", path, error)
    return max(reversed(ours), key=lambda one: one[0], default=("", None))[1]
