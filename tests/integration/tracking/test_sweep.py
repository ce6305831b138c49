"""A sweep's parent run, seen as a plain `mlflow ui` in the same folder sees it."""

from __future__ import annotations

import subprocess
import sys

from panollava.tracking.mlflow_tracker import MlflowTracker
from panollava.tracking.runs import end_parent, start_parent

LOOK = """
import mlflow
client = mlflow.MlflowClient(tracking_uri="sqlite:///mlflow.db")
for run in client.search_runs([client.get_experiment_by_name("demo").experiment_id]):
    print(run.info.run_id, *(file.path for file in client.list_artifacts(run.info.run_id)))
"""


def test_the_jobs_of_a_sweep_lie_under_its_parent(client, store_uri, experiment, tmp_path) -> None:
    parent = start_parent(store_uri, experiment, "resampler=mlp,bimamba", tmp_path)
    for name in ("mlp", "bimamba"):
        options = {"uri": store_uri, "experiment": experiment, "run_name": name, "parent_run_id": parent}
        with MlflowTracker(**options):
            assert client.get_run(parent).info.status == "RUNNING"
    (tmp_path / "sweep.md").write_text("a table")
    assert end_parent(store_uri, parent, "FAILED", [tmp_path / "sweep.md"], tmp_path) == 0
    run = client.get_run(parent)
    assert [file.path for file in client.list_artifacts(parent, "sweep")] == ["sweep/sweep.md"]
    assert (run.info.status, run.info.run_name) == ("FAILED", "resampler=mlp,bimamba")
    children = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    assert {child.info.run_name for child in children} == {"mlp", "bimamba"}
    again = start_parent(store_uri, experiment, "resampler=mlp,bimamba", tmp_path, parent)
    assert (again, client.get_run(parent).info.status) == (parent, "RUNNING")
    end_parent(store_uri, parent, "FINISHED", [], tmp_path)
    client.delete_run(parent)
    assert start_parent(store_uri, experiment, "resampler=mlp,bimamba", tmp_path, parent) != parent


def test_mlflow_opened_in_the_same_folder_finds_the_runs(tmp_path, monkeypatch) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    with MlflowTracker(experiment="demo", run_name="job") as tracker:
        tracker.text("here", "note.txt")
    assert mlflow.get_tracking_uri() == before
    assert {path.name for path in tmp_path.iterdir()} >= {"mlflow.db", "mlruns"}
    # In a process of its own, as `mlflow ui` is: MLflow remembers which file a relative address meant before.
    seen = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert seen.stdout.split() == [tracker.run_id, "note.txt"]


def test_a_run_about_others_is_a_child_of_their_sweep_or_of_the_first(client, store_uri, experiment, tmp_path) -> None:
    options = {"uri": store_uri, "experiment": experiment}
    sweep = start_parent(store_uri, experiment, "sweep", tmp_path)
    jobs = []
    for parent in (sweep, sweep, None):
        with MlflowTracker(**options, parent_run_id=parent) as tracker:
            jobs.append(tracker.run_id)
    one, two, alone = jobs
    unknown = "0" * 32
    for about, parent in [
        ([one], one),
        ([one, two], sweep),
        ([two, alone], two),
        ([unknown, two], two),
        ([unknown], None),
        (["local-unknown"], None),
        ([], None),
    ]:
        with MlflowTracker(**options, about=about) as tracker:
            tags = client.get_run(tracker.run_id).data.tags
        assert tags.get("mlflow.parentRunId") == parent, about
