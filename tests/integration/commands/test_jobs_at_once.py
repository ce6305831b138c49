"""Four jobs of a sweep at once: nothing is lost or made twice, and what kills one of them leaves the others alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file
from support.runs import CLOCKED, QUICK, assert_same_bits, backbones, command
from torch import Tensor

from panollava import train
from panollava.sweep_folder import read_jobs
from panollava.tracking.location import absolute_uri

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs have a process of their own where one can fork")

JOBS, KILLED, SCENES = 4, 2, 12 + 4
History = dict[tuple[str, int], float | str]


@pytest.fixture
def at_once() -> Iterator[tuple[str, ...]]:
    """Arguments of the launcher; its processes, which would wait for more, are ended."""
    yield "hydra/launcher=parallel", f"hydra.launcher.n_jobs={JOBS}"
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True, kill_workers=True)
    HydraConfig.instance().cfg = None  # a sweep's mode would stay for tests that run without Hydra


def tracked(folder: Path) -> dict[str, Run]:
    """Runs by name."""
    client = MlflowClient(absolute_uri(folder=folder))
    runs = client.search_runs([client.get_experiment_by_name("panollava").experiment_id])
    found = {run.info.run_name: run for run in runs}
    assert len(found) == len(runs)
    return found


def histories(folder: Path, runs: dict[str, Run]) -> dict[str, History]:
    """Metrics of each run, those of the clock without their values."""
    client, found = MlflowClient(absolute_uri(folder=folder)), {}
    for name, run in runs.items():
        rows = [one for key in run.data.metrics for one in client.get_metric_history(run.info.run_id, key)]
        clocked = {row.key for row in rows if any(word in row.key for word in CLOCKED)}
        found[name] = {(row.key, row.step): "clock" if row.key in clocked else row.value for row in rows}
        assert len(found[name]) == len(rows), f"{name} logged a point twice"
    return found


def features(folder: Path) -> dict[str, Tensor]:
    """Every panorama's features in a store, by file."""
    root = folder / "cache" / "features"
    return {str(path.relative_to(root)): load_file(path)["features"] for path in root.rglob("*.safetensors")}


def test_four_jobs_at_once_lose_nothing_and_a_killed_one_ends_alone(
    backbone: Callable[[str], Path],
    at_once: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What they should have given is known from the same jobs one after the other, which also finish the killed one."""
    folders = [tmp_path / name for name in ("together", "in turn", "notes")]
    for folder in folders:
        folder.mkdir()
    together, in_turn, notes = folders
    asked = ["-m", *backbones(backbone), *QUICK, "stage=vision", "stage.vision.epochs=2", "trainer.save_every_steps=2"]
    asked += [f"seed={','.join(map(str, range(JOBS)))}", "tracking.register=seeds"]
    watch = {"_target_": "support.watched_jobs.WatchedJobs", "folder": f"'{notes}'", "jobs": JOBS, "killed": KILLED}
    watched = [f"+hydra.callbacks.watched.{key}={value}" for key, value in watch.items()]

    monkeypatch.chdir(together)
    assert command(monkeypatch, train, *asked, *at_once, *watched) == 1
    said = capfd.readouterr().err
    assert "seed-2 failed: Its process was ended by SIGKILL" in said.rpartition("\nSweep ")[2]
    assert "Traceback" not in said
    sweep = together / "runs" / "sweep_seed"
    assert [job.status for job in read_jobs(sweep)] == ["finished", "finished", "failed", "finished"]
    status = {name: run.info.status for name, run in tracked(together).items()}
    assert [status.pop(name) for name in ("sweep_seed", "seed-2")] == ["FAILED", "KILLED"]
    assert status == {f"seed-{seed}": "FINISHED" for seed in (0, 1, 3)}

    assert command(monkeypatch, train, *asked) == 0
    runs = tracked(together)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parent = runs.pop("sweep_seed")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}

    monkeypatch.chdir(in_turn)
    assert command(monkeypatch, train, *asked) == 0
    others = tracked(in_turn)
    assert histories(together, runs) == histories(in_turn, {name: others[name] for name in runs})
    assert len(runs) == JOBS
    assert len(features(together)) == len(list(notes.glob("encoded-*"))) == SCENES
    assert_same_bits(features(together), features(in_turn))

    for folder, found in ((together, runs), (in_turn, others)):
        client = MlflowClient(absolute_uri(folder=folder))
        versions = client.search_model_versions("name = 'seeds'")
        best = min(versions, key=lambda version: float(version.tags["panollava.loss"]))
        assert {version.run_id for version in versions} == {found[name].info.run_id for name in runs}
        assert client.get_model_version_by_alias("seeds", "best").version == best.version
