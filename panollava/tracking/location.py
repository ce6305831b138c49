"""Where runs are kept: one SQLite file and one artifact folder that a plain `mlflow ui` finds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

DEFAULT_URI = "sqlite:///mlflow.db"
SQLITE = "sqlite:///"
REMOTE = ("http://", "https://", "databricks", "postgresql", "mysql", "mssql")
BUSY_SECONDS = 60
"""How long a writer waits for another process of the sweep before it gives up."""


def absolute_uri(uri: str = DEFAULT_URI, folder: Path | None = None) -> str:
    """The store's address with its path made absolute, so that a later change of directory cannot move it.

    Args:
        uri: `sqlite:///relative/or/absolute/file.db` or the address of a tracking server.
        folder: what a relative path starts from; the working directory by default.

    Raises:
        ValueError: an address that MLflow does not keep runs under.
    """
    if uri.startswith(REMOTE):
        return uri
    if not uri.startswith(SQLITE) or not uri.removeprefix(SQLITE):
        raise ValueError(
            f"tracking.uri={uri!r} is not a place where runs can be kept. "
            f"Use {DEFAULT_URI} (a file; relative to the working directory) or a server, http://host:port."
        )
    path, mark, query = uri.removeprefix(SQLITE).partition("?")
    return SQLITE + ((folder or Path.cwd()) / path).resolve().as_posix() + mark + query


def database_file(uri: str) -> Path | None:
    """File of an absolute SQLite address, None for a server."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


def artifact_location(uri: str) -> str | None:
    """Address of the artifact folder, `mlruns` beside the database; a server decides for itself."""
    file = database_file(uri)
    return (file.parent / "mlruns").as_uri() if file else None


def is_server(uri: str) -> bool:
    """Whether runs go over the network, where nobody answers now and then."""
    return uri.startswith(REMOTE)


@contextlib.contextmanager
def store_lock(uri: str) -> Iterator[None]:
    """Keeps other processes from changing a store on disk at the same time."""
    file = database_file(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        yield
