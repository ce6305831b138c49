"""Sweeps as the README gives them: folders, the parent run, failures, starting again, launchers."""

from __future__ import annotations

import csv
import re
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from support.faults import in_child, kill
from support.runs import QUICK, UNTRACKED, backbones, command

from experiments.convergence.validate import read_pair
from panollava import compare, train
from panollava.checkpoint import BEST, follow, read_state
from panollava.run import stage
from panollava.sweep_folder import JobRecord, read_jobs, write_job
from panollava.tracking.location import absolute_uri
from panollava.tracking.mlflow_tracker import MlflowTracker

Backbone = Callable[[str], Path]
WHOLE = [argument for argument in QUICK if not argument.startswith("crop.overlap")]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every test works in an empty folder."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    HydraConfig.instance().cfg = None  # a sweep's mode would stay for tests that run without Hydra


def tracked() -> tuple[Run, list[Run]]:
    """The parent run and its jobs, as MLflow has them."""
    client = MlflowClient(absolute_uri())
    runs = client.search_runs([client.get_experiment_by_name("panollava").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    jobs = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(jobs) == len(runs) - 1
    return parent, sorted(jobs, key=lambda run: run.info.run_name)


def test_a_sweep_is_a_folder_a_job_under_one_parent_run(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [*backbones(backbone), *WHOLE, "stage=vision", "trainer.max_steps=1"]
    assert command(monkeypatch, train, "-m", *asked, "resampler=mlp,bimamba", "crop.overlap=0.0,0.5") == 0
    (sweep,) = Path("runs").iterdir()
    jobs = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert jobs == [f"crop.overlap-{overlap}_resampler-{kind}" for overlap in (0.0, 0.5) for kind in ("bimamba", "mlp")]
    for job in jobs:
        assert follow(next((sweep / job / "vision").iterdir()) / BEST) is not None
    parent, children = tracked()
    assert [run.info.run_name for run in children] == jobs
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    for kept in ("params", "tags"):
        values = [getattr(run.data, kept) for run in children]
        assert [(one["sweep.crop.overlap"], one["sweep.resampler"]) for one in values] == [
            ("0.0", "bimamba"), ("0.0", "mlp"), ("0.5", "bimamba"), ("0.5", "mlp"),
        ]  # fmt: skip
    with (sweep / "sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == jobs
    for row in rows:
        best = follow(next((sweep / row["job"] / "vision").iterdir()) / BEST)
        assert best is not None
        assert float(row["vision_validation_loss"]) == read_state(best)["validation_loss"]
    kept_files = MlflowClient(absolute_uri()).list_artifacts(parent.info.run_id, "sweep")
    assert {Path(file.path).name for file in kept_files} == {"sweep.csv", "sweep.md", "sweep.png", "sweep.svg"}


def test_a_failed_job_is_told_and_the_next_start_trains_it_alone(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [*backbones(backbone), *QUICK, "stage=resampler", "trainer.max_steps=1", "evaluation.max_samples=4"]
    asked = ["-m", *quick, "resampler.width=16,24", "experiment_name=widths"]
    whole = stage.fit

    def full_disk(*args: Any, **options: Any) -> Any:
        if HydraConfig.get().job.num == 0:
            raise OSError("no space left on device")
        return whole(*args, **options)

    monkeypatch.setattr(stage, "fit", full_disk)
    assert command(monkeypatch, train, *asked) == 1
    last = capsys.readouterr().err.rstrip().split("\nSweep ")[-1]
    assert last.startswith("runs/widths: 2 jobs started, 1 failed, 1 finished.\n")
    assert "resampler.width-16 failed: OSError: no space left on device" in last
    parent, (failed, finished) = tracked()
    assert (parent.info.status, failed.info.status, finished.info.status) == ("FAILED", "FAILED", "FINISHED")
    assert [job.status for job in read_jobs(Path("runs/widths"))] == ["failed", "finished"]
    trained = next(Path("runs/widths/resampler.width-24").glob("*/*/best.ckpt")).stat().st_mtime_ns

    monkeypatch.setattr(stage, "fit", whole)
    assert command(monkeypatch, train, *asked) == 0
    assert next(Path("runs/widths/resampler.width-24").glob("*/*/best.ckpt")).stat().st_mtime_ns == trained
    again, children = tracked()
    assert again.info.run_id == parent.info.run_id
    assert [run.info.run_id for run in children] == [failed.info.run_id, finished.info.run_id]
    assert {run.info.status for run in (again, *children)} == {"FINISHED"}
    results = Path("results/eval_results")
    assert sorted(path.relative_to(results).parts[:2] for path in results.rglob("metrics.json")) == [
        ("widths", "resampler.width-16"),
        ("widths", "resampler.width-24"),
    ]
    text = Path("runs/widths/sweep.md").read_text("utf-8")
    assert text.count("| finished |") == 2
    assert "resampler.width-16 and resampler.width-24 are not distinguishable" in text
    assert "Still learning when training ended: 2 of 2 jobs. So this ranks how fast, not how well" in text
    with Path("runs/widths/sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["still_learning"] for row in rows] == ["yes", "yes"]
    assert len({row["resampler_common_loss"] for row in rows}) == 1
    assert {row["resampler_samples_to_common_loss"] for row in rows} == {"4.0"}  # of their only step
    pairs = read_pair(Path("runs/widths"), Path("runs/widths"))
    assert [(one.job, one.gain, one.learning.verdict) for one in pairs] == [(row["job"], 0.0, "yes") for row in rows]
    assert "about the settings nothing is shown: one seed each" in text


def test_seeds_make_settings_in_the_report_and_in_compare(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [*backbones(backbone), *QUICK, "stage=resampler", "trainer.max_steps=1", "evaluation.blank=false"]
    asked = ["-m", *quick, UNTRACKED, "resampler.width=16,24", "seed=0,1", "experiment_name=seeds"]
    assert command(monkeypatch, train, *asked) == 0
    said = capsys.readouterr().err
    assert (
        said.count("What this sweep can see by exact match: 2 settings, 2 seeds each, 9 questions about 1 picture.")
        == 1
    )
    assert said.index("What this sweep can see") < said.index("Experiment resampler.width-16_seed-0 in")
    text = Path("runs/seeds/sweep.md").read_text("utf-8")
    assert "| resampler.width | seeds | exact match, % | interval by seed |" in text
    assert re.search("(resampler.width=16 and|About the settings resampler.width=16 and) resampler.width=24", text)
    assert "What this sweep can see by exact match: 2 settings, 2 seeds each" in text
    assert "not trained alike" not in text
    jobs = sorted(map(str, Path("runs/seeds").glob("*/")))
    assert command(monkeypatch, compare, *jobs, UNTRACKED, "device=cpu", "num_workers=0", "table=latex") == 0
    text = Path("results/comparison/comparison.md").read_text("utf-8")
    assert "The settings differ in resampler.width." in text
    assert "not trained alike" not in text
    assert re.search("(resampler.width=16 and|About the settings resampler.width=16 and) resampler.width=24", text)
    assert r"resampler.width=16\textsuperscript{\dag{}} & 2 & " in Path("results/comparison/table.tex").read_text(
        "utf-8"
    )
    with Path("results/comparison/pairs.csv").open(encoding="utf-8", newline="") as file:
        (pair,) = csv.DictReader(file)
    assert (pair["first seeds"], pair["second seeds"]) == ("2", "2")

    # Jobs of two budgets are paired by setting and seed: a sweep of one seed does not name it.
    alone = JobRecord("resampler.width-24", "", "finished", {"model.resampler.width": "24"})
    shutil.copytree("runs/seeds/resampler.width-24_seed-1", Path("runs/alone", alone.name))
    write_job(Path("runs/alone"), alone)
    (row,) = read_pair(Path("runs/seeds"), Path("runs/alone"))
    assert (row.job, row.setting) == ("resampler.width-24_seed-1", "model.resampler.width=24")
    assert (row.seed, row.gain) == ("1", 0.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
def test_a_sweep_that_was_killed_goes_on_under_its_parent_run(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["-m", *backbones(backbone), *QUICK, "stage=vision", "stage.vision.epochs=1", "experiment_name=killed"]
    asked.append("seed=0,1")
    take = MlflowTracker.metrics

    def deadly(self: MlflowTracker, values: Mapping[str, float], step: int) -> None:
        if "seed-1" in str(self._options.run_name) and step == 3:
            kill()
        take(self, values, step)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowTracker, "metrics", deadly)
        assert in_child(lambda: command(patch, train, *asked), quiet=Path("said.txt")) == -signal.SIGKILL
    parent, children = tracked()
    assert [run.info.status for run in (parent, *children)] == ["RUNNING", "FINISHED", "RUNNING"]
    with MlflowTracker(experiment="another"):  # whatever starts with the same file puts right what is there
        pass
    again, children = tracked()
    assert [run.info.status for run in (again, *children)] == ["KILLED", "FINISHED", "KILLED"]

    assert command(monkeypatch, train, *asked) == 0
    again, resumed = tracked()
    assert [run.info.run_id for run in (again, *resumed)] == [run.info.run_id for run in (parent, *children)]
    assert {run.info.status for run in (again, *resumed)} == {"FINISHED"}


def test_an_overlay_sweeps_by_itself_and_a_dry_one_keeps_nothing(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*backbones(backbone), *WHOLE, "stage=vision", "dry_run=true"]
    assert command(monkeypatch, train, "+experiment=overlap_sweep", *asked) == 0
    said = capsys.readouterr().err
    assert "3 jobs started, 3 finished." in said
    for views in ("9 views", "7 views", "5 views"):
        assert views in said
    assert list(Path().iterdir()) == []


def test_a_sweep_runs_once_at_a_time(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from filelock import FileLock

    Path("runs/sweep_seed").mkdir(parents=True)
    with FileLock("runs/sweep_seed/.lock"):
        assert command(monkeypatch, train, "-m", UNTRACKED, *backbones(backbone), "seed=0,1") == 1
    assert "runs/sweep_seed is in use by another start of this sweep" in capsys.readouterr().err
    assert list(Path("runs/sweep_seed").glob("*/")) == []


def test_a_cluster_that_is_not_there_and_a_file_that_it_should_not_share(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", "")
    asked = ["-m", *backbones(backbone), "hydra/launcher=slurm", "seed=0,1"]
    assert command(monkeypatch, train, *asked) == 1
    said = capsys.readouterr().err
    assert "mlflow.db is a file, and jobs on several machines will write to it" in said
    assert "tracking.uri=http://host:5000" in said
    assert "RuntimeError: Could not detect" in said
    assert "Traceback" not in said
    client = MlflowClient(absolute_uri())
    assert client.search_runs([client.get_experiment_by_name("panollava").experiment_id]) == []
    assert not Path("runs").exists()
    assert command(monkeypatch, train, *asked, UNTRACKED) == 1
    assert "is a file" not in capsys.readouterr().err


def test_a_job_array_that_was_accepted_outlives_ctrl_c_and_is_not_submitted_twice(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    programs = tmp_path / "bin"
    programs.mkdir()
    scripts = {"sbatch": "echo x >> submitted; echo Submitted batch job 4711", "srun": "", "sacct": ""}
    scripts["squeue"] = "[ -e ended ] || echo 4711_0"
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/bin:/usr/bin")

    def waits(job: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("submitit.core.core.Job.results", waits)
    asked = ["-m", *backbones(backbone), UNTRACKED, "hydra/launcher=slurm", "seed=0,1"]
    assert command(monkeypatch, train, *asked) == 130
    said = capsys.readouterr().err
    assert "job array 4711 still waits or runs (squeue -j 4711); scancel 4711 ends it" in said
    assert "Traceback" not in said
    assert command(monkeypatch, train, *asked) == 1
    assert "of an earlier start, job array 4711 still waits or runs" in capsys.readouterr().err
    assert Path("submitted").read_text() == "x\n"
    Path("ended").touch()
    assert command(monkeypatch, train, *asked) == 130
    assert Path("submitted").read_text() == "x\nx\n"


def test_two_jobs_of_submitit(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    asked = [*backbones(backbone), *WHOLE, "stage=vision", "trainer.max_steps=1", "hydra/launcher=submitit_local"]
    assert command(monkeypatch, train, "-m", *asked, "crop=resize,anyres_e2p") == 1
    last = capfd.readouterr().err.rstrip().split("\nSweep ")[-1]
    assert "2 jobs started, 1 failed, 1 finished." in last
    assert "crop-resize failed: ValueError: stage=vision cannot run: no view of this crop has a neighbour" in last
    parent, children = tracked()
    assert [(run.info.run_name, run.info.status) for run in (*children, parent)] == [
        ("crop-anyres_e2p", "FINISHED"), ("sweep_crop", "FAILED"),
    ]  # fmt: skip
    assert (Path("runs/sweep_crop") / "sweep.md").read_text("utf-8").count("\n| ") == 4
