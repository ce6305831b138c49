"""The address of a run store: an SQLite file with its artifact folder beside it, or a tracking server."""

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
BUSY_SECONDS = 60  # how long a writer waits for another process of the sweep
ARTIFACTS = "mlruns"  # folder of the artifacts, beside the database

URI, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
"""MLflow's own variables; the first two are the defaults of the config."""

_QUERY = re.compile(r"\?\w+=[^/?&]*(&\w+=[^/?&]*)*$")  # options of SQLite; other question marks are part of a path
_SECRET = re.compile(r"pass|pwd|token|secret|key|credential|auth|odbc_connect", re.IGNORECASE)
"""In the name of an option with a secret value."""


class StoreBusyError(ConnectionError):
    """Another process keeps a store on disk locked."""

    def __init__(self, file: Path) -> None:
        super().__init__(
            f"{file} is locked by another process. End that process or wait for it, and run the same command to resume."
        )


def absolute_uri(uri: str | None = None, folder: Path | None = None) -> str:
    """The store's address without secrets, its path made absolute so that a change of directory cannot move it.

    Args:
        uri: `sqlite:///relative/or/absolute/file.db` or the address of a tracking server; the default is
            ``MLFLOW_TRACKING_URI``, of which ``connection_uri`` alone uses the secret, else `sqlite:///mlflow.db`.
            Any other one, and one with a secret in it, raises a ValueError.
        folder: that a relative path starts from; the working directory by default.
    """
    key, given = "tracking.uri", uri
    if given is None:
        key, given = URI, without_secret(os.environ.get(URI) or DEFAULT_URI)
    else:
        refuse_secret(key, given)
    if given.startswith(REMOTE):
        return given
    if not given.startswith(SQLITE) or not given.removeprefix(SQLITE):
        shown = "" if "@" in given else repr(given)  # which part of a malformed address is secret is unknown
        raise ValueError(
            f"{key}={shown} cannot store runs. "
            f"Use {DEFAULT_URI} (a file; relative to the working directory) or a server, http://host:port."
        )
    path, query = _path_and_query(given)
    return SQLITE + ((folder or Path.cwd()) / path).resolve().as_posix() + query


def experiment_name(name: str | None) -> str:
    """Name of an experiment; the default is ``MLFLOW_EXPERIMENT_NAME``, else `panollava`."""
    return name or os.environ.get(EXPERIMENT) or DEFAULT_EXPERIMENT


def refuse_secret(key: str, uri: str) -> None:
    """Raises a ValueError for an address with a secret, without showing it."""
    if has_secret(uri):
        raise ValueError(
            f"{key} holds a user name, a password or a token, which would be written into logs and records. Leave it "
            f"out of the address and set {USER} and {PASSWORD}, or MLFLOW_TRACKING_TOKEN, in the environment; or set "
            f"{URI} there to the whole address and leave {key} out."
        )


def has_secret(uri: str) -> bool:
    """Whether an address holds a secret; in that of an HTTP server, a user name and any option count as one."""
    if uri.startswith("sqlite:"):
        return False
    scheme, mark, rest = uri.partition("://")
    user, at, _ = rest.rpartition("@")
    if scheme.lower() in ("http", "https"):
        return bool(at or "?" in rest or "#" in rest)
    options = rest.partition("?")[2].split("&")
    return bool(mark and at and ":" in user) or any(_SECRET.search(one.partition("=")[0]) for one in options)


def without_secret(uri: str) -> str:
    """An address without the parts that ``has_secret`` finds."""
    if not has_secret(uri):
        return uri
    scheme, _, rest = uri.partition("://")
    user, at, place = rest.rpartition("@")
    place, _, query = place.partition("?")
    if scheme.lower() in ("http", "https"):
        return f"{scheme}://{place.partition('#')[0]}"
    kept = "&".join(one for one in query.split("&") if one and not _SECRET.search(one.partition("=")[0]))
    return f"{scheme}://{user.partition(':')[0]}{at}{place}{'?' if kept else ''}{kept}"


def connection_uri(uri: str) -> str:
    """The address that MLflow connects to: ``absolute_uri`` with the secret that ``MLFLOW_TRACKING_URI`` has for it.

    User and password of an HTTP server move into variables of their own, since MLflow's messages show the address.
    """
    if (file := database_file(uri)) is not None:
        query = _path_and_query(uri)[1]
        # SQLite's own five seconds are short for a sweep.
        timeout = "" if "timeout=" in query else f"{'&' if query else '?'}timeout={BUSY_SECONDS}"
        return sqlalchemy_uri(file) + query + timeout
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
    """Address of an SQLite file for SQLAlchemy, which ends a path at ``?`` and reads ``%20`` as a blank."""
    from sqlalchemy.engine import make_url

    path = file.as_posix()
    # With the slashes quoted as well, since MLflow makes the folders that it sees in an address.
    forms = SQLITE + path, SQLITE + quote(path, safe="")
    return next((form for form in forms if make_url(form).database == path), forms[0])


def database_file(uri: str) -> Path | None:
    """File of an absolute SQLite address, None for a server."""
    return Path(_path_and_query(uri)[0]) if uri.startswith(SQLITE) else None


def artifact_root(file: Path) -> str:
    """Address of the artifact folder of a database, `mlruns` beside it.

    It is relative to the working directory, where `mlflow ui` is started, so that both can be moved; else absolute.
    """
    return ARTIFACTS if file.parent == Path.cwd().resolve() else (file.parent / ARTIFACTS).as_uri()


def how_to_view(uri: str) -> str:
    """How to open a store in a browser."""
    file = database_file(uri)
    if file is None:
        return uri
    option = "" if file.name == DEFAULT_URI.removeprefix(SQLITE) else f" --backend-store-uri {SQLITE}{file.name}"
    return f"`mlflow ui{option}` in {file.parent}, then http://127.0.0.1:5000"


def is_server(uri: str) -> bool:
    """Whether the store is reached over the network."""
    return uri.startswith(REMOTE)


@contextlib.contextmanager
def store_lock(uri: str, wait_seconds: float = BUSY_SECONDS) -> Iterator[None]:
    """Keeps other processes from changing a store on disk; raises a StoreBusyError if another one has the lock."""
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


def _path_and_query(uri: str) -> tuple[str, str]:
    """Path and options of an SQLite address; MLflow cannot separate them where there is a ``?`` in the path."""
    place = uri.removeprefix(SQLITE)
    found = _QUERY.search(place)
    return (place[: found.start()], found[0]) if found else (place, "")
