"""The parent run that holds the jobs of a sweep."""

from __future__ import annotations

from panollava.tracking.store import experiment_id, mark_dead_runs, open_client, process_tags
from panollava.tracking.tracker import Status


def start_parent(uri: str, experiment: str, name: str) -> str:
    """Opens a parent run, making the store before any job needs it.

    Args:
        uri: from `absolute_uri`.
        experiment: experiment of the parent and of its jobs.
        name: what the run is called in the list.

    Returns:
        The id that each job's tracker takes as `parent_run_id`.
    """
    client = open_client(uri)
    experiment_key = experiment_id(client, uri, experiment)
    mark_dead_runs(client, experiment_key)
    return client.create_run(experiment_key, run_name=name, tags=process_tags()).info.run_id


def end_parent(uri: str, run_id: str, status: Status = "FINISHED") -> None:
    """Ends the parent run that `start_parent` opened."""
    open_client(uri).set_terminated(run_id, status)
