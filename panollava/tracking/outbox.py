"""A folder beside a run where operations wait until a tracking server takes them.

::

    tracking_outbox/<time>-<number>/run.json            the run, or how to make it, and its store
                                    operations.jsonl    one operation a line, in order
                                    sent                how many bytes of them have arrived
                                    files/              what goes along: links to, or copies of, the originals
                                    refused.jsonl       what the server would not take, and why
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

from panollava.tracking.location import ARTIFACTS, SQLITE, absolute_uri, database_file
from panollava.tracking.registry import register

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

Operation = dict[str, Any]
"""``do`` says what is to be done; the other keys are JSON. ``path`` is a file or folder that goes along."""

TABLES_TAG = "mlflow.loggedArtifacts"
RUNNING = "RUNNING"

Row = Sequence[Any]
"""A metric as JSON has it: name, value, time in milliseconds, step."""


def perform(
    client: MlflowClient, uri: str, run_id: str, operation: Operation, *, folder: Path, again: bool = False
) -> None:
    """Does one operation.

    All but metrics are of a kind that the store takes twice as it takes them once. Metrics are looked up first where
    they may have arrived already: stores that are no databases would list them twice.

    Args:
        client, uri: of the store.
        run_id: the run.
        operation: what to do.
        folder: what its ``path`` starts from.
        again: it may have been done before, wholly or in part.
    """
    from mlflow.entities import Metric, Param, RunTag

    match operation:
        case {"do": "metrics", "rows": rows}:
            metrics = [Metric(key, value, timestamp, step) for key, value, timestamp, step in rows]
            client.log_batch(run_id, metrics=missing(client, run_id, metrics) if again else metrics)
        case {"do": "params", "values": values}:
            client.log_batch(run_id, params=[Param(key, value) for key, value in values.items()])
        case {"do": "tags", "values": values}:
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values.items()])
        case {"do": "file" | "folder", "path": path, "into": into}:
            _keep(client, uri, run_id, folder / path, into)
        case {"do": "table", "name": name}:
            tables = json.loads(client.get_run(run_id).data.tags.get(TABLES_TAG, "[]"))
            entry = {"path": name, "type": "table"}
            if entry not in tables:
                client.set_tag(run_id, TABLES_TAG, json.dumps([*tables, entry]))
        case {"do": "inputs", "datasets": datasets}:
            _log_inputs(client, run_id, datasets)
        case {"do": "register", **options}:
            register(client, uri, run_id, **{str(key): value for key, value in options.items()})
        case {"do": "status", "status": status, "time": time_ms}:
            if status == RUNNING:
                client.update_run(run_id, status=status)
            else:
                client.set_terminated(run_id, status, time_ms)
        case _:
            raise ValueError(f"{operation.get('do')!r} is no operation of this panollava; a newer one may know it.")


def beyond(rows: Sequence[Row], reached: Mapping[str, int]) -> list[Row]:
    """Metrics of steps that a run has not reached yet.

    A run that resumes takes some steps again, whose numbers are there: they are not kept twice. Step 0 is for measures
    of the whole run, which may be taken anew.

    Args:
        rows: metrics.
        reached: last step of each metric.
    """
    return [row for row in rows if row[3] == 0 or row[3] > reached.get(row[0], -1)]


def missing(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> list[Metric]:
    """Those of some metrics that the store does not have."""
    known = {_identity(one) for key in {each.key for each in metrics} for one in client.get_metric_history(run_id, key)}
    return [one for one in metrics if _identity(one) not in known]


def _identity(metric: Metric) -> tuple[str, int, int, float | None]:
    """What makes a metric the same one; stores keep infinity as the largest number, and NaN equals nothing."""
    value = max(-sys.float_info.max, min(sys.float_info.max, metric.value))
    return metric.key, metric.step, metric.timestamp, None if math.isnan(metric.value) else value


def _keep(client: MlflowClient, uri: str, run_id: str, path: Path, into: str | None) -> None:
    """Copies a file or folder to a run's artifacts.

    A relative address is taken from the database's folder; MLflow's client takes it from the working directory.
    """
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    file = database_file(uri)
    address = "" if file is None else client.get_run(run_id).info.artifact_uri
    if file is not None and address.startswith(f"{ARTIFACTS}/"):
        local = LocalArtifactRepository((file.parent / address).as_uri())
        (local.log_artifacts if path.is_dir() else local.log_artifact)(str(path), into)
    else:
        (client.log_artifacts if path.is_dir() else client.log_artifact)(run_id, str(path), into)


def _log_inputs(client: MlflowClient, run_id: str, datasets: Sequence[dict[str, Any]]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for one in datasets:
        rest = {key: value for key, value in one.items() if key != "context"}
        inputs.append(DatasetInput(Dataset(**rest), [InputTag("mlflow.data.context", one["context"])]))
    client.log_inputs(run_id, inputs)


logger = logging.getLogger(__name__)

OUTBOX = "tracking_outbox"
HEADER, OPERATIONS, SENT, FILES, REFUSED, LOCK = (
    "run.json",
    "operations.jsonl",
    "sent",
    "files",
    "refused.jsonl",
    ".lock",
)
MAX_ROWS = 1000
"""Metrics that are sent at once, which is what MLflow takes in one request."""


class Outbox:
    """Operations of one run, owned by one process at a time.

    One thread may put operations in while another takes them out.

    Attributes:
        header: the server, the experiment, the run or how to make it, and the last step of each metric that the run
            has from earlier processes (None: to be found out).
        in_doubt: whether the next operation may have arrived although that is not written down.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            Timeout: another process owns the folder.
            FileNotFoundError: it holds no outbox any more.
        """
        self.folder = folder
        self._lock = FileLock(folder / LOCK, thread_local=False)
        self._lock.acquire(timeout=0)
        try:
            self.header: dict[str, Any] = json.loads((folder / HEADER).read_text(encoding="utf-8"))
            database = folder / self.header.get("database", "")
            if database.is_file():  # both may have been moved
                self.header["uri"] = absolute_uri(f"{SQLITE}{database}")
            self._mend()
            self._stream = (folder / OPERATIONS).open("ab")
        except BaseException:
            self._lock.release()
            raise
        self._writing = threading.Lock()
        self.in_doubt = True

    @classmethod
    def create(cls, parent: Path, header: dict[str, Any]) -> Self:
        """A new outbox below ``parent/tracking_outbox``."""
        # Their names are in the order of their making, also within a second.
        now = time.time_ns()
        stamp = time.strftime("%Y%m%d_%H%M%S", time.localtime(now // 10**9))
        folder = parent / OUTBOX / f"{stamp}_{now % 10**9:09d}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        if (file := database_file(header["uri"])) is not None:
            header = {**header, "database": os.path.relpath(file, folder.resolve())}
        (folder / HEADER).write_text(json.dumps(header, indent=2, ensure_ascii=False), encoding="utf-8")
        box = cls(folder)
        box.in_doubt = False
        return box

    @classmethod
    def left_behind(cls, folder: Path, uri: str | None = None, *, below: bool = False) -> list[Self]:
        """Outboxes that no process owns, the oldest first.

        Args:
            folder: the one that holds ``tracking_outbox``.
            uri: only those for this server.
            below: those of the folders below it too.
        """
        boxes = []
        for header in sorted(folder.glob(f"{'**/' if below else ''}{OUTBOX}/*/{HEADER}")):
            try:
                box = cls(header.parent)
            except (Timeout, FileNotFoundError):
                continue
            if uri is None or box.header["uri"] == uri:
                boxes.append(box)
            else:
                box.release()
        return boxes

    def put(self, operation: Operation, source: Path | None = None) -> None:
        """Adds an operation at the end.

        Args:
            operation: what to do.
            source: file or folder that goes along.
        """
        with self._writing:
            if source is not None:
                operation = {**operation, "path": self._keep(source)}
            self._stream.write(json.dumps(operation, ensure_ascii=False).encode() + b"\n")
            self._stream.flush()

    def next(self) -> tuple[Operation, int] | None:
        """The first operation that has not arrived, and where the one after it begins; metrics come many at once."""
        with (self.folder / OPERATIONS).open("rb") as stream:
            stream.seek(self._sent)
            operation = _parsed(stream.readline())
            if operation is None:
                return None
            end = stream.tell()
            while operation["do"] == "metrics" and (more := _parsed(stream.readline())) is not None:
                if more["do"] != "metrics" or len(operation["rows"]) + len(more["rows"]) > MAX_ROWS:
                    break
                operation["rows"] += more["rows"]
                end = stream.tell()
        return operation, end

    def arrived(self, operation: Operation, end: int) -> None:
        """Remembers that what ``next`` gave needs no more sending."""
        with self._writing:
            if end == (self.folder / OPERATIONS).stat().st_size:  # nothing waits: a long run's file starts again
                self._stream.truncate(0)
                end = 0
            self._sent = end
            _replace(self.folder / SENT, str(end))
        if "path" in operation:
            shutil.rmtree((self.folder / operation["path"]).parent)

    def refuse(self, operation: Operation, end: int, reason: str) -> None:
        """Puts what ``next`` gave aside, so that the rest is not held up; its files stay."""
        with (self.folder / REFUSED).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"operation": operation, "reason": reason}, ensure_ascii=False) + "\n")
        self.arrived({"do": operation["do"]}, end)

    def retry_refused(self) -> None:
        """Puts what was set aside at the end again."""
        path = self.folder / REFUSED
        if not path.is_file():
            return
        with self._writing:
            for line in path.read_text(encoding="utf-8").splitlines():
                self._stream.write(json.dumps(json.loads(line)["operation"], ensure_ascii=False).encode() + b"\n")
            self._stream.flush()
        path.unlink()

    def learn(self, **values: Any) -> None:
        """Remembers what is found out about the run."""
        self.header.update(values)
        _replace(self.folder / HEADER, json.dumps(self.header, indent=2, ensure_ascii=False))

    @property
    def refused(self) -> int:
        """How many operations the server would not take."""
        path = self.folder / REFUSED
        return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0

    def waiting(self) -> int:
        """How many operations have not arrived, the refused ones among them."""
        with (self.folder / OPERATIONS).open("rb") as stream:
            stream.seek(self._sent)
            return self.refused + sum(1 for _ in stream)

    def release(self) -> None:
        """Gives the folder up; it is removed if nothing waits in it."""
        self._stream.close()
        is_empty = self.waiting() == 0
        if is_empty:
            (self.folder / HEADER).unlink()  # no other process takes it from here on
        self._lock.release()
        if is_empty:
            shutil.rmtree(self.folder, ignore_errors=True)
            if not any(self.folder.parent.iterdir()):
                self.folder.parent.rmdir()

    def _mend(self) -> None:
        """Cuts off the line that a killed process left half written."""
        path, sent = self.folder / OPERATIONS, self.folder / SENT
        content = path.read_bytes() if path.is_file() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            logger.warning("%s ended in half an operation, which is lost.", path)
            os.truncate(path, whole)
        position = int(sent.read_text(encoding="utf-8")) if sent.is_file() else 0
        self._sent = position if position <= whole else 0

    def _keep(self, source: Path) -> str:
        """A lasting copy of a file or folder: a link where the system allows it, since files are never changed."""
        folder = self.folder / FILES / uuid.uuid4().hex[:12]
        folder.mkdir(parents=True)
        target = folder / source.name
        if source.is_dir():
            shutil.copytree(source, target, copy_function=_link)
        else:
            _link(str(source), str(target))
        return target.relative_to(self.folder).as_posix()


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def _parsed(line: bytes) -> Operation | None:
    """An operation, or None where the line is not written to its end yet."""
    return json.loads(line) if line.endswith(b"\n") else None


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
