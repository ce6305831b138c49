"""Records a run in MLflow, by its run id: several jobs of a sweep may share one process."""

import json
import logging
import os
import posixpath
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval

from panollava.tracking import runs
from panollava.tracking.location import EXPERIMENT, URI, absolute_uri, experiment_name
from panollava.tracking.operations import Operation, Row, check_names, metric_name, new_rows
from panollava.tracking.outbox import Delivery
from panollava.tracking.store import LOCAL
from panollava.tracking.tracker import Dataset, ModelForm, ModelLoss, Status, Tracker, closing_status

logger = logging.getLogger(__name__)

MAX_VALUE = 6000  # characters that MLflow keeps of a parameter
MODEL = "model"  # folder of the model among a run's artifacts


class MlflowTracker(Tracker):
    """One MLflow run; see ``Tracker``.

    Metrics are buffered and written in batches: a single call costs milliseconds on SQLite, a batch of a
    thousand hardly more. A killed process loses at most `flush_seconds` of them.

    Records for a server pass through an outbox on disk (see ``Outbox``), so that an unreachable one neither ends nor
    delays the run; those for a file, once another process keeps it locked. A new run of its own needs the server when
    it begins. A resumed run, and a job of a sweep, whose server answered before, begin without it.
    """

    def __init__(
        self,
        *,
        uri: str | None = None,  # store; see ``absolute_uri``
        experiment: str | None = None,  # name under which runs are listed; see ``experiment_name``
        run_name: str | None = None,  # of a new run; MLflow invents one if it is missing
        run_id: str | None = None,  # run to resume
        parent_run_id: str | None = None,  # of a sweep
        about: Sequence[str] = (),  # runs that this one evaluates, compares or explains; see ``store.parent_of``
        tags: Mapping[str, str] | None = None,
        outbox: Path | None = None,  # folder for operations that the store does not take at once; None: write directly
        wait_seconds: Annotated[float, Interval(ge=0)] = 15.0,  # at the end, for a server that does not answer
        system_metrics: bool = False,  # log the load of processors, memory, disk, network and GPUs
        system_seconds: Annotated[float, Interval(gt=0)] = 10.0,  # between two of their measurements
        log_model: ModelForm = "none",
        register: str | None = None,  # registered model to make the trained one a version of
        alias: str = "best",  # of the best version
        flush_every: Annotated[int, Interval(ge=1, le=1000)] = 200,  # metrics buffered before they are written
        flush_seconds: Annotated[float, Interval(ge=0)] = 10.0,  # after which they are written anyway
    ) -> None:
        """Raises a ValueError if ``uri``, ``register`` or ``alias`` is not valid in MLflow."""
        check_names(register, alias)
        self.uri, self.experiment = absolute_uri(uri), experiment_name(experiment)
        values = ((URI, uri, self.uri), (EXPERIMENT, experiment, self.experiment))
        self._of_environment = [f"{key}={now}" for key, given, now in values if given is None and os.environ.get(key)]
        self.flush_every, self.flush_seconds = flush_every, flush_seconds
        self.register, self.alias = register, alias
        self.model_form = "checkpoint" if register and log_model == "none" else log_model
        self._options = runs.RunOptions(
            self.uri, self.experiment, run_name, run_id, parent_run_id, tags or {}, outbox, wait_seconds, tuple(about)
        )
        self._is_new, self._is_empty = False, True
        self._channel: runs.Direct | Delivery | None = None
        self._system = SystemMetrics(self.metrics, system_seconds) if system_metrics else None
        self._buffer: list[Row] = []
        self._last_steps: dict[str, int] = {}
        self._lock = threading.RLock()  # system metrics come from a thread of their own
        self._flushed_at = 0.0

    def start(self) -> None:
        """Opens the run; see ``open_run``."""
        if self._of_environment:
            logger.info("MLflow's variables are used: %s.", ", ".join(self._of_environment))
        self.run_id, self._is_new, self._channel, self._last_steps = runs.open_run(self._options)
        self._flushed_at = time.monotonic()
        if self._system is not None:
            self._system.start()

    def params(self, values: Mapping[str, object]) -> None:
        """Logs settings if the run is new, since MLflow never changes a parameter; too long ones are cut, with "…"."""
        if self._is_new:
            texts = {metric_name(key): str(value) for key, value in values.items()}
            cut = {key: f"{text[: MAX_VALUE - 1]}…" for key, text in texts.items() if len(text) > MAX_VALUE}
            self._put({"do": "params", "values": texts | cut})

    def tags(self, values: Mapping[str, str]) -> None:
        self._put({"do": "tags", "values": dict(values)})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs numbers of one step. NaN is kept; infinity is shown as the largest number."""
        now = _now_ms()
        with self._lock:
            rows = [(metric_name(key), float(value), now, step) for key, value in values.items()]
            self._buffer += new_rows(rows, self._last_steps)
            waited = time.monotonic() - self._flushed_at
            if len(self._buffer) >= self.flush_every or waited >= self.flush_seconds:
                self.flush()

    def flush(self) -> None:
        with self._lock:
            if self._buffer:
                self._put({"do": "metrics", "rows": self._buffer})
                self._buffer = []
            self._flushed_at = time.monotonic()

    def text(self, text: str, name: str) -> None:
        self._keep(text.encode(errors="backslashreplace"), name)

    def file(self, path: Path, folder: str | None = None) -> None:
        self._put({"do": "file", "into": folder}, path)

    def folder(self, path: Path, name: str | None = None) -> None:
        self._put({"do": "folder", "into": name}, path)

    def image(self, picture: np.ndarray | Path, name: str) -> None:
        self._keep(picture if isinstance(picture, Path) else _encoded(picture, Path(name).suffix), name)

    def table(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        columns = list(rows[0]) if rows else []
        data = [[row[column] for column in columns] for row in rows]
        self.text(json.dumps({"columns": columns, "data": data}, ensure_ascii=False), name)
        self._put({"do": "table", "name": name})

    def inputs(self, datasets: Sequence[Dataset]) -> None:
        self._put({"do": "inputs", "datasets": [asdict(one) for one in datasets]})

    def model(self, folder: Path, loss: ModelLoss) -> None:
        self.flush()
        self._put({"do": "status", "status": "FINISHED", "time": _now_ms()})  # a large model may never arrive
        self.folder(folder, MODEL)
        if self.register:
            names = {"name": self.register, "alias": self.alias, "artifact": MODEL}
            self._put({"do": "register", **names, "loss": loss.value, "measured_on": loss.measured_on})

    def close(self, status: Status = "FINISHED") -> None:
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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        # A command that was refused before it had anything to record leaves no run.
        is_refused = self._is_new and self._is_empty and not self._buffer and isinstance(error, ValueError | OSError)
        try:
            self.close(closing_status(kind))
            if is_refused and self.run_id is not None and not self.run_id.startswith(LOCAL):
                runs.discard_run(self.uri, self.run_id)
        except OSError as failure:
            if error is None:
                raise
            logger.warning("%s", failure)  # the error that ended the run is the message to read

    def _keep(self, content: bytes | Path, name: str) -> None:
        folder, base = posixpath.split(name)
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary) / base
            copy.write_bytes(content.read_bytes() if isinstance(content, Path) else content)
            self.file(copy, folder or None)

    def _put(self, operation: Operation, source: Path | None = None) -> None:
        if self._channel is None:
            raise RuntimeError("The tracker is not open: use `with tracker:` or call start() first.")
        self._is_empty = False
        self._channel.put(operation, source)


def _now_ms() -> int:
    return int(time.time() * 1000)


def _encoded(image: np.ndarray, suffix: str) -> bytes:
    """An (H, W, 3) uint8 RGB image as the content of a file with that suffix."""
    import cv2

    done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"An image of shape {image.shape} could not be written as {suffix!r}; use .png.")
    return data.tobytes()


class SystemMetrics(threading.Thread):
    """A thread that measures processors, memory, disk and network, and NVIDIA's GPUs if ``nvidia-ml-py`` is installed.

    ``log`` takes named numbers and a step: the seconds since 1970, so that the steps of a resumed run follow on.
    """

    def __init__(self, log: Callable[[Mapping[str, float], int], None], seconds: float) -> None:
        super().__init__(name="system metrics", daemon=True)
        self._log, self._seconds = log, seconds
        self._ended = threading.Event()

    def stop(self) -> None:
        """Takes a last measurement and ends."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        monitors, is_last = _monitors(), False
        while not is_last:
            is_last = self._ended.wait(self._seconds)
            for monitor in monitors:
                monitor.collect_metrics()
                values = monitor.aggregate_metrics()
                # MLflow's page looks for them below system/.
                self._log({f"system/{name}": value for name, value in values.items()}, int(time.time()))
                monitor.clear_metrics()


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics import cpu_monitor, disk_monitor, gpu_monitor, network_monitor

    monitors = [cpu_monitor.CPUMonitor(), disk_monitor.DiskMonitor(), network_monitor.NetworkMonitor()]
    try:
        monitors.append(gpu_monitor.GPUMonitor())
    except (ImportError, RuntimeError) as error:  # no nvidia-ml-py, or no NVIDIA driver
        logger.debug("No GPU is measured: %s", error)
    return monitors
