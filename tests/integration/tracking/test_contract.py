"""What every tracker keeps, read back from where it keeps it: MLflow, W&B offline, and TensorBoard."""

from __future__ import annotations

import http.server
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.tracked import Seen, events, mlflow_run, offline_runs

from panollava.tracking.additional import AdditionalOptions, CompositeTracker, RecordedRun, additional_trackers
from panollava.tracking.mlflow_tracker import MlflowTracker
from panollava.tracking.tracker import Dataset, ModelLoss, NullTracker, Tracker

ADDITIONAL = ("wandb", "tensorboard")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path) -> None:
    """Nothing is sent, and W&B keeps nothing outside of the test's folder."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "own"))


def beside(name: str, root: Path, *, continues: bool = False, job: str = "train") -> Tracker:
    """A tracker of a run ``root`` with one additional tracker and no other."""
    pytest.importorskip(name, reason=f"the package {name} is not installed")
    run = RecordedRun(root, "job", "sweep", job, continues)  # type: ignore[arg-type]
    options = AdditionalOptions(also=(name,))  # type: ignore[arg-type]
    others = additional_trackers(options, run, wait_seconds=5.0, system_metrics=False)
    return CompositeTracker(NullTracker(), others, {"panollava.stages": "vision"})


@dataclass
class Kind:
    """A kind of tracker, opened on one run, and read."""

    name: str
    make: Callable[[bool], Tracker]  # whether it continues
    read: Callable[[], Seen]


@pytest.fixture(params=("mlflow", *ADDITIONAL))
def kind(request, client, store_uri, experiment, tmp_path) -> Kind:
    root, ids = tmp_path / "demo 파노라마", list[str]()

    def make_mlflow(continues: bool) -> Tracker:
        tracker = MlflowTracker(
            uri=store_uri,
            experiment=experiment,
            run_id=ids[-1] if continues else None,
            tags={"panollava.stages": "vision"},
        )
        start = tracker.start

        def remembered() -> None:
            start()
            ids.append(tracker.run_id or "")

        tracker.start = remembered  # type: ignore[method-assign]
        return tracker

    if request.param == "mlflow":
        return Kind("mlflow", make_mlflow, lambda: mlflow_run(client, ids[-1], tmp_path / "kept"))

    def read() -> Seen:
        if request.param == "tensorboard":
            return events(max((root / "tensorboard").iterdir()))
        first, *later = offline_runs(root)
        for one in later:  # parts of one run, which `wandb sync` joins by their id
            assert one.id == first.id
            for name, points in one.metrics.items():
                first.metrics.setdefault(name, []).extend(points)
            first.params |= one.params
            first.texts |= one.texts
            first.status = one.status
        return first

    return Kind(request.param, lambda continues: beside(request.param, root, continues=continues), read)


def test_numbers_have_their_steps_and_names(kind: Kind) -> None:
    with kind.make(False) as tracker:
        for step, loss in enumerate((3.0, 2.0, 1.5), start=1):
            tracker.metrics({"vision/loss": loss, "vision/lr": 0.5}, step=step)
        tracker.metrics({"finetune/loss": 4.0}, step=1)  # a later stage begins anew
        tracker.metrics({"vision/loss_by_samples": 1.5}, step=12)
        tracker.metrics({"test/exact_match/무슨 색? (a:b)": 0.5, "test/nothing": math.nan}, step=0)
    seen = kind.read().metrics
    assert seen["vision/loss"] == [(1, 3.0), (2, 2.0), (3, 1.5)]
    assert seen["vision/lr"] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert seen["finetune/loss"] == [(1, 4.0)]
    assert seen["vision/loss_by_samples"] == [(12, 1.5)]
    assert seen["test/exact_match/무슨 색_ _a_b_"] == [(0, 0.5)]
    assert math.isnan(seen["test/nothing"][0][1])


def test_settings_tags_data_and_texts(kind: Kind) -> None:
    with kind.make(False) as tracker:
        tracker.params({"crop.overlap": 0.5, "crop.type": "e2p", "stage.run": ["vision", "finetune"], "flag": True})
        tracker.tags({"panollava.measure": "CIDEr"})
        tracker.inputs([Dataset("world-train", "0123abcd", "code", '{"seed": 1}', '{"num_rows": 3}', "training")])
        tracker.text("crop:\n  type: e2p\n", "config.yaml")
        tracker.text("| 색 |\n", "evaluation/table.md")
    seen = kind.read()
    assert str(seen.params["crop.overlap"]) == "0.5"
    assert seen.params["crop.type"] == "e2p"
    assert "finetune" in str(seen.params["stage.run"])
    assert {key: seen.tags[key] for key in ("panollava.stages", "panollava.measure")} == {
        "panollava.stages": "vision",
        "panollava.measure": "CIDEr",
    }
    assert "0123abcd" in seen.data
    assert "world-train" in seen.data
    assert "  type: e2p" in seen.texts["config.yaml"]
    assert "색" in seen.texts["evaluation/table.md"]


def test_pictures_and_tables(kind: Kind, tmp_path) -> None:
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[..., 0] = 200
    rows = [{"question": "무슨 색? | a", "correct": True}, {"question": "where,\n", "correct": False}]
    with kind.make(False) as tracker:
        tracker.image(picture, "views.png")
        tracker.table(rows, "sample_answers.json")
        tracker.table([], "empty.json")
    seen = kind.read()
    assert (seen.pictures["views.png"] == picture).all()
    assert "무슨 색?" in seen.tables["sample_answers.json"]
    assert "where," in seen.tables["sample_answers.json"]


def test_files_folders_and_the_model(kind: Kind, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    made = tmp_path / "made"
    (made / "deep").mkdir(parents=True)
    (made / "deep" / "notes.md").write_text("한국어")
    (made / "metrics.json").write_text('{"CIDEr": 1.0}')
    (made / "weights.bin").write_bytes(b"\0" * 10)
    with kind.make(False) as tracker:
        tracker.folder(made, "evaluation")
        (made / "metrics.json").unlink()  # a new file, as all writers of this package make
        (made / "metrics.json").write_text('{"CIDEr": 2.0}')
        tracker.folder(made, "evaluation")
        tracker.file(made / "deep" / "notes.md")
        tracker.model(made, ModelLoss(1.0, "world"))
    if kind.name == "mlflow":
        return  # its binary files are read in tests of its own
    seen = kind.read()
    assert seen.texts["evaluation/deep/notes.md"] == seen.texts["notes.md"] == "한국어"
    assert (made / "metrics.json").read_text() == '{"CIDEr": 2.0}'
    if kind.name == "wandb":
        assert seen.texts["evaluation/metrics.json"] == '{"CIDEr": 2.0}'
        assert "panollava/model/weights.bin" in seen.record
    else:
        assert "evaluation/metrics.json" not in seen.texts
        assert caplog.text.count("are left out") == 1


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_how_a_run_ended(kind: Kind, error, status: str) -> None:
    def train() -> None:
        with kind.make(False) as tracker:
            tracker.metrics({"loss": 1.0}, step=1)
            if error is not None:
                raise error

    if error is None:
        train()
    else:
        with pytest.raises(error):
            train()
    assert (kind.read().status, kind.read().metrics["loss"]) == (status, [(1, 1.0)])


def test_a_resumed_run_goes_on_and_repeats_no_step(kind: Kind) -> None:
    with kind.make(False) as tracker:
        tracker.params({"epochs": 1})
        for step in (1, 2, 3):
            tracker.metrics({"vision/loss": float(step), "vision/lr": 0.5}, step=step)
    with kind.make(True) as tracker:
        tracker.params({"epochs": 2})
        for step in (2, 3, 4):
            tracker.metrics({"vision/loss": float(step), "vision/val_loss": 2.0}, step=step)
    seen = kind.read()
    assert seen.metrics["vision/loss"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert seen.metrics["vision/val_loss"] == [(2, 2.0), (3, 2.0), (4, 2.0)]
    assert str(seen.params["epochs"]) == "1"


@pytest.mark.parametrize("name", ADDITIONAL)
def test_a_new_run_in_the_same_folder_is_another(name: str, tmp_path) -> None:
    for loss in (2.0, 1.0):
        with beside(name, tmp_path) as tracker:
            tracker.metrics({"loss": loss}, step=1)
    if name == "wandb":
        first, second = offline_runs(tmp_path)
    else:
        first, second = (events(tmp_path / "tensorboard" / f"train_{number}") for number in (1, 2))
    assert first.id != second.id
    assert (first.metrics, second.metrics) == ({"loss": [(1, 2.0)]}, {"loss": [(1, 1.0)]})


@pytest.mark.parametrize("name", ADDITIONAL)
def test_an_evaluation_is_beside_its_training_and_does_not_continue_it(name: str, tmp_path) -> None:
    with beside(name, tmp_path) as tracker:
        tracker.metrics({"loss": 2.0}, step=1)
    with beside(name, tmp_path, job="eval") as tracker:
        tracker.metrics({"test/CIDEr": 1.0}, step=0)
    with beside(name, tmp_path, continues=True) as tracker:
        tracker.metrics({"loss": 1.0}, step=2)
    if name == "tensorboard":
        assert {one.name for one in (tmp_path / "tensorboard").iterdir()} == {"train_1", "eval_1"}
        return
    first, evaluation, resumed = offline_runs(tmp_path)
    assert first.id == resumed.id != evaluation.id
    assert first.group == evaluation.group == "sweep"
    assert (first.job, evaluation.job, first.name) == ("train", "eval", "job")


def test_two_runs_of_one_process_do_not_mix(tmp_path) -> None:
    for name in ADDITIONAL:
        with beside(name, tmp_path / "a") as one, beside(name, tmp_path / "b") as other:
            one.metrics({"loss": 1.0}, step=1)
            other.metrics({"loss": 2.0}, step=1)
            one.metrics({"loss": 3.0}, step=2)
    assert offline_runs(tmp_path / "a")[0].metrics["loss"] == [(1, 1.0), (2, 3.0)]
    assert offline_runs(tmp_path / "b")[0].metrics["loss"] == [(1, 2.0)]
    assert events(tmp_path / "a" / "tensorboard" / "train_1").metrics["loss"] == [(1, 1.0), (2, 3.0)]


KILLED = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from integration.tracking.test_contract import beside
tracker = beside({name!r}, Path({root!r}))
tracker.start()
for step in range(1, 6):
    tracker.metrics({{"loss": float(step)}}, step=step)
    if step == 3:
        tracker.flush()
        time.sleep(2)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ADDITIONAL)
def test_a_killed_run_continues_without_a_gap_or_a_repetition(name: str, tmp_path) -> None:
    """As from a checkpoint of step 3, before which the loop calls ``flush``."""
    pytest.importorskip(name, reason=f"the package {name} is not installed")
    code = KILLED.format(tests=str(Path(__file__).parents[2]), name=name, root=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    with beside(name, tmp_path, continues=True) as tracker:
        for step in range(4, 8):
            tracker.metrics({"loss": float(step)}, step=step)
    if name == "wandb":
        runs = offline_runs(tmp_path, killed=1)
        assert len({one.id for one in runs}) == 1
        points = [point for one in runs for point in one.metrics.get("loss", [])]
    else:
        points = events(tmp_path / "tensorboard" / "train_1").metrics["loss"]
    assert sorted(points) == [(step, float(step)) for step in range(1, 8)]


def test_nothing_of_the_code_is_in_wandbs_record(tmp_path) -> None:
    with beside("wandb", tmp_path) as tracker:
        tracker.metrics({"loss": 1.0}, step=1)
    (seen,) = offline_runs(tmp_path)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert not (folder / "files" / "output.log").exists()
    assert not (folder / "files" / "code").exists()
    assert "git {" not in seen.record
    assert "output_raw" not in seen.record


@pytest.fixture
def online(tmp_path, monkeypatch) -> Iterator[None]:
    """W&B as it is without ``WANDB_MODE``; it reads the environment once a process."""
    wandb = pytest.importorskip("wandb", reason="the package wandb is not installed")
    wandb.teardown()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_SILENT", "true")  # else W&B asks that server for five seconds whom it should greet
    yield
    wandb.teardown()


def test_without_a_key_wandb_records_offline_and_asks_for_none(online, tmp_path, caplog) -> None:
    with beside("wandb", tmp_path) as tracker:
        tracker.metrics({"loss": 1.0}, step=1)
    assert "has no key here" in caplog.text
    assert offline_runs(tmp_path)[0].metrics["loss"] == [(1, 1.0)]


def test_without_a_server_wandb_records_offline_and_resumes(online, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    for step in (1, 2):
        with beside("wandb", tmp_path, continues=True) as tracker:
            tracker.metrics({"loss": 1.0}, step=step)
    assert "http://127.0.0.1:9 does not answer" in caplog.text
    first, second = offline_runs(tmp_path)
    assert first.id == second.id
    assert (first.metrics["loss"], second.metrics["loss"]) == ([(1, 1.0)], [(2, 1.0)])


def test_a_server_that_is_not_wandbs_is_a_warning(online, tmp_path, monkeypatch, caplog) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        with beside("wandb", tmp_path) as tracker:
            tracker.metrics({"loss": 1.0}, step=1)
        server.shutdown()
    assert "cannot be reached" in caplog.text
    assert offline_runs(tmp_path)[0].metrics["loss"] == [(1, 1.0)]


def test_the_record_of_a_run_names_its_last_steps(tmp_path) -> None:
    with beside("wandb", tmp_path) as tracker:
        tracker.metrics({"loss": 1.0, "lr": 0.5}, step=3)
        tracker.metrics({"loss": 1.0}, step=4)
    record = json.loads((tmp_path / "wandb" / "panollava.json").read_text())
    assert record["steps"] == {"loss": 4, "lr": 3}
    assert record["project"] == "panollava"
