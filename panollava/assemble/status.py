"""Which stages of a run are still to be trained, from what its folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from panollava.assemble.check import STAGES
from panollava.checkpoint import BEST, LAST, follow
from panollava.run_folder import CONFIG, Experiment

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


def awaits_evaluation(config: Mapping[str, Any], experiment: Experiment) -> bool:
    """Whether the last stage can answer questions and was not asked any yet."""
    last = config["stage"]["run"][-1]
    return config["evaluation"]["enabled"] and last != "vision" and not experiment.state(last).get("evaluated")


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
