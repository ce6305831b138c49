"""Which stages of a run are still to be trained, from what its folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from panollava.assemble.check import STAGES, EvaluationOptions
from panollava.assemble.conditions import answer_conditions, differences, mismatch, scoring, told
from panollava.checkpoint import BEST, LAST, find_checkpoint, follow
from panollava.evaluation.read_predictions import read_answers
from panollava.evaluation.results import METRICS
from panollava.logs import LOG
from panollava.run_folder import CONFIG, METADATA, Experiment, read_metadata
from panollava.untrusted import read_document

if TYPE_CHECKING:
    from panollava.assemble.run import Run

FINISHED, SKIPPED = "finished", "skipped"


def pending_stages(config: Mapping[str, Any], experiment: Experiment) -> list[str]:
    """Stages of ``stage.run`` that are not finished in this experiment with this config, in order.

    Raises:
        ValueError: a stage's folder holds a run of another config, an unfinished one with ``resume=none``, or one
            that started from an earlier stage which has changed since.
    """
    listed = list(config["stage"]["run"])
    if config["overwrite"]:
        return listed
    pending = [name for name in listed if not _is_done(config, experiment, name)]
    for name in listed:
        stale = [earlier for earlier in STAGES[: STAGES.index(name)] if _is_newer(experiment, earlier, name, pending)]
        if name not in pending and stale:
            raise ValueError(
                f"{experiment.stage_folder(name)} was trained from an earlier {stale[-1]} stage than the one of now. "
                f"Train it anew with stage={name} overwrite=true, or give this run a name of its own "
                "(experiment_name=<name>)."
            )
    return pending


def recorded_inputs(folder: Path) -> dict[str, Any] | None:
    """The content of what a stage's folder was trained on, None where its metadata do not tell."""
    if not (folder / METADATA).is_file():
        return None
    try:
        found = read_metadata(folder).get("inputs")
    except ValueError:  # which stage it is says config.yaml, and what trains writes the metadata anew
        return None
    return dict(found) if isinstance(found, dict) and found else None


def check_inputs(run: Run, name: str, folder: Path, way_out: str) -> None:
    """Refuses to go on with a stage whose data or backbones are no longer what it was trained on.

    Args:
        run: of now.
        name: the stage.
        folder: where it was trained.
        way_out: what to do about it, beside putting things back.

    Raises:
        ValueError: naming what changed.
    """
    recorded = recorded_inputs(folder)
    if recorded is None:
        LOG.info("%s: the content of its data and backbones is not recorded, so changes go unnoticed.", folder)
        return
    changed = dict.fromkeys(_named(run, key) for key in differences(recorded, run.inputs(name)))
    if changed:
        raise ValueError(
            f"{folder} was trained on other content than there is now: {'; '.join(changed)}. Put back what it was, "
            f"{way_out}."
        )


def changed_inputs(run: Run) -> str:
    """Why stages that have begun or ended here are not of the data and backbones of now; empty where they are."""
    if run.cfg.overwrite or run.cfg.dry_run:
        return ""
    for name in run.cfg.stage.run:
        folder = run.experiment.stage_folder(name)
        if _has_begun(folder):
            try:
                check_inputs(
                    run, name, folder, "give this run a name of its own (experiment_name=<name>), or train anew "
                    "(overwrite=true)",
                )  # fmt: skip
            except ValueError as error:  # for every process of the run to raise
                return str(error)
    return ""


def evaluation_due(run: Run) -> bool:
    """Whether the last stage can answer questions, and was not asked those of now under the conditions of now."""
    last, test = run.cfg.stage.run[-1], run.data.test
    if test is None or last == "vision" or run.cfg.dry_run:
        return False
    evaluated = run.experiment.state(last).get("evaluated")
    if run.pending or not evaluated:
        return True
    path = Path(evaluated) / METRICS
    if not path.is_file():
        LOG.info("The evaluation on record, %s, is not there: the test split is evaluated again.", path.parent)
        return True
    metrics = read_document(path)
    try:
        read_answers(path.parent, metrics)
    except (OSError, ValueError) as error:
        LOG.warning("The test split is evaluated again: %s.", str(error).rstrip("."))
        return True
    options = EvaluationOptions(**run.plain["evaluation"])
    folder, settings = run.experiment.stage_folder(last), metrics.get("settings", {})
    sections = {
        "model": run.backbones.model,
        "crop": run.backbones.crop_spec,
        "inputs": recorded_inputs(folder) or {},
        "generation": run.plain["generation"],
        "prompt": {"date": None if run.backbones.today is None else run.backbones.today.isoformat()},
    }
    now = answer_conditions(find_checkpoint(folder), sections, test, run.known)
    found = mismatch(settings, now, options.max_samples)
    if found is None:
        # An older record tells only of which weights the answers are, and of how many questions.
        told_of = {**settings, "conditions": {"weights": settings.get("fingerprint")}}
        found = mismatch(told_of, now, options.max_samples) or {}
        if not found:
            LOG.info("%s does not record the conditions of its answers; it is taken as it is.", path.parent)
            return False
    found |= differences({"scores": settings.get("scores")}, {"scores": scoring(options)})
    if found:
        LOG.info("The evaluation in %s has other conditions (%s): a new one is made.", path.parent, told(found))
    else:
        LOG.info("The evaluation in %s is of these conditions, and stays.", path.parent)
    return bool(found)


def _named(run: Run, key: str) -> str:
    """Which file or folder of a run a key of its inputs is about, in words."""
    part, _, what = key.partition(".")
    config = run.plain
    if part in config["model"]:
        return f"{part}.name={config['model'][part]['name']} ({what.removeprefix('files.')})"
    files = [name for kind in ("csv", "json") if (name := f"{part}_{kind}") in config["data"]]
    where = f"data.{files[0]}={config['data'][files[0]]}" if files else f"the {part} split of {config['data']['name']}"
    return f"{where} ({what})"


def recorded_config(folder: Path) -> dict[str, Any] | None:
    """The ``config.yaml`` of a stage's folder, None where there is none.

    Raises:
        ValueError: it is not YAML.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, ValueError, OmegaConfBaseException) as error:
        values, reason = None, str(error)
    else:
        reason = "it is empty"
    if not isinstance(values, dict) or not values:
        raise ValueError(
            f"{path} does not say with which config the folder was trained ({' '.join(reason.split())[:200]}). Put the "
            "right one there, give this run a name of its own (experiment_name=<name>), or replace it (overwrite=true)."
        )
    return values


def wanted_model(tracking: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the ``tracking`` section wants done with the trained model, None for nothing."""
    if tracking["type"] == "none" or (tracking["log_model"] == "none" and tracking["register"] is None):
        return None
    return {key: tracking[key] for key in ("log_model", "register", "alias")}


def awaits_model(config: Mapping[str, Any], experiment: Experiment) -> bool:
    """Whether the tracker is to get the last stage's model and did not get it yet as it is now."""
    wanted, state = wanted_model(config["tracking"]), experiment.state(config["stage"]["run"][-1])
    kept = {**(wanted or {}), "finished": state.get("finished")}
    return wanted is not None and state.get("kept_model") != kept


def _is_done(config: Mapping[str, Any], experiment: Experiment, name: str) -> bool:
    state = experiment.state(name)
    if state.get("status") == SKIPPED:
        return len(config["stage"]["run"]) > 1  # asked for by itself it is an error that says why
    recorded = recorded_config(experiment.stage_folder(name))
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
    if config["resume"] == "none" and _has_begun(experiment.stage_folder(name)):
        raise ValueError(
            f"{experiment.stage_folder(name)} holds an unfinished run of this config. Go on with resume=auto, "
            "or start it anew with overwrite=true."
        )
    return False


def _has_begun(folder: Path) -> bool:
    return (follow(folder / LAST) or follow(folder / BEST)) is not None


def _is_newer(experiment: Experiment, earlier: str, name: str, pending: list[str]) -> bool:
    """Whether ``earlier`` was, or is about to be, trained after ``name`` had started."""
    times = experiment.state(earlier).get("finished"), experiment.state(name).get("started")
    if earlier in pending or None in times:
        return earlier in pending
    finished, started = map(datetime.fromisoformat, map(str, times))  # clocks are put back once a year
    return finished > started
