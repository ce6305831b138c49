"""The config of commands: reads their keys, and checks the sections that several of them have."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from panollava.component import allow, outside_packages
from panollava.config.check import check_section, error_lines, refuse
from panollava.evaluation.measure import KEY as MEASURE
from panollava.evaluation.measure import check_measure
from panollava.evaluation.metrics import check_metrics
from panollava.generation import KEY, GenerationOptions
from panollava.tracking.additional import AdditionalOptions, check_additional
from panollava.tracking.location import absolute_uri
from panollava.tracking.mlflow_tracker import MlflowTracker

Options = TypeVar("Options")


def read_config(
    cfg: DictConfig,
    options: type[Options],
    *,
    required: Sequence[str] = (),
    example: str = "",
    check: Callable[[dict[str, Any]], list[str]] = lambda _: [],
) -> tuple[Options, dict[str, Any]]:
    """The plain keys of a command, and its sections by name.

    Args:
        cfg: the composed config.
        options: dataclass of the plain keys.
        required: keys without a default.
        example: what to write where one of them is missing.
        check: finds further problems of the config as plain Python.

    Raises:
        ValueError: with all problems.
    """
    if missing := [key for key in required if OmegaConf.is_missing(cfg, key)]:
        raise ValueError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: {example}.")
    everything: Any = OmegaConf.to_container(cfg, resolve=True)
    sections = {key: value for key, value in everything.items() if isinstance(value, dict)}
    plain = {key: value for key, value in everything.items() if key not in sections}
    problems = check_section(plain, options, "")
    for key, section in sections.items():
        problems += CHECKS[key](section) if key in CHECKS else []
    refuse(problems + check(everything))
    return options(**plain), sections


RUN_EXAMPLE = "name a run, such as checkpoint=runs/demo"


def metrics_problems(values: Mapping[str, Any]) -> list[str]:
    """Problems of a command's ``metrics``; packages that it names are allowed."""
    allow(outside_packages(values))
    return check_metrics(values["metrics"], "metrics")


def check_fetch(section: Mapping[str, Any]) -> list[str]:
    """Problems of a ``fetch`` section."""
    from panollava.data.fetch import FetchOptions, check_hosts  # here, as it brings in requests, for few commands

    return check_section(section, FetchOptions, "fetch") + check_hosts(section.get("hosts"))


def check_store(section: Mapping[str, Any]) -> list[str]:
    """Problems of a ``store`` section."""
    from panollava.store.catalogue import StoreOptions  # here, as it brings in PyTorch

    return check_section(section, StoreOptions, "store")


def tracking_keys(**values: Any) -> None:
    """Takes the keys of a ``tracking`` section: those of MLflow's tracker, and those about additional trackers."""


_GIVEN = ("run_id", "parent_run_id", "about", "tags", "outbox")  # by the program
tracking_keys.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for one in (MlflowTracker, AdditionalOptions)
        for parameter in inspect.signature(one).parameters.values()
    ]
)


def check_tracking(section: dict[str, Any]) -> list[str]:
    """Problems of a ``tracking`` section."""
    tracking = dict(section)
    kind = tracking.pop("type", None)
    problems = [] if kind in ("mlflow", "none") else [f"tracking.type={kind!r}: allowed is mlflow or none."]
    problems += check_section(tracking, tracking_keys, "tracking", given=_GIVEN)
    if problems:
        return problems
    return [
        *(error_lines(absolute_uri, tracking.get("uri")) if kind == "mlflow" else []),
        *check_additional(AdditionalOptions.of(tracking)),
    ]


def check_crop(section: Mapping[str, Any]) -> list[str]:
    """Problems of a ``crop`` section."""
    from panollava.run.crop_section import crop_problems  # here, as it brings in PyTorch, which few commands need

    return crop_problems(section)


def check_generation(section: Mapping[str, Any], *, recorded: bool = False) -> list[str]:
    """Problems of a ``generation`` section.

    Args:
        recorded: null stands for the run's own value, with which the others are checked together later.
    """
    given = {key: value for key, value in section.items() if not (recorded and value is None)}
    problems = check_section(given, GenerationOptions, KEY)
    return problems if problems or recorded else error_lines(GenerationOptions, **given)


def check_evaluation(section: Mapping[str, Any]) -> list[str]:
    """Problems of the ``evaluation`` section of a command; packages that it names are allowed."""
    allow(outside_packages(section))
    measure = section.get("measure")
    is_text = measure is None or isinstance(measure, str)
    return check_measure(measure) if is_text else [f"{MEASURE}={measure!r}: allowed is the name of a metric, or auto."]


CHECKS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "evaluation": check_evaluation,
    "fetch": check_fetch,
    "generation": partial(check_generation, recorded=True),
    "store": check_store,
    "tracking": check_tracking,
}
"""Checks of the sections that several commands have."""
