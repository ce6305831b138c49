"""Opening the MLflow store: made once under a lock, with the runs of killed processes put right."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from panollava.tracking.database import FOLDER_TAG, check_database, opened, settle
from panollava.tracking.location import (
    ARTIFACTS,
    PASSWORD,
    USER,
    StoreBusyError,
    absolute_uri,
    connection_uri,
    database_file,
    is_server,
    store_lock,
)

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

PROBE_SECONDS = 5.0
LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""MLflow's own limits are seven retries of two minutes; whoever sends tries again by itself (see ``Delivery``)."""

BUSY = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")
BROKEN = 500
DENIED, DENIED_STATUS = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"), (401, 403)

REASONS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not known here: MLFLOW_TRACKING_SERVER_CERT_PATH names the file, "
    "MLFLOW_TRACKING_INSECURE_TLS=true takes any",
    "is locked": "another process keeps it locked",
    "refused": "connection refused",
    "NameResolutionError": "its name is not known",
    "timed out": "no answer in time",
    "timeout": "no answer in time",
    "Connection reset": "connection reset",
    "Remote end closed": "connection closed",
}
"""What errors of connections have in their long texts, and what it means."""


def set_limits() -> None:
    """Keeps a request to a server that is gone short; what the user's environment says counts."""
    for name, value in LIMITS.items():
        os.environ.setdefault(name, value)


def check_answers(uri: str) -> None:
    """Asks a store whether it is there, in a few seconds; any answer of a server will do.

    Raises:
        ConnectionError: it is not.
    """
    if (file := database_file(uri)) is not None:
        with store_lock(uri, PROBE_SECONDS), opened(file, PROBE_SECONDS) as database:
            database.execute("begin immediate")
    if not uri.startswith("http"):
        return
    import requests
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        # With the certificates, the user and whatever else MLflow's variables say.
        creds = get_default_host_creds(connection_uri(uri))
        http_request(creds, "/health", "GET", max_retries=0, timeout=PROBE_SECONDS, raise_on_status=False)
    except (MlflowException, requests.RequestException) as error:
        raise ConnectionError(no_answer(uri, error)) from error


def check_access(uri: str, error: Exception) -> None:
    """Says what a server wants to know that turned a request away.

    Raises:
        PermissionError: it did so because of who asked.
    """
    code = getattr(error, "error_code", None)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if code in DENIED or status in DENIED_STATUS:
        raise PermissionError(
            f"tracking.uri={uri} turns the request away ({reason_of(error)}). Set {USER} and {PASSWORD}, or "
            "MLFLOW_TRACKING_TOKEN, in the environment."
        ) from error


def answers(uri: str) -> bool:
    """Whether a server is there."""
    try:
        check_answers(uri)
    except ConnectionError:
        return False
    return True


def is_out_of_reach(error: Exception) -> bool:
    """Whether an error of MLflow's client may pass, as opposed to a request that the server will never take."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        # The code of a failed connection, and of whatever MLflow has no better code for.
        return error.error_code in ("INTERNAL_ERROR", *BUSY)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= BROKEN
    return isinstance(error, ConnectionError | TimeoutError | requests.RequestException)


def no_answer(uri: str, error: Exception) -> str:
    """The message for a server that does not answer."""
    return (
        f"tracking.uri={uri} does not answer ({reason_of(error)}). Start the server, correct the address, or "
        "train with tracking=none."
    )


def reason_of(error: Exception) -> str:
    """Why something failed, in a few words where they are known."""
    text = " ".join(str(error).split()) or repr(error)
    for sign, words in REASONS.items():
        if sign in text:
            return words
    return text[:200]


logger = logging.getLogger(__name__)

STAGES_TAG = "panollava.stages"
"""Tag of training runs: what was trained."""

HOST_TAG, PID_TAG, SINCE_TAG = "panollava.host", "panollava.pid", "panollava.since"
PARENT_TAG = "mlflow.parentRunId"
LOCAL_TAG = "panollava.local_id"
"""Tag of a run that was begun while its server was away: the id it had until then."""
CLOCK_SLACK_S = 5.0
_DISK_FAILURES = ("database or disk is full", "disk I/O error", "readonly database", "unable to open database file")
"""What SQLite says of them."""
_LOCKED = "database is locked"


def open_client(uri: str) -> MlflowClient:
    """A client of the store, which is made if it is missing.

    MLflow makes its tables on first use, and processes that do so side by side crash ("table already
    exists"), so the first use happens under a file lock.

    Args:
        uri: from `absolute_uri`.

    Raises:
        ValueError: the file is damaged, or of another version of MLflow.
        StoreBusyError: another process keeps it locked.
    """
    if is_server(uri):
        set_limits()
    # A tracker writes where it is told to; MLflow's own usage reports are left to those who ask for them.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    with store_lock(uri), _quiet("mlflow.store.db.utils", "alembic"):
        check_database(uri)
        client = MlflowClient(tracking_uri=connection_uri(uri))
        settle(uri)
        return client


@contextlib.contextmanager
def written(uri: str) -> Iterator[None]:
    """Turns a failure of the disk that holds a store into a sentence.

    Raises:
        OSError: the disk is full, read-only or broken.
        StoreBusyError: another process keeps the file locked.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _quiet("mlflow.store.db.utils", level=logging.CRITICAL):  # it would print what is raised as well
            yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        file = database_file(uri)
        if file is not None and _LOCKED in str(error):
            raise StoreBusyError(file) from error
        reasons = (getattr(error, "strerror", None), *(text for text in _DISK_FAILURES if text in str(error)))
        reason = next((text for text in reasons if text), None)
        if reason is None:
            raise
        raise OSError(
            f"tracking.uri={uri} could not be written ({reason}). Free some space there or give another place, "
            "tracking.uri=sqlite:////elsewhere/mlflow.db, or none, tracking=none; the same command then goes on."
        ) from error


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Id of an experiment, which is made if it is missing.

    Raises:
        ConnectionError: the server does not answer.
        ValueError: the experiment was deleted in MLflow.
    """
    from mlflow.exceptions import MlflowException

    with store_lock(uri):
        try:
            experiment = client.get_experiment_by_name(name)
        except Exception as error:
            if not (is_server(uri) and is_out_of_reach(error)):
                raise
            raise ConnectionError(no_answer(uri, error)) from error
        if experiment is None:
            try:
                file = database_file(uri)
                made = client.create_experiment(
                    name, artifact_location=(file.parent / ARTIFACTS).as_uri() if file else None
                )
                settle(uri)
                return made
            except MlflowException as error:
                # A server has no file lock: another process may have been faster.
                experiment = client.get_experiment_by_name(name)
                if experiment is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
    if experiment.lifecycle_stage == "deleted":
        raise ValueError(
            f"tracking.experiment={name!r} was deleted in MLflow. Choose another name, or bring it back: "
            f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        )
    return experiment.experiment_id


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """A run, or None where the store does not know it any more."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def process_tags() -> dict[str, str]:
    """Tags that say which process owns a run from now on."""
    return {HOST_TAG: socket.gethostname(), PID_TAG: str(os.getpid()), SINCE_TAG: f"{time.time():.3f}"}


def local_run(client: MlflowClient, experiment: str, local_id: str) -> str | None:
    """Id of the run that was begun under ``local_id``, None where it was never made."""
    found = client.search_runs([experiment], f"tags.`{LOCAL_TAG}` = '{local_id}'", max_results=1)
    return found[0].info.run_id if found else None


def reached_steps(client: MlflowClient, run_id: str) -> dict[str, int]:
    """The last step of each metric that a run has."""
    return {metric.key: metric.step for metric in client.get_run(run_id).data.to_proto().metrics}


def mark_dead_runs(client: MlflowClient, experiment: str) -> list[str]:
    """Ends, as KILLED, the runs still listed as running whose process on this host is gone.

    Args:
        client: from `open_client`.
        experiment: id of the experiment to put right; in a file, which is nobody else's, all are.

    Returns:
        Ids of the runs that were ended.
    """
    is_shared = is_server(client.tracking_uri)
    running = client.search_runs(
        [experiment] if is_shared else [one.experiment_id for one in client.search_experiments()],
        f"attributes.status = 'RUNNING' and tags.`{HOST_TAG}` = '{socket.gethostname()}'",
    )
    dead = [run.info.run_id for run in running if not _alive(run.data.tags)]
    for run_id in dead:
        client.set_terminated(run_id, "KILLED")
        logger.info("MLflow run %s was left behind by a process that is gone; marked KILLED.", run_id)
    return dead


def end_killed(client: MlflowClient, run_ids: Sequence[str]) -> None:
    """Ends the runs of processes that are gone, in the experiments of some runs (see ``mark_dead_runs``)."""
    runs = [find_run(client, run_id) for run_id in run_ids]
    for experiment in {run.info.experiment_id for run in runs if run is not None}:
        mark_dead_runs(client, experiment)


def _alive(tags: dict[str, str]) -> bool:
    """Whether the process that opened the run still runs, and its number was not given to a later one."""
    try:
        process = psutil.Process(int(tags[PID_TAG]))
        is_dead = process.status() == psutil.STATUS_ZOMBIE  # nobody has asked how it ended
        return not is_dead and process.create_time() <= float(tags[SINCE_TAG]) + CLOCK_SLACK_S
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # somebody's process: it exists
        return True


@contextlib.contextmanager
def _quiet(*names: str, level: int = logging.WARNING) -> Iterator[None]:
    """Keeps the messages of making the tables out of the run's log."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(level)
    try:
        yield
    finally:
        for each, before in zip(loggers, levels, strict=True):
            each.setLevel(before)


def folders_of(experiment: str, uri: str | None) -> list[str]:
    """Folders of the finished training runs of an experiment that are still there, the oldest first.

    Args:
        experiment: its name in MLflow.
        uri: of the store; None for that of the environment, else the one of the working directory.

    Raises:
        ValueError: there is no such experiment.
    """
    address = absolute_uri(uri)
    with written(address):
        client = open_client(address)
        found = client.get_experiment_by_name(experiment)
    if found is None:
        names = ", ".join(sorted(one.name for one in client.search_experiments()))
        raise ValueError(
            f"mlflow_experiment={experiment}: MLflow has none of that name at {address}. There are: {names}."
        )
    runs = client.search_runs(
        [found.experiment_id],
        f"attributes.status = 'FINISHED' and tags.`{STAGES_TAG}` != ''",
        order_by=["attributes.start_time ASC"],
        max_results=5000,
    )
    file = database_file(address)
    base = file.parent if file else Path()
    return [str(base / tag) for run in runs if (tag := run.data.tags.get(FOLDER_TAG)) and (base / tag).is_dir()]
