"""Where runs are kept: one SQLite file and one artifact folder that a plain `mlflow ui` finds."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from filelock import FileLock, Timeout

DEFAULT_URI, DEFAULT_EXPERIMENT = "sqlite:///mlflow.db", "panollava"
SQLITE = "sqlite:///"
REMOTE = ("http://", "https://", "databricks", "postgresql", "mysql", "mssql")
BUSY_SECONDS = 60
"""How long a writer waits for another process of the sweep before it gives up."""

ARTIFACTS = "mlruns"
"""Folder of the artifacts, beside the database."""

URI, EXPERIMENT, USER, PASSWORD = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
)
"""MLflow's own variables; the first two count where the config names nothing."""

_QUERY = re.compile(r"\?\w+=[^/?&]*(&\w+=[^/?&]*)*$")
"""Options of SQLite at the end of an address; any other question mark is part of a path."""

_SECRET = re.compile(r"pass|pwd|token|secret|key|credential|auth|odbc_connect", re.IGNORECASE)
"""In the name of an option whose value nobody else should see."""


class StoreBusyError(ConnectionError):
    """Another process has kept a store on disk locked for too long."""

    def __init__(self, file: Path) -> None:
        super().__init__(
            f"{file} is locked by another process. End that process or wait for it; the same command then goes on."
        )


def absolute_uri(uri: str | None = None, folder: Path | None = None) -> str:
    """The store's address with its path made absolute, so that a later change of directory cannot move it.

    Args:
        uri: `sqlite:///relative/or/absolute/file.db` or the address of a tracking server; None takes that of
            ``MLFLOW_TRACKING_URI``, else `sqlite:///mlflow.db`.
        folder: what a relative path starts from; the working directory by default.

    Returns:
        An address without any secret: one in ``MLFLOW_TRACKING_URI`` stays there.

    Raises:
        ValueError: an address that MLflow does not keep runs under, or one with a secret in it.
    """
    key, given = "tracking.uri", uri
    if given is None:
        key, given = URI, os.environ.get(URI) or DEFAULT_URI
    if uri is not None:
        refuse_secret(key, given)
    given = without_secret(given) if has_secret(given) else given
    if given.startswith(REMOTE):
        return given
    if not given.startswith(SQLITE) or not given.removeprefix(SQLITE):
        shown = "" if "@" in given else repr(given)  # of an address that is none nobody can say what is secret in it
        raise ValueError(
            f"{key}={shown} is not a place where runs can be kept. "
            f"Use {DEFAULT_URI} (a file; relative to the working directory) or a server, http://host:port."
        )
    path, query = _parts(given)
    return SQLITE + ((folder or Path.cwd()) / path).resolve().as_posix() + query


def experiment_name(name: str | None) -> str:
    """Name of an experiment; None takes that of ``MLFLOW_EXPERIMENT_NAME``, else `panollava`."""
    return name or os.environ.get(EXPERIMENT) or DEFAULT_EXPERIMENT


def refuse_secret(key: str, uri: str) -> None:
    """Refuses an address with a secret, without showing it.

    Raises:
        ValueError: it has one.
    """
    if has_secret(uri):
        raise ValueError(
            f"{key} holds a user name, a password or a token, which would be written into logs and records. Leave it "
            f"out of the address and set {USER} and {PASSWORD}, or MLFLOW_TRACKING_TOKEN, in the environment; or set "
            f"{URI} there to the whole address and leave {key} out."
        )


def has_secret(uri: str) -> bool:
    """Whether an address holds what nobody else should see; in that of an HTTP server, whatever is no address."""
    if uri.startswith("sqlite:"):
        return False
    scheme, mark, rest = uri.partition("://")
    user, at, _ = rest.rpartition("@")
    if scheme.lower() in ("http", "https"):
        return bool(at or "?" in rest or "#" in rest)
    return bool(mark and at and ":" in user) or any(_SECRET.search(name) for name in _options(rest))


def without_secret(uri: str) -> str:
    """An address with nothing in it that ``has_secret`` finds."""
    scheme, _, rest = uri.partition("://")
    user, at, place = rest.rpartition("@")
    place, _, query = place.partition("?")
    if scheme.lower() in ("http", "https"):
        return f"{scheme}://{place.partition('#')[0]}"
    kept = "&".join(one for one in query.split("&") if one and not _SECRET.search(one.partition("=")[0]))
    return f"{scheme}://{user.partition(':')[0]}{at}{place}{'?' if kept else ''}{kept}"


def connection_uri(uri: str) -> str:
    """The address that MLflow is to connect to: with the secret that ``MLFLOW_TRACKING_URI`` holds for it.

    User and password of an HTTP server move into variables of their own, since MLflow's messages show the address.

    Args:
        uri: from ``absolute_uri``.
    """
    if (file := database_file(uri)) is not None:
        query = _parts(uri)[1]
        # SQLite's own five seconds are short for a sweep.
        patience = "" if "timeout=" in query else f"{'&' if query else '?'}timeout={BUSY_SECONDS}"
        return sqlalchemy_uri(file) + query + patience
    given = os.environ.get(URI, "")
    if not has_secret(given) or without_secret(given) != uri:
        return uri
    if not uri.startswith("http"):
        return given
    user, _, password = given.partition("://")[2].rpartition("@")[0].partition(":")
    for name, value in ((USER, user), (PASSWORD, password)):
        os.environ.setdefault(name, unquote(value))
    os.environ[URI] = uri
    return uri


def sqlalchemy_uri(file: Path) -> str:
    """Address of an SQLite file as SQLAlchemy reads it: for it ``?`` ends a path, and ``%20`` is a blank."""
    from sqlalchemy.engine import make_url

    path = file.as_posix()
    # With the slashes quoted as well, since MLflow makes the folders that it sees in an address.
    forms = SQLITE + path, SQLITE + quote(path, safe="")
    return next((form for form in forms if make_url(form).database == path), forms[0])


def database_file(uri: str) -> Path | None:
    """File of an absolute SQLite address, None for a server."""
    return Path(_parts(uri)[0]) if uri.startswith(SQLITE) else None


def artifact_root(file: Path) -> str:
    """Address of the artifact folder of a database, `mlruns` beside it.

    It is relative where the database lies in the working directory: `mlflow ui` is started there, and finds the
    artifacts wherever the folder is moved or copied to. For a database elsewhere it is absolute.
    """
    return ARTIFACTS if file.parent == Path.cwd().resolve() else (file.parent / ARTIFACTS).as_uri()


def way_to_look(uri: str) -> str:
    """How to see what a store holds."""
    file = database_file(uri)
    if file is None:
        return uri
    named = "" if file.name == DEFAULT_URI.removeprefix(SQLITE) else f" --backend-store-uri {SQLITE}{file.name}"
    return f"`mlflow ui{named}` in {file.parent}, then http://127.0.0.1:5000"


def is_server(uri: str) -> bool:
    """Whether runs go over the network, where nobody answers now and then."""
    return uri.startswith(REMOTE)


@contextlib.contextmanager
def store_lock(uri: str, wait_seconds: float = BUSY_SECONDS) -> Iterator[None]:
    """Keeps other processes from changing a store on disk at the same time.

    Raises:
        StoreBusyError: another process does not let go of it.
    """
    file = database_file(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(f"{file}.lock").acquire(timeout=wait_seconds)
    except Timeout:
        raise StoreBusyError(file) from None
    with lock:
        yield


def _parts(uri: str) -> tuple[str, str]:
    """Path and options of an SQLite address, which MLflow's cannot hold apart where there is a ``?`` in the path."""
    place = uri.removeprefix(SQLITE)
    found = _QUERY.search(place)
    return (place[: found.start()], found[0]) if found else (place, "")


def _options(rest: str) -> list[str]:
    return [one.partition("=")[0] for one in rest.partition("?")[2].split("&")]
