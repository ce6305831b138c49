"""The SQLite file of a run store: whether MLflow can use it, and the addresses of artifacts that it records."""

import logging
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from panollava.tracking import location
from panollava.tracking.location import ARTIFACTS, StoreBusyError, database_file

logger = logging.getLogger(__name__)

FOLDER_TAG = "panollava.folder"  # of a training run: its folder, relative to the database's where it is below that

_ADDRESSES = (
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
    ("experiments", "artifact_location"),
)
"""Tables and columns in which MLflow keeps addresses of artifacts."""

_OTHER_URI = "tracking.uri=sqlite:////elsewhere/mlflow.db"


def check_database(uri: str) -> None:
    """Checks an SQLite file before MLflow opens it, which would show a traceback, or migrate it.

    Raises a ValueError if it is damaged, not a store of MLflow, or of another version; a StoreBusyError if locked.
    """
    file = database_file(uri)
    if file is None or not file.is_file() or not file.stat().st_size:
        return
    with opened(file) as database:
        damage = database.execute("pragma quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise ValueError(_damaged(file, damage))
        tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
        has_version = "alembic_version" in tables
        version = database.execute("select version_num from alembic_version").fetchone() if has_version else None
    if version is not None:
        _check_version(file, version[0])
    elif tables and "experiments" not in tables:  # a part of its own tables MLflow completes
        raise ValueError(f"{file} is not a database of MLflow. Use another file, {_OTHER_URI}.")


def _check_version(file: Path, found: str) -> None:
    import mlflow
    from alembic.script import ScriptDirectory

    versions = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    if found == versions.get_current_head():
        return
    if found in {one.revision for one in versions.walk_revisions()}:
        raise ValueError(
            f"{file} was made by an older MLflow than {mlflow.__version__}. Use another file, {_OTHER_URI}, or copy it "
            f"and upgrade it with: mlflow db upgrade {shlex.quote(location.sqlalchemy_uri(file))}"
        )
    raise ValueError(
        f"{file} was made by a newer MLflow than {mlflow.__version__} (its tables are of version {found}). Install "
        f"that one (pip install -U mlflow), or use another file, {_OTHER_URI}."
    )


@contextmanager
def opened(file: Path, wait_seconds: float = location.BUSY_SECONDS) -> Iterator[sqlite3.Connection]:
    """A connection to an SQLite file, which commits at the end of the block; raises as ``check_database``."""
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
    reason = " ".join(reason.split())[:200]
    return (
        f"{file} is damaged ({reason}), or is not an SQLite database. Restore it from a copy, or move it away, or use "
        f"another file, {_OTHER_URI}."
    )


def recorded_folder(folder: Path, uri: str) -> str:
    """The value of ``FOLDER_TAG`` for a run's folder."""
    file, folder = database_file(uri), folder.resolve()
    if file is not None and folder.is_relative_to(file.parent):
        folder = folder.relative_to(file.parent)
    return folder.as_posix()


def update_addresses(uri: str) -> None:
    """Points a store's records to the artifacts beside its database, after both were moved or copied.

    MLflow records absolute addresses. Those below an earlier folder of the database change to its present folder.
    Artifacts that are only in the earlier folder, and addresses of other folders, stay as they are.
    """
    file = database_file(uri)
    if file is None:
        return
    with opened(file) as database:
        known = {
            (table, column, row): value
            for table, column in _ADDRESSES
            for row, value in database.execute(f"select rowid, {column} from {table} where {column} is not null")
        }
        earlier = _earlier_folders(file, [value for (table, *_), value in known.items() if table == "runs"])
        updated = {place: _address(value, file, earlier, place[0]) for place, value in known.items()}
        for row, value in database.execute("select rowid, value from tags where key = ?", (FOLDER_TAG,)):
            known["tags", "value", row] = value
            updated["tags", "value", row] = _folder(value, file, earlier)
        for (table, column, row), value in updated.items():
            if value != known[table, column, row]:
                database.execute(f"update {table} set {column} = ? where rowid = ?", (value, row))
    if earlier:
        shown = ", ".join(map(str, sorted(earlier)))
        logger.info("MLflow's records named %s; they name %s now.", shown, file.parent)


def _split(address: str) -> tuple[Path, tuple[str, ...]] | None:
    """The folder that holds ``mlruns``, and the parts below that, of an address of artifacts on disk."""
    url = urlsplit(address)
    if url.scheme not in ("", "file"):
        return None
    parts = Path(unquote(url.path) if url.scheme else address).parts
    if ARTIFACTS not in parts:
        return None
    place = len(parts) - 1 - parts[::-1].index(ARTIFACTS)
    return Path(*parts[:place]), parts[place + 1 :]


def _earlier_folders(file: Path, addresses: list[str]) -> set[Path]:
    """Other folders that the database was in: they have gone, hold its original, or a run's artifacts are here."""
    return {
        folder
        for folder, below in filter(None, map(_split, addresses))
        if folder.is_absolute() and folder != file.parent
        if not (folder / ARTIFACTS).exists()
        or (folder / file.name).is_file()
        or file.parent.joinpath(ARTIFACTS, *below).exists()
    }


def _address(old: str, file: Path, earlier: set[Path], table: str) -> str:
    split = _split(old)
    if split is None or split[0] not in {*earlier, file.parent, Path()}:
        return old
    folder, below = split
    is_elsewhere = folder in earlier and not file.parent.joinpath(ARTIFACTS, *below).exists()
    if table != "experiments" and is_elsewhere and folder.joinpath(ARTIFACTS, *below).exists():
        return old  # the database was moved without it
    return "/".join((location.artifact_root(file), *map(quote, below)))


def _folder(old: str, file: Path, earlier: set[Path]) -> str:
    for folder in (file.parent, *earlier):
        if Path(old).is_relative_to(folder) and (file.parent / Path(old).relative_to(folder)).is_dir():
            return Path(old).relative_to(folder).as_posix()
    return old
