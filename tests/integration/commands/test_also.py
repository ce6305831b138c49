"""Whole commands with W&B and TensorBoard beside MLflow or alone, and what belongs to a training in each of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from mlflow.entities import Run
from support.runs import QUICK, backbones, command, run_train
from support.tracked import events, offline_runs

from panollava import compare, explain, train
from panollava import eval as evaluation
from panollava.checkpoint import find_checkpoint, read_state
from panollava.tracking.additional import CompositeTracker
from panollava.tracking.location import absolute_uri
from panollava.tracking.store import PARENT_TAG, open_client

Backbone = Callable[[str], Path]
BOTH = "tracking.also=[wandb,tensorboard]"
FEW = (*QUICK, "stage=vision", "stage.vision.epochs=1", "experiment_name=demo")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty working directory, from which nothing is sent."""
    for name in ("wandb", "tensorboard"):
        pytest.importorskip(name, reason=f"the package {name} is not installed")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "own"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    HydraConfig.instance().cfg = None


def children(parent: str) -> list[Run]:
    client = open_client(absolute_uri())
    every = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return [run for run in every if run.data.tags.get(PARENT_TAG) == parent]


def test_a_run_without_mlflow_that_fails_goes_on_in_both(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [*backbones(backbone), *FEW, "tracking=none", BOTH, "trainer.save_every_steps=1"]
    flush, flushed = CompositeTracker.flush, list[int]()

    def failing(self: CompositeTracker) -> None:
        flush(self)
        flushed.append(1)
        if len(flushed) == 2:  # step 2 is recorded, and no checkpoint has it
            raise RuntimeError("a broken machine")

    with monkeypatch.context() as patch:
        patch.setattr(CompositeTracker, "flush", failing)
        with pytest.raises(RuntimeError, match="a broken machine"):
            run_train(*asked)
    assert len(flushed) >= 2
    assert command(monkeypatch, train, *asked) == 0
    root = Path("runs/demo")
    (numbers,) = (root / "tensorboard").iterdir()
    seen, (first, second) = events(numbers), offline_runs(root)
    steps = [step for step, _ in seen.metrics["vision/loss"]]
    assert steps == sorted(set(steps)) == list(range(1, len(steps) + 1))
    assert len(steps) == 3
    assert (first.id, first.name, first.group, first.job) == (second.id, "demo", "demo", "train")
    of_both = [*first.metrics["vision/loss"], *second.metrics["vision/loss"]]
    assert [step for step, _ in of_both] == steps
    assert [value for _, value in of_both] == pytest.approx([value for _, value in seen.metrics["vision/loss"]])
    assert (first.status, second.status, seen.status) == ("FAILED", "FINISHED", "FINISHED")
    assert seen.metrics.keys() == first.metrics.keys() | second.metrics.keys()
    for one in (seen, first):
        assert str(one.params["model.latent_width"]) == "32"
        assert "latent_width: 32" in one.texts["config.yaml"]
        assert one.pictures["views.png"].shape[2] == 3
        assert one.tags["panollava.stages"] == "vision"
        assert "world" in one.data
    assert not Path("mlflow.db").exists()
    assert command(monkeypatch, train, *asked, "overwrite=true") == 0
    assert {one.name for one in (root / "tensorboard").iterdir()} == {"train_1", "train_2"}
    assert len({one.id for one in offline_runs(root)}) == 2


def test_a_run_in_all_three_has_the_same_numbers(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, train, *backbones(backbone), *FEW, BOTH, "tracking.log_model=checkpoint") == 0
    client = open_client(absolute_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("panollava").experiment_id])
    (offline,), seen = offline_runs(Path("runs/demo")), events(Path("runs/demo/tensorboard/train_1"))
    assert run.data.metrics.keys() == offline.metrics.keys() == seen.metrics.keys()
    for key, value in run.data.metrics.items():
        history = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, key)]
        assert offline.metrics[key] == history
        assert [step for step, _ in seen.metrics[key]] == [step for step, _ in history]
        assert seen.metrics[key][-1][1] == pytest.approx(value, rel=1e-6)
    assert "panollava/model/best.ckpt" in offline.record
    state = json.loads(Path("runs/demo/stage_state.json").read_text())
    assert run.info.run_id in json.dumps(state)


def test_a_sweep_is_a_group_and_its_jobs_have_their_names(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [*backbones(backbone), *QUICK, "stage=vision", "trainer.max_steps=1", "experiment_name=search"]
    assert command(monkeypatch, train, "-m", *asked, "tracking=none", BOTH, "resampler=mlp,bimamba") == 0
    jobs = sorted(path for path in Path("runs/search").iterdir() if path.is_dir())
    assert len(jobs) == 2
    for job in jobs:
        (run,) = offline_runs(job)
        assert (run.group, run.name, run.job) == ("search", job.name, "train")
        assert "vision/loss" in events(job / "tensorboard" / "train_1").metrics


def test_evaluations_explanations_and_comparisons_are_children_of_their_training(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("runs", "results", "mlruns"):
        shutil.copytree(recorded / name, name, symlinks=True)
    shutil.copyfile(recorded / "mlflow.db", "mlflow.db")
    client = open_client(absolute_uri())
    trained = read_state(find_checkpoint(Path("runs/recorded/finetune/anyres-e2p_mlp")))["tracking_run"]
    training = client.get_run(trained)
    for run in client.search_runs([training.info.experiment_id]):  # other tests may have recorded runs there
        if run.info.run_id != trained:
            client.delete_run(run.info.run_id)
    quiet = ("num_workers=0", "device=cpu", BOTH)
    assert command(monkeypatch, evaluation, "checkpoint=runs/recorded", "results_dir=out", "blank=false", *quiet) == 0
    assert command(monkeypatch, explain, "checkpoint=runs/recorded", "device=cpu", BOTH) == 0
    stages = [f"runs/recorded/{name}/anyres-e2p_mlp" for name in ("finetune", "resampler")]
    assert command(monkeypatch, compare, *stages, "words=unicode", *quiet) == 0
    found = children(training.info.run_id)
    assert {run.info.run_name.split()[0] for run in found} == {"eval", "explain", "compare"}
    (comparison,) = [run for run in found if run.info.run_name.startswith("compare")]
    assert comparison.data.tags["panollava.compared"] == "recorded/finetune, recorded/resampler"
    root = Path("runs/recorded")
    assert [(run.job, run.group) for run in offline_runs(root)] == [("eval", "recorded"), ("explain", "recorded")]
    assert {one.name for one in (root / "tensorboard").iterdir()} == {"eval_1", "explain_1"}
    assert any(name.startswith("test/") for name in events(root / "tensorboard" / "eval_1").metrics)
    assert "explain.png" in events(root / "tensorboard" / "explain_1").pictures
    (compared,) = offline_runs(Path("results/comparison"))
    assert (compared.job, compared.group) == ("compare", "recorded")
    # Where the store does not have the training, they are runs of their own.
    elsewhere = f"tracking.uri=sqlite:///{tmp_path}/other.db"
    assert command(monkeypatch, explain, "checkpoint=runs/recorded", "device=cpu", elsewhere) == 0
    other = open_client(absolute_uri(f"sqlite:///{tmp_path}/other.db"))
    (alone,) = other.search_runs([other.get_experiment_by_name("panollava").experiment_id])
    assert PARENT_TAG not in alone.data.tags
