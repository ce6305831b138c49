"""The MLflow store: its client, whether a server answers, its experiments, and the runs of killed processes."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from panollava.tracking import location
from panollava.tracking.database import FOLDER_TAG, check_database, opened, update_addresses
from panollava.tracking.location import StoreBusyError, connection_uri, database_file, is_server, store_lock

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

STAGES_TAG = "panollava.stages"  # tag of training runs: the stages that were trained
HOST_TAG, PID_TAG, SINCE_TAG = "panollava.host", "panollava.pid", "panollava.since"
PID_SPACE_TAG = "panollava.pid_space"  # containers may share the name of their host, and number processes by themselves
PARENT_TAG = "mlflow.parentRunId"
LOCAL_TAG = "panollava.local_id"  # tag of a run that began while its server was away: the id that it had until then
LOCAL = "local-"  # prefix of the id of a run that its server has not made yet
CLOCK_SLACK_S = 5.0

PROBE_SECONDS = 5.0
# Unless the environment has others. MLflow's own are seven retries of two minutes; ``Delivery`` retries by itself.
LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}

_MAY_PASS = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")
"""MLflow's codes of errors that may pass; the first is that of a failed connection, among others."""
_DENIED, _DENIED_STATUS = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"), (401, 403)
_REASONS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not known here: MLFLOW_TRACKING_SERVER_CERT_PATH names the file, "
    "MLFLOW_TRACKING_INSECURE_TLS=true accepts any",
    "is locked": "another process keeps it locked",
    "refused": "connection refused",
    "NameResolutionError": "its name is not known",
    "timed out": "no answer in time",
    "timeout": "no answer in time",
    "Connection reset": "connection reset",
    "Remote end closed": "connection closed",
}
"""Parts of the long texts of connection errors, and what they mean."""
_DISK_FAILURES = ("database or disk is full", "disk I/O error", "readonly database", "unable to open database file")


def check_answers(uri: str) -> None:
    """Raises a ConnectionError if a store is locked or does not answer within a few seconds."""
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
        # With the certificates and the user of MLflow's variables; any answer will do.
        creds = get_default_host_creds(connection_uri(uri))
        http_request(creds, "/health", "GET", max_retries=0, timeout=PROBE_SECONDS, raise_on_status=False)
    except (MlflowException, requests.RequestException) as error:
        raise no_answer(uri, error) from error


def answers(uri: str) -> bool:
    """Whether a store is there."""
    try:
        check_answers(uri)
    except ConnectionError:
        return False
    return True


def check_access(uri: str, error: Exception) -> None:
    """Raises a PermissionError with advice for a request that was refused because of its user."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if getattr(error, "error_code", None) in _DENIED or status in _DENIED_STATUS:
        raise PermissionError(
            f"tracking.uri={uri} denies the request ({reason_of(error)}). Set {location.USER} and "
            f"{location.PASSWORD}, or MLFLOW_TRACKING_TOKEN, in the environment."
        ) from error


def may_pass(error: Exception) -> bool:
    """Whether an error of MLflow's client may pass, as opposed to a request that the server will never accept."""
    import requests
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in _MAY_PASS
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500
    return isinstance(error, ConnectionError | TimeoutError | requests.RequestException)


def no_answer(uri: str, error: Exception) -> ConnectionError:
    """The error for a server that does not answer."""
    return ConnectionError(
        f"tracking.uri={uri} does not answer ({reason_of(error)}). Start the server, correct the address, or "
        "train with tracking=none."
    )


def reason_of(error: Exception) -> str:
    """Why something failed, in a few words where they are known."""
    text = " ".join(str(error).split()) or repr(error)
    if limit := re.search(r"read timeout=(\d+)", text):
        return f"the answer takes longer than {limit[1]} s"
    return next((words for sign, words in _REASONS.items() if sign in text), text[:200])


def open_client(uri: str) -> MlflowClient:
    """A client of the store, which is made if missing.

    MLflow makes its tables on first use, and processes that do so side by side crash ("table already
    exists"), so the first use happens under a file lock. Raises the errors of ``check_database``.
    """
    for name, value in (LIMITS if is_server(uri) else {}).items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # usage reports are sent only where the user enables them
    from mlflow.tracking import MlflowClient

    with store_lock(uri), _quiet("mlflow.store.db.utils", "alembic"):
        check_database(uri)
        client = MlflowClient(tracking_uri=connection_uri(uri))
        update_addresses(uri)
        return client


@contextlib.contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Raises an OSError with advice if the disk of a store fails, a StoreBusyError if the file is locked."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _quiet("mlflow.store.db.utils", level=logging.CRITICAL):  # it would print what is raised as well
            yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        file = database_file(uri)
        if file is not None and "database is locked" in str(error):
            raise StoreBusyError(file) from error
        reasons = (getattr(error, "strerror", None), *(text for text in _DISK_FAILURES if text in str(error)))
        reason = next(filter(None, reasons), None)
        if reason is None:
            raise
        raise OSError(
            f"tracking.uri={uri} could not be written ({reason}). Free some space there, use another file, "
            "tracking.uri=sqlite:////elsewhere/mlflow.db, or none, tracking=none, and run the same command to resume."
        ) from error


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """Id of an experiment, which is made if missing; a ValueError if it was deleted in MLflow."""
    from mlflow.exceptions import MlflowException

    with store_lock(uri):
        try:
            experiment = client.get_experiment_by_name(name)
        except Exception as error:
            if not (is_server(uri) and may_pass(error)):
                raise
            raise no_answer(uri, error) from error
        if experiment is None:
            file = database_file(uri)
            root = (file.parent / location.ARTIFACTS).as_uri() if file else None
            try:
                made = client.create_experiment(name, artifact_location=root)
            except MlflowException as error:
                # A server has no file lock: another process may have been faster.
                experiment = client.get_experiment_by_name(name)
                if experiment is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            else:
                update_addresses(uri)
                return made
    if experiment.lifecycle_stage == "deleted":
        raise ValueError(
            f"tracking.experiment={name!r} was deleted in MLflow. Choose another name, or bring it back: "
            f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        )
    return experiment.experiment_id


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """A run, or None where the store does not have it or it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def local_run(client: MlflowClient, experiment: str, local_id: str) -> str | None:
    """Id of the run that began under ``local_id``, None where the store does not have it yet."""
    found = client.search_runs([experiment], f"tags.`{LOCAL_TAG}` = '{local_id}'", max_results=1)
    return found[0].info.run_id if found else None


def parent_of(client: MlflowClient, experiment: str, about: Sequence[str]) -> str | None:
    """The run below which a run about other runs is listed; None where the store has none of them.

    MLflow gives a run one parent. A run about one run is its child. A run about several is a child of the sweep that
    all are jobs of, else of the first.
    """
    ids = [local_run(client, experiment, one) if one.startswith(LOCAL) else one for one in about]
    runs = [run for one in ids if one and (run := find_run(client, one)) is not None]
    parents = {run.data.tags.get(PARENT_TAG) for run in runs}
    if 1 < len(runs) == len(about) and len(parents) == 1:
        sweep = parents.pop()
        if sweep is not None and find_run(client, sweep) is not None:
            return sweep
    return runs[0].info.run_id if runs else None


def last_steps(client: MlflowClient, run_id: str) -> dict[str, int]:
    """The last step of each metric that a run has."""
    return {metric.key: metric.step for metric in client.get_run(run_id).data.to_proto().metrics}


def process_tags() -> dict[str, str]:
    """Tags that name this process as the owner of a run."""
    host, since = socket.gethostname(), f"{time.time():.3f}"
    return {HOST_TAG: host, PID_SPACE_TAG: _pid_space(), PID_TAG: str(os.getpid()), SINCE_TAG: since}


def _pid_space() -> str:
    """The namespace that this system's process numbers belong to; empty where there is no such thing."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def mark_dead_runs(client: MlflowClient, experiment: str) -> list[str]:
    """Ends, as KILLED, the runs still listed as running whose process on this host has gone; returns their ids.

    On a server those of the experiment with this id; in a file, which belongs to this host, those of all.
    """
    ids = [experiment]
    if not is_server(client.tracking_uri):
        ids = [one.experiment_id for one in client.search_experiments()]
    query = f"attributes.status = 'RUNNING' and tags.`{HOST_TAG}` = '{socket.gethostname()}'"
    dead = [run.info.run_id for run in client.search_runs(ids, query) if _is_dead(run.data.tags)]
    for run_id in dead:
        client.set_terminated(run_id, "KILLED")
        logger.info("MLflow run %s belongs to a process that has ended; marked KILLED.", run_id)
    return dead


def end_killed(client: MlflowClient, run_ids: Sequence[str]) -> None:
    """``mark_dead_runs`` in the experiments of some runs."""
    runs = [find_run(client, run_id) for run_id in run_ids]
    for experiment in {run.info.experiment_id for run in runs if run is not None}:
        mark_dead_runs(client, experiment)


def _is_dead(tags: dict[str, str]) -> bool:
    """Whether the process that opened the run has gone; its number may belong to a later one."""
    here = _pid_space()
    if tags.get(PID_SPACE_TAG, here) != here:  # nothing is known about the processes of another container
        return False
    try:
        process = psutil.Process(int(tags[PID_TAG]))
        is_zombie = process.status() == psutil.STATUS_ZOMBIE  # its parent has not waited for it
        return is_zombie or process.create_time() > float(tags[SINCE_TAG]) + CLOCK_SLACK_S
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:  # another user's process: it exists
        return False


@contextlib.contextmanager
def _quiet(*names: str, level: int = logging.WARNING) -> Iterator[None]:
    """Keeps messages of some loggers below ``level`` out of the run's log."""
    before = {each: each.level for each in map(logging.getLogger, names)}
    for each in before:
        each.setLevel(level)
    try:
        yield
    finally:
        for each, old in before.items():
            each.setLevel(old)


def folders_of(experiment: str, uri: str | None) -> list[str]:
    """Folders of the finished training runs of an MLflow experiment that still exist, the oldest first."""
    address = location.absolute_uri(uri)
    with store_errors(address):
        client = open_client(address)
        found = client.get_experiment_by_name(experiment)
    if found is None:
        names = ", ".join(sorted(one.name for one in client.search_experiments()))
        raise ValueError(
            f"mlflow_experiment={experiment}: MLflow has none of that name at {address}. There are: {names}."
        )
    query, order = f"attributes.status = 'FINISHED' and tags.`{STAGES_TAG}` != ''", ["attributes.start_time ASC"]
    runs = client.search_runs([found.experiment_id], query, order_by=order, max_results=5000)
    file = database_file(address)
    base = file.parent if file else Path()
    return [str(base / tag) for run in runs if (tag := run.data.tags.get(FOLDER_TAG)) and (base / tag).is_dir()]
