"""Opens a run, new or known: in the store, or on disk while its server is away."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panollava.tracking.database import FOLDER_TAG, recorded_folder
from panollava.tracking.delivery import Direct, Posted
from panollava.tracking.location import StoreBusyError, is_server
from panollava.tracking.outbox import OUTBOX, RUNNING, Outbox
from panollava.tracking.store import (
    LOCAL_TAG,
    PARENT_TAG,
    check_access,
    check_answers,
    experiment_id,
    find_run,
    is_out_of_reach,
    local_run,
    mark_dead_runs,
    no_answer,
    open_client,
    process_tags,
    reached_steps,
    reason_of,
    set_limits,
    written,
)

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

_AWAY = "MLflow at %s does not answer (%s). The run goes on; its record is kept in %s until it can be sent."

LOCAL = "local-"
"""How the id of a run begins that its server has not made yet."""


@dataclass(frozen=True)
class Asked:
    """The run that is wanted (see ``MlflowTracker``).

    Attributes:
        uri: from ``absolute_uri``.
        experiment: name under which it is listed.
        run_name: of a new run.
        run_id: of the run to go on with.
        parent_run_id: parent run of a sweep.
        tags: further tags.
        outbox: folder for what the store does not take at once; None writes directly.
        wait_seconds: how long to wait at the end for a server that does not answer.
    """

    uri: str
    experiment: str
    run_name: str | None
    run_id: str | None
    parent_run_id: str | None
    tags: Mapping[str, str]
    outbox: Path | None
    wait_seconds: float


@dataclass(frozen=True)
class Opened:
    """An open run.

    Attributes:
        run_id: its id.
        is_new: whether it has just begun.
        channel: the way to it.
        reached: last step of each metric it has; a channel that is ``Posted`` finds out by itself.
    """

    run_id: str
    is_new: bool
    channel: Direct | Posted
    reached: dict[str, int]


def open_run(asked: Asked) -> Opened:
    """Opens a run. A run to go on with that the store does not know any more is followed by a new one.

    Raises:
        ConnectionError: the server does not answer, and nothing says that it ever did.
        PermissionError: the server wants to know who asks.
    """
    tags = {**asked.tags, **process_tags()}
    if FOLDER_TAG in tags:
        tags[FOLDER_TAG] = recorded_folder(Path(tags[FOLDER_TAG]), asked.uri)
    if asked.parent_run_id:
        tags[PARENT_TAG] = asked.parent_run_id
    outbox = asked.outbox
    if outbox is None:
        client, run_id, is_new = _in_store(asked, tags, begun=set())
        reached = {} if is_new else reached_steps(client, run_id)
        return _welcomed(tags, Opened(run_id, is_new, Direct(client, run_id, asked.uri), reached))
    left, is_away = Outbox.left_behind(outbox, asked.uri), False
    try:
        client, run_id, is_new = _in_store(asked, tags, begun={box.header["local_id"] for box in left})
        if not is_server(asked.uri) and not left:
            with written(asked.uri):
                reached = {} if is_new else reached_steps(client, run_id)

            def spare(error: StoreBusyError) -> Posted:
                logger.warning(_AWAY, asked.uri, reason_of(error), outbox / OUTBOX)
                box = Outbox.create(outbox, {**_header(asked, run_id, tags), "reached": {}})
                box.in_doubt = True
                return Posted(asked.uri, [], box, asked.wait_seconds, is_away=True)

            return _welcomed(tags, Opened(run_id, is_new, Direct(client, run_id, asked.uri, spare), reached))
    except ConnectionError as error:
        if not (asked.run_id or asked.parent_run_id or isinstance(error, StoreBusyError)):
            for box in left:
                box.release()
            raise
        logger.warning(_AWAY, asked.uri, reason_of(error), outbox / OUTBOX)
        run_id, is_new, is_away = asked.run_id or f"{LOCAL}{uuid.uuid4().hex}", asked.run_id is None, True
    box = Outbox.create(outbox, _header(asked, run_id, tags) | {"reached": {} if is_new else None})
    channel = Posted(asked.uri, left, box, asked.wait_seconds, is_away=is_away)
    return _welcomed(tags, Opened(run_id, is_new, channel, {}))


def discard_run(uri: str, run_id: str) -> None:
    """Takes a run that was refused before it had anything to record out of the list.

    Raises:
        OSError: the store cannot be written, or does not answer.
    """
    try:
        with written(uri):
            open_client(uri).delete_run(run_id)
    except Exception as error:
        if isinstance(error, OSError) or not is_out_of_reach(error):
            raise
        raise ConnectionError(no_answer(uri, error)) from error


def _welcomed(tags: dict[str, str], opened: Opened) -> Opened:
    """The run, marked as running in this process where it was made by an earlier one."""
    if not opened.is_new:
        opened.channel.put({"do": "tags", "values": tags})
        opened.channel.put({"do": "status", "status": RUNNING, "time": None})
    return opened


def _in_store(asked: Asked, tags: dict[str, str], begun: set[str]) -> tuple[MlflowClient, str, bool]:
    """A client, the id of the run, and whether it is new.

    Args:
        asked: what is wanted.
        tags: of a new run.
        begun: local ids of runs whose beginning waits in an outbox.
    """
    if not is_server(asked.uri):
        with written(asked.uri):
            client = open_client(asked.uri)
            return client, *_found_or_made(client, asked, tags, begun)
    set_limits()
    check_answers(asked.uri)
    try:
        client = open_client(asked.uri)
        return client, *_found_or_made(client, asked, tags, begun)
    except Exception as error:
        check_access(asked.uri, error)
        if isinstance(error, ConnectionError) or not is_out_of_reach(error):
            raise
        raise ConnectionError(no_answer(asked.uri, error)) from error


def _found_or_made(client: MlflowClient, asked: Asked, tags: dict[str, str], begun: set[str]) -> tuple[str, bool]:
    experiment = experiment_id(client, asked.uri, asked.experiment)
    mark_dead_runs(client, experiment)
    known = asked.run_id
    if known and known.startswith(LOCAL):
        tags = {**tags, LOCAL_TAG: known}
        known = local_run(client, experiment, known)
    if known and find_run(client, known) is not None:
        return known, False
    if asked.run_id and asked.run_id not in begun:
        logger.warning("MLflow run %s is not in %s; a new run goes on.", asked.run_id, asked.uri)
    from mlflow.tracking.context.registry import resolve_tags

    run = client.create_run(experiment, run_name=asked.run_name, tags=resolve_tags(tags))
    return run.info.run_id, asked.run_id not in begun


def _header(asked: Asked, run_id: str, tags: dict[str, str]) -> dict[str, Any]:
    """What an outbox has to know of the run, or to make it."""
    header = {"uri": asked.uri, "experiment": asked.experiment, "run_id": run_id, "local_id": None}
    if not run_id.startswith(LOCAL):
        return header
    from mlflow.tracking.context.registry import resolve_tags

    return header | {
        "run_id": None,
        "local_id": run_id,
        "run_name": asked.run_name,
        "tags": resolve_tags({**tags, LOCAL_TAG: run_id}),
        "start_time": int(time.time() * 1000),
    }
