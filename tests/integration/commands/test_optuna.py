"""``hydra/sweeper=optuna``: trials in folders of their own, the report, and a start after a kill that repeats none."""

from __future__ import annotations

import csv
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from mlflow.tracking import MlflowClient
from support.faults import in_child, kill
from support.runs import QUICK, backbones, command

from panollava import train
from panollava.run import stage
from panollava.sweep_folder import read_jobs
from panollava.tracking.location import absolute_uri

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
STUDY = ["-m", "hydra/sweeper=optuna", "resampler=choice(mlp,pool)", "stage.finetune.lr=tag(log,interval(1e-4,1e-2))"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    HydraConfig.instance().cfg = None


def test_a_study_whose_trials_all_fail_is_one_message_and_dry_runs_have_a_score(
    backbone: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*STUDY, *backbones(backbone), *QUICK, "stage=finetune", "hydra.sweeper.n_trials=2", "tracking=none"]
    assert command(monkeypatch, train, *asked, "dry_run=true") == 0
    assert not Path("runs").exists()

    def broken(*arguments: Any, **options: Any) -> Any:
        raise OSError("no space left on device")

    monkeypatch.setattr(stage, "fit", broken)
    assert command(monkeypatch, train, *asked) == 1
    said = capsys.readouterr().err
    assert "Optuna: No trials are completed yet." in said
    assert said.count("failed: OSError: no space left on device") == 2
    assert "Traceback" not in said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
def test_a_study_that_was_killed_continues_and_repeats_no_trial(
    backbone: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*STUDY, *backbones(backbone), *QUICK, "stage=finetune", "trainer.max_steps=1", "evaluation.blank=false"]
    asked += ["experiment_name=study", "evaluation.max_samples=4", "hydra.sweeper.n_trials=6"]
    whole, trained = stage.fit, Path("trained")

    def counted(*arguments: Any, **options: Any) -> Any:
        with trained.open("a") as file:
            file.write(f"{Path(HydraConfig.get().runtime.output_dir).name}\n")
        if len(trained.read_text().splitlines()) == 3 and not Path("killed").exists():
            Path("killed").touch()
            kill()
        return whole(*arguments, **options)

    monkeypatch.setattr(stage, "fit", counted)
    assert in_child(lambda: command(monkeypatch, train, *asked), quiet=Path("said.txt")) == -signal.SIGKILL
    capsys.readouterr()
    assert command(monkeypatch, train, *asked) == 0
    assert capsys.readouterr().err.count("Every stage of this config is finished already") == 2
    started = trained.read_text().splitlines()
    assert started[2] == started[3]  # the one that was killed
    assert len(started) == 7
    assert len(set(started)) == 6

    sweep = Path("runs/study")
    jobs = {job.name: job for job in read_jobs(sweep)}
    assert set(jobs) == set(started)
    assert all(job.status == "finished" and job.score is not None for job in jobs.values())
    best = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert best["best_value"] == max(job.score or 0 for job in jobs.values())
    assert set(best["best_params"]) == {"model/resampler", "stage.finetune.lr"}
    with (sweep / "sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["job"]: float(row["exact_match"]) for row in rows} == {name: job.score for name, job in jobs.items()}
    assert {row["measure"] for row in rows} == {"exact match"}
    assert (sweep / "sweep.md").read_text("utf-8").count("| finished |") == 6
    assert {row["resampler"] for row in rows} == {"mlp", "pool"}

    client = MlflowClient(absolute_uri())
    runs = client.search_runs([client.get_experiment_by_name("panollava").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(run.info.run_name for run in children) == sorted(jobs)
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert {run.info.run_name: run.data.metrics["test/exact_match"] for run in children} == {
        name: job.score for name, job in jobs.items()
    }
