"""Making the store side by side, and putting right what killed processes leave behind."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time

import pytest

from panollava.tracking.location import absolute_uri, database_file
from panollava.tracking.mlflow_tracker import MlflowTracker
from panollava.tracking.store import (
    HOST_TAG,
    PID_SPACE_TAG,
    PID_TAG,
    SINCE_TAG,
    experiment_id,
    mark_dead_runs,
    open_client,
    process_tags,
)

OPEN_AND_DIE = """
import os, sys, time
from pathlib import Path
from panollava.tracking.mlflow_tracker import MlflowTracker
from panollava.tracking.runs import start_parent
import mlflow
while time.time() < float(sys.argv[2]):
    pass
is_sweep = sys.argv[3] == "0"
parent = start_parent(sys.argv[1], "side by side", "sweep", Path("sweep")) if is_sweep else None
tracker = MlflowTracker(uri=sys.argv[1], experiment="side by side", parent_run_id=parent)
tracker.start()
tracker.metrics({"loss": 1.0}, step=0)
tracker.flush()
os._exit(0)
"""


def test_processes_that_start_together_share_a_missing_store_and_their_deaths_are_noticed(tmp_path) -> None:
    uri = absolute_uri("sqlite:///mlflow.db", tmp_path)
    together = str(time.time() + 4)
    jobs = [
        subprocess.Popen([sys.executable, "-c", OPEN_AND_DIE, uri, together, str(number)], stderr=subprocess.PIPE)
        for number in range(3)
    ]
    errors = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], errors

    client = open_client(uri)
    with MlflowTracker(uri=uri, experiment="another"):
        pass
    runs = client.search_runs([experiment_id(client, uri, "side by side")])
    assert [run.info.status for run in runs] == ["KILLED"] * 4
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs} - {None}
    assert [run.data.metrics for run in runs if run.info.run_id not in parents] == [{"loss": 1.0}] * 3
    assert len(parents) == 1
    assert database_file(uri).is_file()


def _gone_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


def test_only_runs_of_processes_that_are_gone_on_this_host_are_ended(client, store_uri, experiment) -> None:
    key = experiment_id(client, store_uri, experiment)
    mine = process_tags()
    tags = {
        "mine": mine,
        "gone": {**mine, PID_TAG: str(_gone_pid())},
        "reused number": {**mine, SINCE_TAG: "1000.0"},
        "another host": {**mine, PID_TAG: str(_gone_pid()), HOST_TAG: "elsewhere"},
        "another container": {**mine, PID_TAG: str(_gone_pid()), PID_SPACE_TAG: "pid:[1]"},
        "an earlier version's": {HOST_TAG: mine[HOST_TAG], SINCE_TAG: mine[SINCE_TAG], PID_TAG: str(_gone_pid())},
        "not ours": {},
    }
    ids = {name: client.create_run(key, tags=each).info.run_id for name, each in tags.items()}
    assert set(mark_dead_runs(client, key)) == {ids["gone"], ids["reused number"], ids["an earlier version's"]}
    status = {name: client.get_run(run_id).info.status for name, run_id in ids.items()}
    assert status == {
        "mine": "RUNNING",
        "gone": "KILLED",
        "reused number": "KILLED",
        "another host": "RUNNING",
        "another container": "RUNNING",
        "an earlier version's": "KILLED",
        "not ours": "RUNNING",
    }


def test_opening_leaves_logging_as_it_was(tmp_path) -> None:
    logger = logging.getLogger("mlflow.store.db.utils")
    before = logging.getLogger().handlers[:], logging.getLogger().level, logger.level
    open_client(absolute_uri("sqlite:///mlflow.db", tmp_path))
    assert (logging.getLogger().handlers, logging.getLogger().level, logger.level) == before
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"]


def test_a_deleted_experiment_is_named_with_the_way_back(client, store_uri, experiment) -> None:
    client.delete_experiment(experiment_id(client, store_uri, experiment))
    with pytest.raises(ValueError, match=r"tracking\.experiment=.*mlflow experiments restore"):
        experiment_id(client, store_uri, experiment)
