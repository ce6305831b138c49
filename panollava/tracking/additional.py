"""Trackers beside the main one: which there are, whether their packages are here, and how calls reach them all."""

import importlib.util
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from panollava.tracking.tracker import Dataset, ModelLoss, Status, Tracker, closing_status

logger = logging.getLogger(__name__)

Name = Literal["wandb", "tensorboard"]
Job = Literal["train", "eval", "compare", "explain", "certify"]

PROJECT, DEFAULT_PROJECT = "WANDB_PROJECT", "panollava"
_PROJECT = re.compile(r"([^/\\#?%:]{1,128}/)?[^/\\#?%:]{1,128}")


@dataclass(frozen=True)
class AdditionalOptions:
    """Keys of ``tracking`` about additional trackers; see ``conf/tracking/mlflow.yaml``."""

    also: Sequence[Name] = ()
    wandb_project: str | None = None

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Self:
        """Those of a ``tracking`` section, which may be from before there were any."""
        return cls(**{one.name: section[one.name] for one in fields(cls) if one.name in section})


@dataclass(frozen=True)
class RecordedRun:
    """The run that an additional tracker records.

    Attributes:
        root: folder below which the trackers keep their own folders.
        name: as it is listed.
        group: what is listed together: a sweep, or a run with its evaluations.
        job: what it does.
        continues: whether it goes on with the last recorded training in ``root``.
    """

    root: Path
    name: str
    group: str
    job: Job = "train"
    continues: bool = False


def project_name(project: str | None) -> str:
    """The project of Weights & Biases, or `team/project`; the default is ``WANDB_PROJECT``, else `panollava`."""
    return project or os.environ.get(PROJECT) or DEFAULT_PROJECT


def check_additional(options: AdditionalOptions) -> list[str]:
    """Problems of the options: a package that is missing, a name that is none."""
    problems = []
    for name in dict.fromkeys(options.also):
        if importlib.util.find_spec(name) is None:
            rest = ",".join(one for one in options.also if one != name)
            problems.append(
                f"tracking.also=[{','.join(options.also)}]: the package {name} is not installed here. Run pip install "
                f"{name}, or leave it out, tracking.also=[{rest}]."
            )
    key = "tracking.wandb_project" if options.wandb_project is not None else PROJECT
    if "wandb" in options.also and not _PROJECT.fullmatch(project := project_name(options.wandb_project)):
        problems.append(
            f"{key}={project!r} is no project of Weights & Biases: allowed is project or team/project, each of at most "
            r"128 characters, without / \ # ? % and :."
        )
    return problems


def additional_trackers(
    options: AdditionalOptions, run: RecordedRun, *, wait_seconds: float, system_metrics: bool
) -> list[Tracker]:
    """The trackers that ``also`` names; modules are imported here, since each of them needs a package of its own.

    Args:
        wait_seconds: how long to wait at the end for a server.
        system_metrics: whether to record the load of the machine, where a tracker does so by itself.
    """
    trackers: list[Tracker] = []
    for name in dict.fromkeys(options.also):
        if name == "wandb":
            from panollava.tracking.wandb_tracker import WandbTracker

            project = project_name(options.wandb_project)
            trackers.append(
                WandbTracker(run, project=project, wait_seconds=wait_seconds, system_metrics=system_metrics)
            )
        else:
            from panollava.tracking.tensorboard_tracker import TensorBoardTracker

            trackers.append(TensorBoardTracker(run))
    return trackers


class CompositeTracker(Tracker):
    """Hands each call to a main tracker, and to additional ones, which can neither end a run nor lose one.

    An additional tracker opens with the first call that records something, so that a command that is refused before
    leaves nothing there. Its first failure is a warning, the others are for the log file; the next calls reach it
    still, unless it did not open.
    """

    def __init__(self, main: Tracker, additional: Sequence[Tracker], tags: Mapping[str, str] | None = None) -> None:
        """``tags`` are those that the main tracker sets by itself when it opens."""
        self._main, self._unopened, self._open = main, list(additional), list[Tracker]()
        self._tags = dict(tags or {})
        self._failed: set[int] = set()
        self.model_form = main.model_form

    def start(self) -> None:
        self._main.start()
        self.run_id = self._main.run_id

    def params(self, values: Mapping[str, object]) -> None:
        self._all(lambda one: one.params(values))

    def tags(self, values: Mapping[str, str]) -> None:
        self._all(lambda one: one.tags(values))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._all(lambda one: one.metrics(values, step))

    def flush(self) -> None:
        self._main.flush()
        self._each(lambda one: one.flush())

    def text(self, text: str, name: str) -> None:
        self._all(lambda one: one.text(text, name))

    def file(self, path: Path, folder: str | None = None) -> None:
        self._all(lambda one: one.file(path, folder))

    def folder(self, path: Path, name: str | None = None) -> None:
        self._all(lambda one: one.folder(path, name))

    def image(self, picture: np.ndarray | Path, name: str) -> None:
        self._all(lambda one: one.image(picture, name))

    def table(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        self._all(lambda one: one.table(rows, name))

    def inputs(self, datasets: Sequence[Dataset]) -> None:
        self._all(lambda one: one.inputs(datasets))

    def model(self, folder: Path, loss: ModelLoss) -> None:
        self._all(lambda one: one.model(folder, loss))

    def close(self, status: Status = "FINISHED") -> None:
        self._close_additional(status)
        self._main.close(status)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self._close_additional(closing_status(kind))
        self._main.__exit__(kind, error, traceback)

    def _close_additional(self, status: Status) -> None:
        self._each(lambda one: one.close(status))
        self._unopened, self._open = [], []

    def _all(self, call: Callable[[Tracker], None]) -> None:
        call(self._main)
        unopened, self._unopened = self._unopened, []
        for one in unopened:
            if self._attempt(one, lambda one: one.start()):
                self._open.append(one)
                self._attempt(one, lambda one: one.tags(self._tags))
        self._each(call)

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for one in self._open:
            self._attempt(one, call)

    def _attempt(self, one: Tracker, call: Callable[[Tracker], None]) -> bool:
        try:
            call(one)
        except Exception as error:
            is_first = id(one) not in self._failed
            self._failed.add(id(one))
            logger.log(
                logging.WARNING if is_first else logging.DEBUG,
                "%s has failed (%s: %s). The run continues, and is recorded elsewhere as before.",
                type(one).__name__.removesuffix("Tracker"), type(error).__name__, " ".join(str(error).split())[:300],
            )  # fmt: skip
            logger.debug("The reason:", exc_info=True)
            return False
        return True
