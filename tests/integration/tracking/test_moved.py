"""A project folder that was moved or copied: its artifacts are found and written where it is now."""

from __future__ import annotations

import json
import shutil
import sqlite3
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from support.mlflow_server import Server

from panollava.tracking.location import absolute_uri
from panollava.tracking.mlflow_tracker import MlflowTracker
from panollava.tracking.store import FOLDER_TAG, STAGES_TAG, folders_of
from panollava.tracking.tracker import ModelLoss


def track(project: Path, name: str, **options: Any) -> str:
    """A finished run with artifacts and a registered model, in the store of a project folder."""
    folder = project / "runs" / name
    (folder / "best.ckpt").mkdir(parents=True)
    (folder / "best.ckpt" / "state.json").write_text(name)
    tags = {FOLDER_TAG: str(folder), STAGES_TAG: "vision"}
    with MlflowTracker(run_name=name, tags=tags, outbox=folder, register="pano", **options) as tracker:
        tracker.text(name, "views/이름.txt")
        tracker.model(folder / "best.ckpt", ModelLoss(1.0, "the same"))
        assert tracker.run_id
        return tracker.run_id


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shown(server: Server, runs: dict[str, str]) -> None:
    """Every artifact of each run, and each version of the model, as MLflow's page fetches them."""
    for number, (name, run_id) in enumerate(runs.items(), 1):
        for path in ("views/이름.txt", "model/state.json"):
            assert fetch(server, "get-artifact", run_uuid=run_id, path=path) == name.encode()
        listed = json.loads(fetch(server, "api/2.0/mlflow/artifacts/list", run_id=run_id))["files"]
        assert {one["path"] for one in listed} == {"views", "model"}
        options = {"name": "pano", "version": number, "path": "state.json"}
        assert fetch(server, "model-versions/get-artifact", **options) == name.encode()


def fetch(server: Server, what: str, **query: Any) -> bytes:
    with urllib.request.urlopen(f"{server.uri}/{what}?{urlencode(query)}", timeout=60) as answer:
        return bytes(answer.read())


def make_absolute(project: Path) -> None:
    """The records as they were before, with addresses of the folder of that time."""
    with sqlite3.connect(project / "mlflow.db") as database:
        for table, column in (
            ("runs", "artifact_uri"),
            ("experiments", "artifact_location"),
            ("model_versions", "source"),
        ):
            old = f"{project.as_uri()}/mlruns"
            database.execute(f"update {table} set {column} = replace({column}, 'mlruns', ?)", (old,))
        database.execute("update tags set value = ? || '/' || value where key = ?", (str(project), FOLDER_TAG))


def new_project(folder: Path, empty_store: Path, name: str = "mlflow.db") -> Path:
    folder.mkdir()
    shutil.copy(empty_store, folder / name)
    return folder


def test_a_moved_and_a_copied_folder_that_are_trained_in_work_wholly(tmp_path, monkeypatch, empty_store) -> None:
    moved, copied = tmp_path / "옮긴 50%20;", tmp_path / "copy & 'more'"
    first = new_project(tmp_path / "what? #1", empty_store)
    monkeypatch.chdir(first)
    runs = {"one": track(first, "one")}
    make_absolute(first)
    monkeypatch.chdir(tmp_path)
    first.rename(moved)
    monkeypatch.chdir(moved)
    runs["two"] = track(moved, "two")
    make_absolute(moved)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(moved, copied)
    before = files(moved)
    monkeypatch.chdir(copied)
    runs["three"] = track(copied, "three")
    assert folders_of("panollava", None) == [str(copied / "runs" / name) for name in runs]
    monkeypatch.chdir(tmp_path)
    assert not first.exists()
    assert files(moved) == before
    shutil.rmtree(moved)
    server = Server(copied, "mlflow.db")
    server.start()
    try:
        shown(server, runs)
    finally:
        server.kill()
    assert {path.name for path in tmp_path.iterdir()} == {copied.name}


def test_a_moved_folder_that_is_only_looked_at_has_its_artifacts(tmp_path, monkeypatch, empty_store) -> None:
    project = new_project(tmp_path / "project", empty_store)
    monkeypatch.chdir(project)
    run_id = track(project, "one")
    monkeypatch.chdir(tmp_path)
    moved = project.rename(tmp_path / "moved")
    with sqlite3.connect(moved / "mlflow.db") as database:
        query = "select artifact_uri from runs union all select source from model_versions"
        addresses = [address for (address,) in database.execute(query)]
    assert [(moved / address).is_dir() for address in addresses] == [True, True]
    assert all(address.startswith(f"mlruns/{run_id}/artifacts") for address in addresses)


def test_a_store_elsewhere_is_seen_from_anywhere_and_follows_when_it_is_used_after_a_move(
    tmp_path, monkeypatch, empty_store
) -> None:
    monkeypatch.chdir(tmp_path)
    place, moved = new_project(tmp_path / "kept #1", empty_store, "runs.db"), tmp_path / "kept #2"
    run_id = track(place, "one", uri=f"sqlite:///{place}/runs.db?timeout=9")
    place.rename(moved)
    track(moved, "two", uri=f"sqlite:///{moved}/runs.db")
    with sqlite3.connect(moved / "runs.db") as database:
        found = dict(database.execute("select run_uuid, artifact_uri from runs"))
    assert found[run_id] == f"{moved.as_uri()}/mlruns/{run_id}/artifacts"
    assert not place.exists()


def test_artifacts_that_were_left_behind_and_those_of_other_folders_keep_their_addresses(
    tmp_path, monkeypatch, empty_store
) -> None:
    project, elsewhere, new = new_project(tmp_path / "project", empty_store), tmp_path / "elsewhere", tmp_path / "new"
    monkeypatch.chdir(project)
    left = track(project, "one")
    make_absolute(project)
    with sqlite3.connect("mlflow.db") as database:
        (elsewhere / "mlruns" / "mine").mkdir(parents=True)
        row = ("mine", f"{elsewhere}/mlruns", "active")
        database.execute(
            "insert into experiments (name, artifact_location, lifecycle_stage, workspace) values (?, ?, ?, 'default')",
            row,
        )
    new.mkdir()
    shutil.copy("mlflow.db", new)
    monkeypatch.chdir(new)
    run_id = track(new, "two")
    with sqlite3.connect("mlflow.db") as database:
        found = dict(database.execute("select run_uuid, artifact_uri from runs"))
        assert ("mine", f"{elsewhere}/mlruns") in set(
            database.execute("select name, artifact_location from experiments")
        )
    assert found == {left: f"{project.as_uri()}/mlruns/{left}/artifacts", run_id: f"mlruns/{run_id}/artifacts"}
    assert (new / "mlruns" / run_id).is_dir()
    assert not (project / "mlruns" / run_id).exists()


def test_a_change_of_directory_moves_no_artifact(tmp_path, monkeypatch, empty_store) -> None:
    project, other = new_project(tmp_path / "project", empty_store), tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(project)
    with MlflowTracker() as tracker:
        monkeypatch.chdir(other)
        tracker.text("here", "a.txt")
    assert not list(other.iterdir())
    assert (project / "mlruns" / str(tracker.run_id) / "artifacts" / "a.txt").is_file()
    assert absolute_uri(None, project) == tracker.uri
