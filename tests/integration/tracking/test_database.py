"""A file that MLflow cannot use, or that another process keeps to itself."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from filelock import FileLock

from panollava.tracking import database, location, outbox, runs, store
from panollava.tracking.database import check_database
from panollava.tracking.location import StoreBusyError, absolute_uri
from panollava.tracking.mlflow_tracker import MlflowTracker
from panollava.tracking.outbox import OUTBOX, deliver
from panollava.tracking.runs import end_parent, start_parent
from panollava.tracking.store import open_client


@pytest.fixture
def file(tmp_path, empty_store) -> Path:
    return Path(shutil.copy(empty_store, tmp_path / "what? 1.db"))


def uri_of(file: Path) -> str:
    return absolute_uri(f"sqlite:///{file}")


def revision(file: Path, name: str) -> None:
    with sqlite3.connect(file) as opened:
        opened.execute("update alembic_version set version_num = ?", (name,))


def other_tables(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as opened:
        opened.execute("create table cats (name text)")


def zeroed(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:8192] + bytes(len(content) // 2) + content[8192 + len(content) // 2 :])


REFUSED = {
    "an older MLflow's": (
        lambda file: revision(file, "6f8d9c3b2a1e"),
        r"older MLflow.*tracking\.uri=.*mlflow db upgrade sqlite:///\S+%3F\S+$",
    ),
    "a newer MLflow's": (lambda file: revision(file, "0123456789ab"), "newer MLflow.*pip install -U mlflow"),
    "no database": (lambda file: file.write_text("not a database " * 100), "is damaged .*tracking.uri="),
    "cut off": (lambda file: file.write_bytes(file.read_bytes()[:50_000]), "is damaged .*tracking.uri="),
    "damaged in the middle": (zeroed, "is damaged .*tracking.uri="),
    "something else's": (other_tables, "not a database of MLflow.*tracking.uri="),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_with_the_way_out_and_left_as_it_is(file, kind) -> None:
    change, said = REFUSED[kind]
    change(file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match=said):
        MlflowTracker(uri=f"sqlite:///{file}").start()
    assert file.read_bytes() == before


def test_an_empty_file_is_a_store_to_be_made(tmp_path) -> None:
    (tmp_path / "mlflow.db").touch()
    check_database(absolute_uri("sqlite:///mlflow.db", tmp_path))


@pytest.fixture
def impatient(monkeypatch) -> None:
    """Waits of a test's length; MLflow's own is that of the statement it sends, which SQLite may be asked to forget."""
    monkeypatch.setattr(location, "BUSY_SECONDS", 0.05)
    for function in (database.opened, location.store_lock):
        monkeypatch.setattr(function.__wrapped__, "__defaults__", (0.05,))
    monkeypatch.setattr(store, "PROBE_SECONDS", 0.05)
    for name in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S", "LAST_PAUSE_S"):
        monkeypatch.setattr(outbox, name, 0.02)
    original = outbox.perform

    def perform(client, *arguments, **options):
        engine = client._tracking_client.store.engine
        from sqlalchemy import event

        if not getattr(engine, "is_impatient", False):
            event.listen(engine, "before_cursor_execute", _shorter, retval=True)
            engine.is_impatient = True
        return original(client, *arguments, **options)

    for module in (outbox, runs):
        monkeypatch.setattr(module, "perform", perform)


def _shorter(_connection, _cursor, statement, parameters, _context, _many):
    return statement.replace("busy_timeout = 20000", "busy_timeout = 50"), parameters


def locked(file: Path) -> sqlite3.Connection:
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("begin exclusive")
    return other


def test_a_run_goes_on_while_another_process_has_the_file_locked(file, tmp_path, impatient, caplog) -> None:
    client, run = open_client(uri_of(file)), tmp_path / "run"
    with MlflowTracker(uri=uri_of(file), outbox=run, flush_seconds=0.0, wait_seconds=0.1) as tracker:
        tracker.metrics({"loss": 3.0}, step=1)
        other = locked(file)
        tracker.metrics({"loss": 2.0}, step=2)
        tracker.text("kept", "note.txt")
        tracker.metrics({"loss": 1.0}, step=3)
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 2, warned
    assert "another process keeps it locked" in warned[0]
    assert "python -m panollava.deliver" in warned[1]
    other.close()
    assert deliver(run)[1] == 0
    history = client.get_metric_history(tracker.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert [one.path for one in client.list_artifacts(tracker.run_id)] == ["note.txt"]
    assert not (run / OUTBOX).exists()


def test_what_waits_arrives_while_the_run_goes_on_once_the_file_is_free(file, tmp_path, impatient) -> None:
    client = open_client(uri_of(file))
    with MlflowTracker(uri=uri_of(file), outbox=tmp_path / "run", flush_seconds=0.0) as tracker:
        other = locked(file)
        tracker.metrics({"loss": 3.0}, step=1)
        other.execute("rollback")
        tracker.metrics({"loss": 2.0}, step=2)
    assert client.get_run(tracker.run_id).data.metrics == {"loss": 2.0}
    assert not (tmp_path / "run" / OUTBOX).exists()


@pytest.mark.parametrize("by", ["SQLite", "its lock file"])
def test_a_run_begins_while_the_file_is_locked_and_is_made_later_in_a_moved_folder_too(
    tmp_path, empty_store, impatient, by
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    file = Path(shutil.copy(empty_store, project / "mlflow.db"))
    lock = FileLock(f"{file}.lock")
    other = locked(file) if by == "SQLite" else None
    if other is None:
        lock.acquire()
    run = project / "runs" / "one"
    with MlflowTracker(uri=uri_of(file), outbox=run, run_name="late", wait_seconds=0.0) as tracker:
        tracker.metrics({"loss": 1.0}, step=1)
        tracker.text("kept", "note.txt")
    lock.release()
    if other is not None:
        other.close()
    before = file.read_bytes()
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    waited, left = deliver(copy)
    assert waited > 0
    assert left == 0
    assert file.read_bytes() == before
    assert not (project / "mlruns").exists()
    client = open_client(uri_of(copy / "mlflow.db"))
    (found,) = client.search_runs([client.get_experiment_by_name("panollava").experiment_id])
    assert (found.info.run_name, found.data.metrics, found.info.status) == ("late", {"loss": 1.0}, "FINISHED")
    assert (copy / "mlruns" / found.info.run_id / "artifacts" / "note.txt").is_file()


def test_a_sweep_does_not_begin_with_a_locked_file_and_ends_with_one(file, tmp_path, impatient) -> None:
    uri = uri_of(file)
    parent = start_parent(uri, "sweep", "s", tmp_path)
    other = locked(file)
    with pytest.raises(StoreBusyError, match=r"is locked by another process\. .*the same command"):
        start_parent(uri, "sweep", "s", tmp_path, parent)
    assert end_parent(uri, parent, "FINISHED", [], tmp_path) == 1
    other.close()
    assert deliver(tmp_path) == (1, 0)
    assert open_client(uri).get_run(parent).info.status == "FINISHED"
