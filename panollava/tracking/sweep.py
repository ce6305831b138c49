"""The parent run that holds the jobs of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from panollava.tracking.location import is_server
from panollava.tracking.server import is_out_of_reach, no_answer, set_limits
from panollava.tracking.store import FOLDER_TAG, experiment_id, find_run, mark_dead_runs, open_client, process_tags
from panollava.tracking.tracker import Status


def start_parent(uri: str, experiment: str, name: str, folder: Path, run_id: str | None = None) -> str:
    """Opens a parent run, making the store before any job needs it.

    Args:
        uri: from `absolute_uri`.
        experiment: experiment of the parent and of its jobs.
        name: what the run is called in the list.
        folder: of the sweep.
        run_id: parent of an earlier start, which goes on if it is still there.

    Returns:
        The id that each job's tracker takes as `parent_run_id`.
    """
    set_limits()
    client = open_client(uri)
    experiment_key = experiment_id(client, uri, experiment)
    mark_dead_runs(client, experiment_key)
    tags = {FOLDER_TAG: str(folder.resolve()), **process_tags()}
    known = find_run(client, run_id) if run_id else None
    if known is None or known.info.experiment_id != experiment_key:
        return client.create_run(experiment_key, run_name=name, tags=tags).info.run_id
    for key, value in tags.items():
        client.set_tag(known.info.run_id, key, value)
    client.update_run(known.info.run_id, status="RUNNING")
    return known.info.run_id


def end_parent(uri: str, run_id: str, status: Status = "FINISHED", files: Sequence[Path] = ()) -> None:
    """Ends the parent run that `start_parent` opened.

    Args:
        uri, run_id: of the run.
        status: how it ended.
        files: the sweep's table and pictures, kept with it in the folder `sweep`.

    Raises:
        ConnectionError: the server does not answer.
    """
    try:
        client = open_client(uri)
        for file in files:
            client.log_artifact(run_id, str(file), "sweep")
        client.set_terminated(run_id, status)
    except Exception as error:
        if not is_server(uri) or not is_out_of_reach(error):
            raise
        raise ConnectionError(no_answer(uri, error)) from error
