"""What a run keeps, how it ends, and how it is resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from panollava.tracking.location import absolute_uri
from panollava.tracking.mlflow_tracker import MlflowTracker
from panollava.tracking.tracker import Dataset


@pytest.fixture
def new_tracker(store_uri, experiment):
    def make(**options) -> MlflowTracker:
        return MlflowTracker(uri=store_uri, experiment=experiment, **options)

    return make


def test_metrics_are_held_back_and_nothing_is_lost_on_closing(client, new_tracker) -> None:
    with new_tracker(flush_every=4, flush_seconds=1000, run_name="job") as tracker:
        tracker.metrics({"vision/loss": 3.0}, step=1)
        assert client.get_run(tracker.run_id).data.metrics == {}
        tracker.metrics({"vision/loss": 2.0, "vision/lr": 0.1, "vision/samples_per_s": 9.0}, step=2)
        assert client.get_run(tracker.run_id).data.metrics["vision/loss"] == 2.0
        tracker.metrics({"vision/loss": 1.0}, step=3)
    history = client.get_metric_history(tracker.run_id, "vision/loss")
    assert [(each.step, each.value) for each in history] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    run = client.get_run(tracker.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "job")


def test_metrics_are_also_written_when_time_has_passed(client, new_tracker) -> None:
    with new_tracker(flush_seconds=0.0) as tracker:
        tracker.metrics({"loss": 1.0}, step=0)
        assert client.get_run(tracker.run_id).data.metrics == {"loss": 1.0}


def test_values_and_names_that_mlflow_dislikes(client, new_tracker) -> None:
    with new_tracker() as tracker:
        tracker.metrics({"loss": math.nan, "worst": math.inf, "test/exact_match/무슨 색? (a:b)": 1.0}, step=0)
        tracker.params({f"many.{index}": index for index in range(150)} | {"long": "x" * 7000, "none": None})
    data = client.get_run(tracker.run_id).data
    assert math.isnan(data.metrics["loss"])
    assert data.metrics["worst"] > 1e300
    assert data.metrics["test/exact_match/무슨 색_ _a_b_"] == 1.0
    assert len(data.params) == 152
    assert data.params["long"].endswith("x…")
    assert len(data.params["long"]) == 6000
    assert data.params["none"] == "None"


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_a_run_that_breaks_says_so_and_keeps_its_metrics(client, new_tracker, error, status) -> None:
    tracker = new_tracker()

    def train() -> None:
        with tracker:
            tracker.metrics({"loss": 1.0}, step=0)
            raise error

    with pytest.raises(error):
        train()
    run = client.get_run(tracker.run_id)
    assert (run.info.status, run.data.metrics) == (status, {"loss": 1.0})


def test_a_resumed_run_appends_and_keeps_its_parameters(client, new_tracker) -> None:
    first = new_tracker(run_name="job")
    first.start()
    first.params({"epochs": 1})
    first.metrics({"loss": 2.0}, step=1)
    first.close("KILLED")
    assert client.get_run(first.run_id).info.status == "KILLED"
    with new_tracker(run_id=first.run_id) as second:
        assert client.get_run(first.run_id).info.status == "RUNNING"
        second.params({"epochs": 2})
        second.metrics({"loss": 1.0}, step=2)
    assert second.run_id == first.run_id
    run = client.get_run(first.run_id)
    assert run.data.params == {"epochs": "1"}
    assert run.info.status == "FINISHED"
    assert [each.step for each in client.get_metric_history(first.run_id, "loss")] == [1, 2]


def test_a_run_the_store_has_lost_is_followed_by_a_new_one(client, new_tracker, caplog) -> None:
    with new_tracker(run_id="0" * 32) as tracker:
        tracker.params({"epochs": 1})
    assert tracker.run_id != "0" * 32
    assert "0" * 32 in caplog.text
    assert client.get_run(tracker.run_id).data.params == {"epochs": "1"}


def test_jobs_of_one_process_do_not_mix(client, new_tracker) -> None:
    with new_tracker() as outer, new_tracker() as inner:
        outer.metrics({"loss": 1.0}, step=0)
        inner.metrics({"loss": 2.0}, step=0)
    assert client.get_run(outer.run_id).data.metrics == {"loss": 1.0}
    assert client.get_run(inner.run_id).data.metrics == {"loss": 2.0}


def test_files_pictures_and_tables_lie_where_mlflow_shows_them(client, new_tracker, tmp_path) -> None:
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[..., 0] = 200
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "metrics.json").write_text("{}")
    rows = [{"question": "무슨 색?", "correct": True}, {"question": "where,\n", "correct": False}]
    with new_tracker() as tracker:
        tracker.image(picture, "pictures/views.png")
        tracker.table([{"question": "old", "correct": False}], "answers.json")
        tracker.table(rows, "answers.json")
        tracker.text("| a |", "table.md")
        tracker.file(tmp_path / "results" / "metrics.json")
        tracker.folder(tmp_path / "results", "results")

    def kept(run_id: str, name: str) -> Path:
        return Path(client.download_artifacts(run_id, name, str(tmp_path)))

    shown = kept(tracker.run_id, "pictures/views.png")
    assert cv2.imread(str(shown))[0, 0].tolist() == [0, 0, 200]
    assert pd.read_json(kept(tracker.run_id, "answers.json"), orient="split").to_dict("records") == rows
    assert kept(tracker.run_id, "table.md").read_text(encoding="utf-8") == "| a |"
    names = {file.path for file in client.list_artifacts(tracker.run_id)}
    assert names >= {"metrics.json", "results", "table.md"}
    tables = json.loads(client.get_run(tracker.run_id).data.tags["mlflow.loggedArtifacts"])
    assert tables == [{"path": "answers.json", "type": "table"}]

    with new_tracker() as other:
        other.image(shown, "copy.png")
    assert kept(other.run_id, "copy.png").read_bytes() == shown.read_bytes()


def test_a_tracker_that_is_not_open_says_so(tmp_path) -> None:
    tracker = MlflowTracker(uri=absolute_uri(folder=tmp_path))
    tracker.close()
    with pytest.raises(RuntimeError, match="with tracker"):
        tracker.metrics({"loss": 1.0}, step=0)
    assert list(tmp_path.iterdir()) == []


def test_data_sets_are_inputs_with_their_digests(client, new_tracker) -> None:
    with new_tracker() as tracker:
        for context in ("training", "training", "test"):  # a resumed run says it again
            source = json.dumps({"uri": f"/data/{context}.csv"})
            tracker.inputs([Dataset(f"quic360-{context}", "0123abcd", "local", source, '{"num_rows": 3}', context)])
    inputs = client.get_run(tracker.run_id).inputs.dataset_inputs
    found = {(one.dataset.name, one.dataset.digest, one.tags[0].value) for one in inputs}
    assert found == {("quic360-training", "0123abcd", "training"), ("quic360-test", "0123abcd", "test")}
    assert len(inputs) == 2
    import mlflow

    source = mlflow.data.get_source(next(one for one in inputs if one.tags[0].value == "test").dataset)
    assert source.uri == "/data/test.csv"


@pytest.mark.parametrize(("error", "is_kept"), [(ValueError("no such column"), False), (KeyboardInterrupt(), True)])
def test_what_is_refused_before_anything_is_recorded_is_no_run(client, new_tracker, error, is_kept: bool) -> None:
    tracker = new_tracker()
    with pytest.raises(type(error)), tracker:
        raise error
    assert (client.get_run(tracker.run_id).info.lifecycle_stage == "active") is is_kept
    again = new_tracker()
    again.start()
    again.metrics({"loss": 1.0}, step=1)
    again.__exit__(type(error), error, None)
    assert client.get_run(again.run_id).info.lifecycle_stage == "active"
