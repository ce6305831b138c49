"""Tracking with MLflow, through explicit run ids: several jobs of a sweep may share one process."""

from __future__ import annotations

import json
import logging
import posixpath
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from annotated_types import Interval

from panollava.tracking.location import DEFAULT_URI, absolute_uri
from panollava.tracking.store import PARENT_TAG, experiment_id, mark_dead_runs, open_client, process_tags
from panollava.tracking.tracker import Status, closing_status

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

MAX_KEY, MAX_VALUE = 250, 6000
TABLES_TAG = "mlflow.loggedArtifacts"


class MlflowTracker:
    """One MLflow run.

    Metrics are held back and written in batches: a single call costs milliseconds on SQLite, a batch of a
    thousand hardly more. A killed process loses at most `flush_seconds` of them.
    """

    def __init__(
        self,
        *,
        uri: str = DEFAULT_URI,
        experiment: str = "panollava",
        run_name: str | None = None,
        run_id: str | None = None,
        parent_run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        flush_every: Annotated[int, Interval(ge=1, le=1000)] = 200,
        flush_seconds: Annotated[float, Interval(ge=0)] = 10.0,
    ) -> None:
        """
        Args:
            uri: store; a relative SQLite path is taken from the working directory of this moment.
            experiment: name under which runs are listed.
            run_name: name of a new run; MLflow invents one if it is missing.
            run_id: run to go on with.
            parent_run_id: parent run of a sweep.
            tags: further tags of the run.
            flush_every: metrics held back before they are written.
            flush_seconds: seconds after which they are written anyway.
        """
        self.uri = absolute_uri(uri)
        self.experiment = experiment
        self.flush_every = flush_every
        self.flush_seconds = flush_seconds
        self._run_name = run_name
        self._resume_id = run_id
        self._parent_run_id = parent_run_id
        self._tags = dict(tags or {})
        self._run_id: str | None = None
        self._is_new = False
        self._client: MlflowClient | None = None
        self._held: list[Metric] = []
        self._reached: dict[str, int] = {}
        self._flushed_at = 0.0

    @property
    def run_id(self) -> str | None:
        """Id of the run, None before `start`."""
        return self._run_id

    def start(self) -> None:
        """Open the run. A run to resume that the store does not know any more is followed by a new one."""
        client = open_client(self.uri)
        experiment = experiment_id(client, self.uri, self.experiment)
        mark_dead_runs(client, experiment)
        self._client = client
        self._flushed_at = time.monotonic()
        tags = {**self._tags, **process_tags()}
        if self._parent_run_id:
            tags[PARENT_TAG] = self._parent_run_id
        if self._resume_id and _is_known(client, self._resume_id):
            self._run_id = self._resume_id
            for key, value in tags.items():
                client.set_tag(self._run_id, key, value)
            client.update_run(self._run_id, status="RUNNING")
            kept = client.get_run(self._run_id).data.to_proto().metrics  # of each key its last step
            self._reached = {metric.key: metric.step for metric in kept}
            return
        if self._resume_id:
            logger.warning("MLflow run %s is not in %s; a new run goes on.", self._resume_id, self.uri)
        from mlflow.tracking.context.registry import resolve_tags

        run = client.create_run(experiment, run_name=self._run_name, tags=resolve_tags(tags))
        self._run_id, self._is_new = run.info.run_id, True

    def params(self, values: Mapping[str, object]) -> None:
        """Settings as flat `key -> value`, kept only when the run is new; MLflow never changes a parameter.

        Values longer than MLflow keeps end in "…", so that a cut one can be told from a whole one.
        """
        if not self._is_new:
            return
        from mlflow.entities import Param

        client, run_id = self._open()
        params = [Param(_key(key), _short(str(value))) for key, value in values.items()]
        client.log_batch(run_id, params=params)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step. NaN is kept; infinity is shown as the largest number.

        A run that resumes takes some steps again, whose numbers are there: they are not kept twice. Step 0 is for
        measures of the whole run, which may be taken anew.
        """
        from mlflow.entities import Metric

        self._open()
        now = int(time.time() * 1000)
        named = {_key(key): value for key, value in values.items()}
        self._held += [
            Metric(key, float(value), now, step)
            for key, value in named.items()
            if step == 0 or step > self._reached.get(key, -1)
        ]
        waited = time.monotonic() - self._flushed_at
        if len(self._held) >= self.flush_every or waited >= self.flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Write the metrics held back."""
        if self._held:
            client, run_id = self._open()
            client.log_batch(run_id, metrics=self._held)
            self._held = []
        self._flushed_at = time.monotonic()

    def text(self, text: str, name: str) -> None:
        """Keep a text as the file `name`."""
        client, run_id = self._open()
        client.log_text(run_id, text, name)

    def mapping(self, values: Mapping[str, object], name: str) -> None:
        """Keep a nested mapping as the file `name`, YAML or JSON by its ending."""
        client, run_id = self._open()
        client.log_dict(run_id, dict(values), name)

    def file(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file, under the run's `folder` if one is given."""
        client, run_id = self._open()
        client.log_artifact(run_id, str(path), folder)

    def folder(self, path: Path, name: str | None = None) -> None:
        """Keep a copy of everything in a folder, under `name` if one is given."""
        client, run_id = self._open()
        client.log_artifacts(run_id, str(path), name)

    def image(self, picture: np.ndarray | Path, name: str) -> None:
        """Keep a picture, (H, W, 3) uint8 RGB or a file, as the file `name`, such as `views.png`."""
        folder, base = posixpath.split(name)
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary) / base
            if isinstance(picture, Path):
                shutil.copyfile(picture, copy)
            else:
                copy.write_bytes(_encode(picture, copy.suffix))
            self.file(copy, folder or None)

    def table(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        """Keep rows of equal keys as the table `name`, such as `answers.json`; an older one is replaced."""
        client, run_id = self._open()
        columns = list(rows[0]) if rows else []
        data = [[row[column] for column in columns] for row in rows]
        client.log_text(run_id, json.dumps({"columns": columns, "data": data}, ensure_ascii=False), name)
        tables: list[dict[str, Any]] = json.loads(client.get_run(run_id).data.tags.get(TABLES_TAG, "[]"))
        entry = {"path": name, "type": "table"}
        if entry not in tables:
            client.set_tag(run_id, TABLES_TAG, json.dumps([*tables, entry]))

    def close(self, status: Status = "FINISHED") -> None:
        """Write what is held back and end the run; a closed run stays closed."""
        if self._client is None:
            return
        client, run_id = self._open()
        try:
            self.flush()
        finally:
            client.set_terminated(run_id, status)
            self._client = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(closing_status(error_type))

    def _open(self) -> tuple[MlflowClient, str]:
        if self._client is None or self._run_id is None:
            raise RuntimeError("The tracker is not open: use `with tracker:` or call start() first.")
        return self._client, self._run_id


def _is_known(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _key(name: str) -> str:
    """A name MLflow accepts on every system: other characters become `_` (question types are free text)."""
    parts = [re.sub(r"[^\w.\- ]", "_", part).strip() for part in str(name).split("/")]
    return "/".join(part for part in parts if part.strip("."))[:MAX_KEY].rstrip("/ ") or "_"


def _short(value: str) -> str:
    return value if len(value) <= MAX_VALUE else value[: MAX_VALUE - 1] + "…"


def _encode(picture: np.ndarray, suffix: str) -> bytes:
    import cv2

    done, data = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"A picture of shape {picture.shape} could not be written as {suffix!r}; use .png.")
    return data.tobytes()
