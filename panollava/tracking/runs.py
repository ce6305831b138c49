"""Opens runs, and the parent runs of sweeps: in the store, or on disk while a server is away or a file is locked."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from panollava.tracking import store
from panollava.tracking.database import FOLDER_TAG, recorded_folder
from panollava.tracking.location import StoreBusyError, is_server
from panollava.tracking.operations import RUNNING, Operation, perform
from panollava.tracking.outbox import OUTBOX, Delivery, Outbox, deliver, send
from panollava.tracking.tracker import Status

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """The run to open; see ``MlflowTracker``."""

    uri: str
    experiment: str
    run_name: str | None
    run_id: str | None
    parent_run_id: str | None
    tags: Mapping[str, str]
    outbox: Path | None = None
    wait_seconds: float = 0.0
    about: tuple[str, ...] = ()


class Direct:
    """Performs each operation at once; ``fallback`` opens a delivery from when another process locks the store."""

    def __init__(
        self, client: MlflowClient, run_id: str, uri: str, fallback: Callable[[StoreBusyError], Delivery] | None = None
    ) -> None:
        self._client, self._run_id, self._uri, self._fallback = client, run_id, uri, fallback
        self._delivery: Delivery | None = None

    def put(self, operation: Operation, source: Path | None = None) -> None:
        """Performs an operation, with the file or folder that it copies."""
        if self._delivery is None:
            path = {} if source is None else {"path": str(source)}
            try:
                with store.store_errors(self._uri):
                    perform(self._client, self._uri, self._run_id, operation | path, folder=Path())
                return
            except StoreBusyError as error:
                if self._fallback is None:
                    raise
                self._delivery = self._fallback(error)
        self._delivery.put(operation, source)

    def close(self) -> None:
        if self._delivery is not None:
            self._delivery.close()


class OpenRun(NamedTuple):
    """An open run."""

    run_id: str
    is_new: bool  # it has just been made
    channel: Direct | Delivery
    last_steps: dict[str, int]  # last logged step of each metric; a Delivery looks them up by itself


def open_run(options: RunOptions) -> OpenRun:
    """Opens a run. A run to resume that the store does not have any more is replaced by a new one.

    Raises a ConnectionError if the server does not answer and the run is not known to have reached it before, a
    PermissionError if it refuses the user.
    """
    tags = {**options.tags, **store.process_tags()}
    if FOLDER_TAG in tags:
        tags[FOLDER_TAG] = recorded_folder(Path(tags[FOLDER_TAG]), options.uri)
    if options.parent_run_id:
        tags[store.PARENT_TAG] = options.parent_run_id
    opened = _opened(options, tags)
    if not opened.is_new:
        opened.channel.put({"do": "tags", "values": tags})
        opened.channel.put({"do": "status", "status": RUNNING, "time": None})
    return opened


def _opened(options: RunOptions, tags: dict[str, str]) -> OpenRun:
    uri, outbox, is_away = options.uri, options.outbox, False
    left = [] if outbox is None else Outbox.left_behind(outbox, uri)
    try:
        client, run_id, is_new = _in_store(options, tags, begun={box.header["local_id"] for box in left} - {None})
        if outbox is None or not (is_server(uri) or left):
            with store.store_errors(uri):
                last_steps = {} if is_new else store.last_steps(client, run_id)
            fallback = None if outbox is None else partial(_fallback, options, outbox, run_id, tags)
            return OpenRun(run_id, is_new, Direct(client, run_id, uri, fallback), last_steps)
    except ConnectionError as error:
        may_begin = options.run_id or options.parent_run_id or isinstance(error, StoreBusyError)
        if outbox is None or not may_begin:
            for box in left:
                box.release()
            raise
        _warn(uri, error, outbox)
        run_id, is_new, is_away = options.run_id or f"{store.LOCAL}{uuid.uuid4().hex}", options.run_id is None, True
    box = _new_outbox(options, outbox, run_id, tags, {} if is_new else None)
    delivery = Delivery(uri, [*left, box], wait_seconds=options.wait_seconds, is_away=is_away)
    return OpenRun(run_id, is_new, delivery.start(), {})


def _fallback(options: RunOptions, outbox: Path, run_id: str, tags: dict[str, str], error: StoreBusyError) -> Delivery:
    _warn(options.uri, error, outbox)
    box = _new_outbox(options, outbox, run_id, tags, {})
    box.in_doubt = True  # of the operation that failed, a part may be in the store
    return Delivery(options.uri, [box], wait_seconds=options.wait_seconds, is_away=True).start()


def _warn(uri: str, error: Exception, outbox: Path) -> None:
    logger.warning(
        "MLflow at %s does not answer (%s). The run continues; its record is kept in %s until it can be sent.",
        uri, store.reason_of(error), outbox / OUTBOX,
    )  # fmt: skip


def _new_outbox(
    options: RunOptions, folder: Path, run_id: str, tags: dict[str, str], reached: dict[str, int] | None
) -> Outbox:
    """An outbox whose header names the run, or has what is needed to make it."""
    header: dict[str, Any] = {"uri": options.uri, "experiment": options.experiment, "run_id": run_id, "local_id": None}
    if run_id.startswith(store.LOCAL):
        from mlflow.tracking.context.registry import resolve_tags

        header |= {
            "run_id": None,
            "local_id": run_id,
            "run_name": options.run_name,
            "tags": resolve_tags({**tags, store.LOCAL_TAG: run_id}),
            "start_time": int(time.time() * 1000),
        }
    return Outbox.create(folder, header | {"reached": reached})


def _in_store(options: RunOptions, tags: dict[str, str], begun: set[str]) -> tuple[MlflowClient, str, bool]:
    """A client, the id of the run, and whether it is new, which a run of ``begun`` outboxes is not."""
    uri, is_remote = options.uri, is_server(options.uri)
    if is_remote:
        store.check_answers(uri)
    try:
        with store.store_errors(uri):
            client = store.open_client(uri)
            experiment = store.experiment_id(client, uri, options.experiment)
            store.mark_dead_runs(client, experiment)
            known = options.run_id
            if known and known.startswith(store.LOCAL):
                tags = {**tags, store.LOCAL_TAG: known}
                known = store.local_run(client, experiment, known)
            if known and store.find_run(client, known) is not None:
                return client, known, False
            is_new = options.run_id not in begun
            if options.run_id and is_new:
                logger.warning("MLflow run %s is not in %s; a new run replaces it.", options.run_id, uri)
            if parent := store.parent_of(client, experiment, options.about):
                tags = {**tags, store.PARENT_TAG: parent}
            from mlflow.tracking.context.registry import resolve_tags

            run = client.create_run(experiment, run_name=options.run_name, tags=resolve_tags(tags))
            return client, run.info.run_id, is_new
    except Exception as error:
        store.check_access(uri, error)
        if not is_remote or isinstance(error, ConnectionError) or not store.may_pass(error):
            raise
        raise store.no_answer(uri, error) from error


def discard_run(uri: str, run_id: str) -> None:
    """Deletes a run; raises an OSError if the store cannot be written, or does not answer."""
    try:
        with store.store_errors(uri):
            store.open_client(uri).delete_run(run_id)
    except Exception as error:
        if isinstance(error, OSError) or not store.may_pass(error):
            raise
        raise store.no_answer(uri, error) from error


def start_parent(uri: str, experiment: str, name: str, folder: Path, run_id: str | None = None) -> str:
    """Opens the parent run of a sweep, and makes the store before any job needs it.

    The operations that earlier starts could not send are sent first, since one of them would end the run. The parent
    ``run_id`` of an earlier start is resumed if the store still has it. Raises a ConnectionError if the server does not
    answer, or the file is locked. Returns the `parent_run_id` of each job's tracker.
    """
    with store.store_errors(uri):
        client = store.open_client(uri)
        experiment_key = store.experiment_id(client, uri, experiment)
        known = store.find_run(client, run_id) if run_id else None
    if (folder / OUTBOX).is_dir():
        deliver(folder)
    if known is None or known.info.experiment_id != experiment_key:
        run_id = None
    return open_run(RunOptions(uri, experiment, name, run_id, None, {FOLDER_TAG: str(folder)})).run_id


def end_parent(
    uri: str, run_id: str, status: Status, files: Sequence[Path], folder: Path, *, wait_seconds: float = 0.0
) -> int:
    """Ends the run that `start_parent` opened, and the runs of jobs that were killed.

    The ``files``, the sweep's table and figures, are kept with the run in the folder `sweep`. Returns how many
    operations wait in the outbox of the sweep's ``folder``. Raises an OSError if the disk of the store fails.
    """
    operations: list[tuple[Operation, Path | None]] = [({"do": "file", "into": "sweep"}, file) for file in files]
    operations.append(({"do": "status", "status": status, "time": int(time.time() * 1000)}, None))
    if not is_server(uri):
        with contextlib.suppress(StoreBusyError), store.store_errors(uri):
            client = store.open_client(uri)
            channel = Direct(client, run_id, uri)
            for operation, source in operations:
                channel.put(operation, source)
            store.end_killed(client, [run_id])
            return 0
    box = Outbox.create(folder, {"uri": uri, "run_id": run_id, "local_id": None, "reached": {}})
    for operation, source in operations:
        box.put(operation, source)
    return send(uri, [box], wait_seconds, is_away=not store.answers(uri))
