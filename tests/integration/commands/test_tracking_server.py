"""A sweep that logs to a real tracking server, which is killed on the way."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from mlflow.artifacts import download_artifacts
from support.mlflow_server import Server
from support.runs import QUICK, Backbone, backbones, command

from panollava import deliver, train
from panollava.tracking.mlflow_tracker import MlflowTracker
from panollava.tracking.outbox import OUTBOX
from panollava.tracking.store import open_client

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills a process group")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    running = Server(tmp_path / "server")
    running.start()
    yield running
    running.kill()


def test_a_sweep_outlives_its_server_and_every_number_arrives_once(
    server: Server,
    backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logged: dict[str, list[tuple[str, float, int]]] = defaultdict(list)
    slowest = 0.0
    take = MlflowTracker.metrics

    def watched(self: MlflowTracker, values: Mapping[str, float], step: int) -> None:
        nonlocal slowest
        logged[str(self._options.run_name)] += [(key, value, step) for key, value in values.items()]
        if len(logged) == 1 and step == 2:
            server.kill()
        begun = time.monotonic()
        take(self, values, step)
        slowest = max(slowest, time.monotonic() - begun)

    monkeypatch.setattr(MlflowTracker, "metrics", watched)
    monkeypatch.chdir(tmp_path)
    tracking = [f"tracking.uri={server.uri}", "tracking.experiment=remote", "tracking.wait_seconds=0"]
    quick = [*backbones(backbone), *QUICK, "stage=finetune", "experiment_name=sweep", "evaluation.blank=false"]
    assert command(monkeypatch, train, "-m", "seed=0,1", *quick, *tracking) == 0
    assert slowest < 5.0
    assert len(logged) == 2
    assert len(list((tmp_path / "runs").rglob(OUTBOX))) >= 2

    assert "5 records of the sweep's run wait in runs/sweep" in capsys.readouterr().err

    server.start()
    assert command(monkeypatch, deliver, "runs") == 0
    assert list((tmp_path / "runs").rglob(OUTBOX)) == []
    client = open_client(server.uri)
    experiment = client.get_experiment_by_name("remote")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {"sweep", *logged} == set(runs)
    assert runs["sweep"].info.status == "FINISHED"
    assert {Path(file.path).suffix for file in client.list_artifacts(runs["sweep"].info.run_id, "sweep")} == {
        ".csv", ".md", ".png", ".svg",
    }  # fmt: skip
    for name, rows in logged.items():
        run = runs[name]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == runs["sweep"].info.run_id
        assert run.data.params["model.resampler.type"] == "mlp"
        history = [m for key in {row[0] for row in rows} for m in client.get_metric_history(run.info.run_id, key)]
        assert Counter((m.key, m.value, m.step) for m in history) == Counter(rows)
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert files >= {"config.yaml", "evaluation", "sample_answers.json", "views.png"}
        copy = download_artifacts(f"{run.info.artifact_uri}/config.yaml", tracking_uri=server.uri)
        assert "experiment_name: sweep" in Path(copy).read_text(encoding="utf-8")
        assert {one.dataset.name for one in run.inputs.dataset_inputs} == {"world-train", "world-val", "world-test"}


def test_a_run_does_not_begin_on_a_server_that_is_not_there(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, train, *backbones(backbone), *QUICK, "tracking.uri=http://127.0.0.1:9") == 1
    told = capsys.readouterr().err
    assert "ConnectionError: tracking.uri=http://127.0.0.1:9 does not answer" in told
    assert "tracking=none" in told
    assert not list((tmp_path / "runs").rglob("*.ckpt"))
