"""Tracking with MLflow, through explicit run ids: several jobs of a sweep may share one process."""

from __future__ import annotations

import json
import logging
import os
import posixpath
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
from annotated_types import Interval

from panollava.tracking.delivery import Direct, Posted
from panollava.tracking.location import EXPERIMENT, URI, absolute_uri, experiment_name
from panollava.tracking.opening import LOCAL, Asked, discard_run, open_run
from panollava.tracking.outbox import Operation, Row, beyond
from panollava.tracking.registry import check_names
from panollava.tracking.tracker import Dataset, ModelForm, ModelLoss, Status, closing_status

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

MAX_KEY, MAX_VALUE = 250, 6000


def key_of(name: str) -> str:
    """A name MLflow accepts on every system: other characters become `_` (question types are free text)."""
    parts = [re.sub(r"[^\w.\- ]", "_", part).strip() for part in str(name).split("/")]
    return "/".join(part for part in parts if part.strip("."))[:MAX_KEY].rstrip("/ ") or "_"


def value_of(value: object) -> str:
    """A parameter's value as text; one that is longer than MLflow keeps ends in "…", to be told from a whole one."""
    text = str(value)
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"


def picture_of(picture: np.ndarray, suffix: str) -> bytes:
    """An (H, W, 3) uint8 RGB picture as the content of a file with that ending."""
    import cv2

    done, data = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"A picture of shape {picture.shape} could not be written as {suffix!r}; use .png.")
    return data.tobytes()


logger = logging.getLogger(__name__)

PREFIX = "system/"
"""Where MLflow's page looks for them."""


class SystemMetrics:
    """A thread that measures processors, memory, disk and network, and NVIDIA's GPUs where ``nvidia-ml-py`` is there.

    Args:
        log: takes named numbers and a step; steps are whole seconds since 1970, so that a resumed run's follow on.
        seconds: between two measurements.
    """

    def __init__(self, log: Callable[[Mapping[str, float], int], None], seconds: float) -> None:
        self._log, self._seconds = log, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system metrics", daemon=True)

    def start(self) -> None:
        """Begins to measure."""
        self._thread.start()

    def stop(self) -> None:
        """Takes a last measurement and ends."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        monitors = _monitors()
        while True:
            over = self._ended.wait(self._seconds)
            for monitor in monitors:
                monitor.collect_metrics()
                values = monitor.aggregate_metrics()
                self._log({f"{PREFIX}{name}": value for name, value in values.items()}, int(time.time()))
                monitor.clear_metrics()
            if over:
                return


def _monitors() -> list[BaseMetricsMonitor]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except (ImportError, RuntimeError) as error:  # no nvidia-ml-py, or no NVIDIA driver
        logger.debug("No GPU is measured: %s", error)
    return monitors


MODEL = "model"
"""Folder of the model among a run's artifacts."""


class MlflowTracker:
    """One MLflow run.

    Metrics are held back and written in batches: a single call costs milliseconds on SQLite, a batch of a
    thousand hardly more. A killed process loses at most `flush_seconds` of them.

    A server is written to by way of an outbox on disk (see ``Outbox``), so that one that goes away neither ends nor
    holds up the run; a file likewise, from when another process keeps it locked. A server has to be there when a run of
    its own begins. A run that goes on, and a job of a sweep, whose server did answer before, begin without it.
    """

    def __init__(
        self,
        *,
        uri: str | None = None,
        experiment: str | None = None,
        run_name: str | None = None,
        run_id: str | None = None,
        parent_run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        outbox: Path | None = None,
        wait_seconds: Annotated[float, Interval(ge=0)] = 15.0,
        system_metrics: bool = False,
        system_seconds: Annotated[float, Interval(gt=0)] = 10.0,
        log_model: ModelForm = "none",
        register: str | None = None,
        alias: str = "best",
        flush_every: Annotated[int, Interval(ge=1, le=1000)] = 200,
        flush_seconds: Annotated[float, Interval(ge=0)] = 10.0,
    ) -> None:
        """
        Args:
            uri: store; a relative SQLite path is taken from the working directory of this moment. None takes that of
                ``MLFLOW_TRACKING_URI``, else `sqlite:///mlflow.db`.
            experiment: name under which runs are listed; None takes that of ``MLFLOW_EXPERIMENT_NAME``, else
                `panollava`.
            run_name: name of a new run; MLflow invents one if it is missing.
            run_id: run to go on with.
            parent_run_id: parent run of a sweep.
            tags: further tags of the run.
            outbox: folder for what the store does not take at once; None writes directly.
            wait_seconds: how long to wait at the end for a server that does not answer.
            system_metrics: log the load of processors, memory, disk, network and GPUs.
            system_seconds: seconds between two of their measurements.
            log_model: keep the trained model with the run: its best checkpoint, or a Hugging Face folder.
            register: registered model to make it a version of.
            alias: what the best version is called.
            flush_every: metrics held back before they are written.
            flush_seconds: seconds after which they are written anyway.

        Raises:
            ValueError: MLflow keeps no runs at that address, or takes no such name or alias.
        """
        check_names(register, alias)
        self.uri, self.experiment = absolute_uri(uri), experiment_name(experiment)
        values = ((URI, uri, self.uri), (EXPERIMENT, experiment, self.experiment))
        self._of_environment = [f"{key}={now}" for key, given, now in values if given is None and os.environ.get(key)]
        self.flush_every = flush_every
        self.flush_seconds = flush_seconds
        self.register, self.alias = register, alias
        self.model_form: ModelForm = "checkpoint" if register and log_model == "none" else log_model
        self._asked = Asked(
            uri=self.uri,
            experiment=self.experiment,
            run_name=run_name,
            run_id=run_id,
            parent_run_id=parent_run_id,
            tags=dict(tags or {}),
            outbox=outbox,
            wait_seconds=wait_seconds,
        )
        self._run_id: str | None = None
        self._is_new, self._is_empty = False, True
        self._channel: Direct | Posted | None = None
        self._system = SystemMetrics(self.metrics, system_seconds) if system_metrics else None
        self._held: list[Row] = []
        self._reached: dict[str, int] = {}
        self._holding = threading.RLock()
        self._flushed_at = 0.0

    @property
    def run_id(self) -> str | None:
        """Id of the run, None before `start`."""
        return self._run_id

    def start(self) -> None:
        """Open the run. A run to resume that the store does not know any more is followed by a new one.

        Raises:
            ConnectionError: the server does not answer, and never did.
        """
        if self._of_environment:
            logger.info("MLflow's variables are used: %s.", ", ".join(self._of_environment))
        opened = open_run(self._asked)
        self._run_id, self._is_new, self._channel = opened.run_id, opened.is_new, opened.channel
        self._reached = opened.reached
        self._flushed_at = time.monotonic()
        if self._system is not None:
            self._system.start()

    def params(self, values: Mapping[str, object]) -> None:
        """Settings as flat `key -> value`, kept only when the run is new; MLflow never changes a parameter.

        Values longer than MLflow keeps end in "…", so that a cut one can be told from a whole one.
        """
        if self._is_new:
            self._put({"do": "params", "values": {key_of(key): value_of(value) for key, value in values.items()}})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step. NaN is kept; infinity is shown as the largest number."""
        now = _now_ms()
        with self._holding:
            rows = [(key_of(key), float(value), now, step) for key, value in values.items()]
            self._held += beyond(rows, self._reached)
            waited = time.monotonic() - self._flushed_at
            if len(self._held) >= self.flush_every or waited >= self.flush_seconds:
                self.flush()

    def flush(self) -> None:
        """Write the metrics held back."""
        with self._holding:
            if self._held:
                self._put({"do": "metrics", "rows": self._held})
                self._held = []
            self._flushed_at = time.monotonic()

    def text(self, text: str, name: str) -> None:
        """Keep a text as the file `name`."""
        self._keep(text.encode(errors="backslashreplace"), name)

    def mapping(self, values: Mapping[str, object], name: str) -> None:
        """Keep a nested mapping as the file `name`, YAML or JSON by its ending."""
        if name.endswith((".yaml", ".yml")):
            import yaml

            self.text(yaml.safe_dump(dict(values), allow_unicode=True), name)
        else:
            self.text(json.dumps(dict(values), indent=2, ensure_ascii=False, default=str), name)

    def file(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file, under the run's `folder` if one is given."""
        self._put({"do": "file", "into": folder}, path)

    def folder(self, path: Path, name: str | None = None) -> None:
        """Keep a copy of everything in a folder, under `name` if one is given."""
        self._put({"do": "folder", "into": name}, path)

    def image(self, picture: np.ndarray | Path, name: str) -> None:
        """Keep a picture, (H, W, 3) uint8 RGB or a file, as the file `name`, such as `views.png`."""
        self._keep(picture if isinstance(picture, Path) else picture_of(picture, Path(name).suffix), name)

    def table(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        """Keep rows of equal keys as the table `name`, such as `answers.json`; an older one is replaced."""
        columns = list(rows[0]) if rows else []
        data = [[row[column] for column in columns] for row in rows]
        self.text(json.dumps({"columns": columns, "data": data}, ensure_ascii=False), name)
        self._put({"do": "table", "name": name})

    def inputs(self, datasets: Sequence[Dataset]) -> None:
        """Note the data sets that the run reads."""
        self._put({"do": "inputs", "datasets": [asdict(one) for one in datasets]})

    def model(self, folder: Path, loss: ModelLoss) -> None:
        """Keep the trained model that lies in a folder, and register it where that is asked for."""
        self.folder(folder, MODEL)
        if self.register:
            names = {"name": self.register, "alias": self.alias, "artifact": MODEL}
            self._put({"do": "register", **names, "loss": loss.value, "measured_on": loss.measured_on})

    def close(self, status: Status = "FINISHED") -> None:
        """Write what is held back and end the run; a closed run stays closed."""
        if self._channel is None:
            return
        if self._system is not None:
            self._system.stop()
        try:
            self.flush()
        finally:
            self._put({"do": "status", "status": status, "time": _now_ms()})
            channel, self._channel = self._channel, None
            channel.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A command that was refused before it had anything to record is no run.
        is_refused = self._is_new and self._is_empty and not self._held and isinstance(error, ValueError | OSError)
        try:
            self.close(closing_status(error_type))
            if is_refused and self._run_id is not None and not self._run_id.startswith(LOCAL):
                discard_run(self.uri, self._run_id)
        except OSError as failure:
            if error is None:
                raise
            logger.warning("%s", failure)  # what ended the run is the message to read

    def _keep(self, content: bytes | Path, name: str) -> None:
        folder, base = posixpath.split(name)
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary) / base
            if isinstance(content, Path):
                shutil.copyfile(content, copy)
            else:
                copy.write_bytes(content)
            self.file(copy, folder or None)

    def _put(self, operation: Operation, source: Path | None = None) -> None:
        if self._channel is None:
            raise RuntimeError("The tracker is not open: use `with tracker:` or call start() first.")
        self._is_empty = False
        self._channel.put(operation, source)


def _now_ms() -> int:
    return int(time.time() * 1000)
