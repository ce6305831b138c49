"""What a start does with what a folder has: which stages it trains, replaces and resumes, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from support.runs import config

from panollava.checkpoint import BEST, LAST, TRAINED, point, weights_digest, write_checkpoint
from panollava.run.conditions import STARTED_WEIGHTS, pending_stages
from panollava.run.run import _go_on, plain
from panollava.run_folder import CONFIG, Experiment
from panollava.store.identity import FileIdentity

BOTH = "stage.run=[vision,resampler]"
AGAIN = "stage=resampler overwrite=true"


@pytest.fixture
def experiment(tmp_path: Path) -> Iterator[Experiment]:
    """A new experiment."""
    with Experiment(tmp_path / "x", "crop_mlp") as opened:
        yield opened


def train(experiment: Experiment, name: str, *arguments: str, status: str = "finished", **state: Any) -> Path:
    """Leaves what a stage leaves that was trained, or stopped, with the config of a command."""
    folder, cfg = experiment.stage_folder(name), config(*arguments)
    checkpoint = folder / f"{len(list(folder.glob('*.ckpt')))}.ckpt"
    write_checkpoint(checkpoint, {TRAINED: {"a": torch.rand(3)}}, {"stage": name})
    for link in (BEST, LAST):
        point(folder / link, checkpoint)
    OmegaConf.save(cfg, folder / CONFIG, resolve=True)
    done = {"epochs": cfg.stage[name].epochs, "max_steps": None} if status == "finished" else {}
    experiment.record(name, status=status, **done, **state)
    return checkpoint


def pending(experiment: Experiment, *arguments: str) -> list[str]:
    """The stages that a command would train."""
    cfg = config(*arguments)
    _go_on(cfg, experiment)
    return pending_stages(plain(cfg), experiment, FileIdentity(None))


@pytest.mark.parametrize("status", ["interrupted", "finished"])
def test_a_begun_stage_is_of_the_present_earlier_stage(experiment: Experiment, status: str) -> None:
    """However often it was resumed: times do not count where the weights are recorded."""
    old, new = "2026-01-01T00:00:00+0000", "2026-02-01T00:00:00+0000"
    vision = train(experiment, "vision", BOTH, finished=old)
    known = {"started": new, STARTED_WEIGHTS: weights_digest(vision)}
    train(experiment, "resampler", BOTH, status=status, **known)
    left = [] if status == "finished" else ["resampler"]
    assert pending(experiment, BOTH) == left
    for more in (BOTH, "stage.vision.epochs=9"), (BOTH, "stage.vision.epochs=9", "stage.resampler.epochs=9"):
        with pytest.raises(ValueError, match=rf"crop_mlp was trained .*\(stage=vision\), then this stage.*{AGAIN}"):
            pending(experiment, *more)
    experiment.record("vision", finished=new)  # trained further without a better checkpoint
    assert pending(experiment, BOTH) == left
    train(experiment, "vision", BOTH)
    for command in ([BOTH], ["stage=resampler"], ["stage=resampler", "stage.resampler.epochs=9"]):
        with pytest.raises(ValueError, match=rf"earlier vision stage than the present one\. Either train .*{AGAIN}"):
            pending(experiment, *command)
    assert pending(experiment, *AGAIN.split()) == ["resampler"]


def test_a_stage_that_started_with_new_weights_is_not_of_a_later_earlier_stage(experiment: Experiment) -> None:
    started = {"started": "2026-01-01T00:00:00+0000", STARTED_WEIGHTS: None}
    train(experiment, "resampler", "stage=resampler", status="interrupted", **started)
    assert pending(experiment, "stage=resampler") == ["resampler"]
    train(experiment, "vision", BOTH, finished="2026-02-01T00:00:00+0000")
    with pytest.raises(ValueError, match="earlier vision stage than the present one"):
        pending(experiment, BOTH)


def test_a_stage_depends_on_the_one_that_it_started_from(experiment: Experiment) -> None:
    """And not on one that is trained in between, or further, until that one has other weights."""
    train(experiment, "vision", BOTH)
    resampler = train(experiment, "resampler", BOTH)
    train(experiment, "finetune", "stage=finetune", **{STARTED_WEIGHTS: weights_digest(resampler)})
    experiment.record("resampler", status="interrupted")
    train(experiment, "vision", BOTH)
    assert pending(experiment, "stage=finetune") == []
    train(experiment, "resampler", BOTH, status="interrupted")
    with pytest.raises(ValueError, match="earlier resampler stage than the present one"):
        pending(experiment, "stage=finetune")


def test_a_stage_of_a_named_run_does_not_depend_on_the_earlier_ones_here(experiment: Experiment) -> None:
    train(experiment, "vision", "stage=vision", finished="2026-01-01T00:00:00+0000")
    command = ["stage=resampler", "init_from=runs/other"]
    train(experiment, "resampler", *command, started="2026-02-01T00:00:00+0000", **{STARTED_WEIGHTS: "of another run"})
    assert pending(experiment, *command) == []


def test_old_records_are_compared_by_time_where_they_are_finished(experiment: Experiment) -> None:
    train(experiment, "vision", BOTH, finished="2026-02-01T00:00:00+0000")
    train(experiment, "resampler", BOTH, status="interrupted", started="2026-01-01T00:00:00+0000")
    assert pending(experiment, BOTH) == ["resampler"]
    train(experiment, "resampler", BOTH)
    with pytest.raises(ValueError, match="earlier vision stage"):
        pending(experiment, BOTH)


def test_another_config_is_refused_where_something_would_be_lost(experiment: Experiment) -> None:
    train(experiment, "vision", BOTH)
    smaller = [BOTH, "stage.resampler.batch_size=4", "stage.resampler.accumulate=2"]
    folder = experiment.stage_folder("resampler")
    folder.mkdir(parents=True)
    OmegaConf.save(config(BOTH), folder / CONFIG, resolve=True)
    experiment.record("resampler", status="failed")  # without memory for the first step
    assert pending(experiment, *smaller) == ["resampler"]
    train(experiment, "resampler", BOTH, status="interrupted")
    with pytest.raises(ValueError, match=rf"another config .*batch_size.*replace it \({AGAIN}\)"):
        pending(experiment, *smaller)
    with pytest.raises(ValueError, match=r"another config .*batch_size.*replace it \(overwrite=true\)"):
        pending(experiment, "stage=resampler", *smaller[1:])


def test_a_job_that_slurm_starts_again_replaces_only_what_it_has_not_begun(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["stage.run=[vision,resampler,finetune]", "overwrite=true"]
    vision = train(experiment, "vision", *command, start="4711")
    weights = {STARTED_WEIGHTS: weights_digest(vision)}
    train(experiment, "resampler", *command, status="interrupted", start="4711", **weights)
    train(experiment, "finetune", *command)
    everything = ["vision", "resampler", "finetune"]
    assert pending(experiment, *command) == everything
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert pending(experiment, *command) == everything  # another command of the same job
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert pending(experiment, *command) == ["resampler", "finetune"]
    assert experiment.replaced == ["finetune"]
    assert pending(experiment, *command, "resume=none") == ["resampler", "finetune"]
    monkeypatch.setenv("SLURM_JOB_ID", "4712")
    assert pending(experiment, *command) == everything


def test_a_job_of_the_same_sweep_goes_on(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panollava.run.run.this_start", lambda: ("a", True))
    train(experiment, "vision", "stage=vision", "overwrite=true", start="a")
    assert pending(experiment, "stage=vision", "overwrite=true") == []
    monkeypatch.setattr("panollava.run.run.this_start", lambda: ("b", True))
    assert pending(experiment, "stage=vision", "overwrite=true") == ["vision"]


def test_the_command_that_resumed_another_folder_resumes_its_own(experiment: Experiment) -> None:
    other = Path("elsewhere/last.ckpt")
    train(experiment, "vision", "stage=vision", status="interrupted", resumed=str(other.absolute()))
    for named, then in ((other, "auto"), ("elsewhere/first.ckpt", "elsewhere/first.ckpt")):
        cfg = config("stage=vision", f"resume={named}")
        _go_on(cfg, experiment)
        assert cfg.resume == then
