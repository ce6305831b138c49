"""The SQLite file of a store as it lies on disk: whether MLflow can use it, and where its artifacts are."""

from __future__ import annotations

import logging
import shlex
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from panollava.tracking.location import (
    ARTIFACTS,
    BUSY_SECONDS,
    StoreBusyError,
    artifact_root,
    database_file,
    sqlalchemy_uri,
)

logger = logging.getLogger(__name__)

FOLDER_TAG = "panollava.folder"
"""Tag of a training run: its folder, from that of the database where it lies below it."""

_LOCATIONS = (
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
    ("experiments", "artifact_location"),
)
"""Where MLflow keeps addresses of artifacts."""

_ELSEWHERE = "or give another place, tracking.uri=sqlite:////elsewhere/mlflow.db"


def check_database(uri: str) -> None:
    """Looks at an SQLite file before MLflow does, which would show a traceback, or migrate it unasked.

    Args:
        uri: from ``absolute_uri``.

    Raises:
        ValueError: it is damaged, no store of MLflow's, or that of another version.
        StoreBusyError: another process keeps it locked.
    """
    file = database_file(uri)
    if file is None or not file.is_file() or not file.stat().st_size:
        return
    with opened(file) as database:
        damage = [str(row[0]) for row in database.execute("pragma quick_check(1)")]
        if damage != ["ok"]:
            raise ValueError(_damaged(file, damage[0]))
        tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
        has_version = "alembic_version" in tables
        found = database.execute("select version_num from alembic_version").fetchone() if has_version else None
    if found is None:
        if tables and "experiments" not in tables:  # those of MLflow's tables that are there it completes
            raise ValueError(f"{file} is a database of something else than MLflow. Leave it, {_ELSEWHERE}.")
        return
    _check_version(file, str(found[0]))


def _check_version(file: Path, found: str) -> None:
    import mlflow
    from alembic.script import ScriptDirectory

    versions = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    if found == versions.get_current_head():
        return
    if found in {one.revision for one in versions.walk_revisions()}:
        raise ValueError(
            f"{file} was made by an older MLflow than {mlflow.__version__}. Give another place, "
            f"tracking.uri=sqlite:////elsewhere/mlflow.db, or keep a copy of it and bring it up to date with: "
            f"mlflow db upgrade {shlex.quote(sqlalchemy_uri(file))}"
        )
    raise ValueError(
        f"{file} was made by a newer MLflow than {mlflow.__version__} (its tables are of version {found}). Install "
        f"that one (pip install -U mlflow), {_ELSEWHERE}."
    )


@contextmanager
def opened(file: Path, wait_seconds: float = BUSY_SECONDS) -> Iterator[sqlite3.Connection]:
    """A connection to an SQLite file, whose changes are made at the end of the block.

    Args:
        file: the database.
        wait_seconds: how long to wait for another process that has it locked.

    Raises:
        ValueError: the file is damaged.
        StoreBusyError: another process keeps it locked.
    """
    try:
        with closing(sqlite3.connect(file, timeout=wait_seconds)) as database, database:
            yield database
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreBusyError(file) from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise ValueError(_damaged(file, str(error))) from error
        raise


def _damaged(file: Path, reason: str) -> str:
    return (
        f"{file} is damaged ({' '.join(reason.split())[:200]}), or is no SQLite database. Put a copy of it in its "
        f"place, move it away, {_ELSEWHERE}."
    )


def recorded_folder(folder: Path, uri: str) -> str:
    """A run's folder as its tag has it: from that of the database, where it lies below it."""
    file, folder = database_file(uri), folder.resolve()
    below = file is not None and folder.is_relative_to(file.parent)
    return (folder.relative_to(file.parent) if file is not None and below else folder).as_posix()


def settle(uri: str) -> None:
    """Points a store's records to the artifacts beside its database, wherever both were moved or copied to.

    MLflow keeps absolute addresses. Those below a folder that the database was in before become those of its folder
    of now. Artifacts that only lie elsewhere, and addresses of other folders, stay as they are.

    Args:
        uri: from ``absolute_uri``.
    """
    file = database_file(uri)
    if file is None:
        return
    with opened(file) as database:
        known = {
            (table, column, row): value
            for table, column in _LOCATIONS
            for row, value in database.execute(f"select rowid, {column} from {table} where {column} is not null")
        }
        places = _places_before(file, [value for (table, *_), value in known.items() if table == "runs"])
        changes = {place: _location(value, file, places, place[0]) for place, value in known.items()}
        for row, value in database.execute("select rowid, value from tags where key = ?", (FOLDER_TAG,)):
            known["tags", "value", row] = value
            changes["tags", "value", row] = _folder(value, file, places)
        for (table, column, row), value in changes.items():
            if value != known[table, column, row]:
                database.execute(f"update {table} set {column} = ? where rowid = ?", (value, row))
    if places:
        logger.info(
            "MLflow's records named %s; they name %s now.", ", ".join(map(str, sorted(places))), file.parent
        )  # fmt: skip


def _split(location: str) -> tuple[Path, tuple[str, ...]] | None:
    """The folder that holds ``mlruns``, and what is below that, of an address of artifacts on disk."""
    parts = urlsplit(location)
    if parts.scheme not in ("", "file"):
        return None
    path = Path(unquote(parts.path) if parts.scheme else location)
    if ARTIFACTS not in path.parts:
        return None
    place = len(path.parts) - 1 - path.parts[::-1].index(ARTIFACTS)
    return Path(*path.parts[:place]), path.parts[place + 1 :]


def _places_before(file: Path, locations: Iterable[str]) -> set[Path]:
    """Other folders that the database lay in, as the artifacts of its runs tell.

    They are gone, or hold the database that this one is a copy of, or the artifacts of a run are here.
    """
    found = {split for split in map(_split, locations) if split and split[0].is_absolute() and split[0] != file.parent}
    return {
        before
        for before, below in found
        if not (before / ARTIFACTS).exists()
        or (before / file.name).is_file()
        or file.parent.joinpath(ARTIFACTS, *below).exists()
    }


def _location(old: str, file: Path, places: set[Path], table: str) -> str:
    """The address of today for a recorded one."""
    split = _split(old)
    if split is None or split[0] not in {*places, file.parent, Path()}:
        return old
    before, below = split
    is_only_there = before in places and not file.parent.joinpath(ARTIFACTS, *below).exists()
    if table != "experiments" and is_only_there and before.joinpath(ARTIFACTS, *below).exists():
        return old  # the database was moved without it
    return "/".join((artifact_root(file), *map(quote, below)))


def _folder(old: str, file: Path, places: set[Path]) -> str:
    """The tag of today for a run's folder."""
    for before in (file.parent, *places):
        if Path(old).is_relative_to(before) and (file.parent / Path(old).relative_to(before)).is_dir():
            return Path(old).relative_to(before).as_posix()
    return old
