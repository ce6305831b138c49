"""The parent run that holds the jobs of a sweep."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from panollava.tracking.database import FOLDER_TAG, recorded_folder
from panollava.tracking.delivery import Direct, deliver, post
from panollava.tracking.location import StoreBusyError, is_server
from panollava.tracking.outbox import OUTBOX, Operation
from panollava.tracking.store import (
    end_killed,
    experiment_id,
    find_run,
    mark_dead_runs,
    open_client,
    process_tags,
    set_limits,
    written,
)
from panollava.tracking.tracker import Status


def start_parent(uri: str, experiment: str, name: str, folder: Path, run_id: str | None = None) -> str:
    """Opens a parent run, making the store before any job needs it.

    What earlier starts could not send is sent first; it would end the run while it goes on.

    Args:
        uri: from `absolute_uri`.
        experiment: experiment of the parent and of its jobs.
        name: what the run is called in the list.
        folder: of the sweep.
        run_id: parent of an earlier start, which goes on if it is still there.

    Returns:
        The id that each job's tracker takes as `parent_run_id`.

    Raises:
        ConnectionError: the server does not answer, or the file is locked.
    """
    set_limits()
    with written(uri):
        client = open_client(uri)
        experiment_key = experiment_id(client, uri, experiment)
    if (folder / OUTBOX).is_dir():
        deliver(folder)
    with written(uri):
        mark_dead_runs(client, experiment_key)
        tags = {FOLDER_TAG: recorded_folder(folder, uri), **process_tags()}
        known = find_run(client, run_id) if run_id else None
        if known is None or known.info.experiment_id != experiment_key:
            return client.create_run(experiment_key, run_name=name, tags=tags).info.run_id
        for key, value in tags.items():
            client.set_tag(known.info.run_id, key, value)
        client.update_run(known.info.run_id, status="RUNNING")
        return known.info.run_id


def end_parent(
    uri: str, run_id: str, status: Status, files: Sequence[Path], folder: Path, *, wait_seconds: float = 0.0
) -> int:
    """Ends the parent run that `start_parent` opened, and the runs of jobs that were killed.

    Args:
        uri, run_id: of the run.
        status: how it ended.
        files: the sweep's table and pictures, kept with it in the folder `sweep`.
        folder: of the sweep; keeps what a server does not take.
        wait_seconds: how long to wait for a server that does not answer.

    Returns:
        How many records wait for the server.

    Raises:
        OSError: the disk of the store is full, read-only or broken.
    """
    operations: list[tuple[Operation, Path | None]] = [({"do": "file", "into": "sweep"}, file) for file in files]
    operations.append(({"do": "status", "status": status, "time": int(time.time() * 1000)}, None))
    if not is_server(uri):
        with contextlib.suppress(StoreBusyError), written(uri):
            client = open_client(uri)
            channel = Direct(client, run_id, uri)
            for operation, source in operations:
                channel.put(operation, source)
            end_killed(client, [run_id])
            return 0
    return post(folder, uri, run_id, operations, wait_seconds=wait_seconds)
