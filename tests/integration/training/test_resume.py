"""Whole stages of small backbones: the same twice, and the same after a crash."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.picture_files import by_pillow, noise
from support.runs import (
    QUICK,
    UNTRACKED,
    assert_same_bits,
    backbones,
    checkpoint_tensors,
    command,
    opened,
    record,
    run_train,
    stage_folder,
)
from support.toy_training import before_step, power_cut

import panollava.run.stage  # noqa: F401  which would keep a replaced ``validate`` if a test imported it first
from panollava import train
from panollava.checkpoint import BEST, LAST, follow
from panollava.run.build_stage import build_stage, start_from
from panollava.training.loop import OptimiserStep

Backbone = Callable[[str], Path]
LEARNT = ("stage.finetune.epochs=2", "lora.dropout=0.3", "evaluation.enabled=false", "trainer.save_every_steps=2")
"""Six steps; the adapter's dropout draws from the random state that a checkpoint brings back."""


@pytest.fixture
def arguments(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A quick run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return [*backbones(backbone), *QUICK, UNTRACKED]


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def final(experiment: str, stage: str = "finetune") -> dict[str, torch.Tensor]:
    """Everything the last checkpoint of a stage holds."""
    last = follow(stage_folder(experiment, stage) / LAST)
    assert last is not None
    return checkpoint_tensors(last)


@pytest.mark.parametrize("workers", [0, 2])
def test_two_runs_and_one_that_crashed_are_the_same_to_the_bit(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    # The recorder refuses a step whose numbers are not those that the first run logged for it.
    tracker = record(monkeypatch)
    asked = [*arguments, "stage=finetune", *LEARNT]
    run_train(*asked, "experiment_name=first")
    whole = dict(tracker.kept)
    assert {step for key, step in whole if key == "finetune/loss"} == set(range(1, 7))
    workers_now = f"trainer.num_workers={workers}"
    run_train(*asked, "experiment_name=second", workers_now)
    assert_same_bits(final("second"), final("first"))
    with monkeypatch.context() as patch:
        # In mid-epoch, after the save of step 4 and one more step.
        patch.setattr(OptimiserStep, "__call__", before_step(6, power_cut))
        with pytest.raises(RuntimeError, match="power cut"):
            run_train(*asked, "experiment_name=cut", workers_now)
    assert json.loads(Path("runs/cut/stage_state.json").read_text())["stages"].popitem()[1]["status"] == "failed"
    run_train(*asked, "experiment_name=cut", workers_now)
    assert_same_bits(final("cut"), final("first"))
    assert tracker.kept == whole
    assert {path.name for path in stage_folder("cut", "finetune").glob("*.ckpt")} == {
        path.name for path in stage_folder("first", "finetune").glob("*.ckpt")
    }


def test_another_seed_is_another_run(arguments: list[str]) -> None:
    asked = [*arguments, "stage=finetune", "trainer.max_steps=1", "evaluation.enabled=false"]
    run_train(*asked, "experiment_name=first")
    run_train(*asked, "experiment_name=other", "seed=1")
    one, other = final("first"), final("other")
    weights = "trained.safetensors:vision.resampler.layers.0.weight"
    assert not torch.equal(one[weights], other[weights])


def test_ctrl_c_is_resumed_to_the_bit(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Changed pictures are others in each epoch, and the same when an epoch is gone on with.
    asked = [*arguments, "stage=vision", "stage.vision.epochs=2", "data.augment=true"]
    run_train(*asked, "experiment_name=whole")
    stopped = [*asked, "experiment_name=stopped", "overwrite=true"]
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with monkeypatch.context() as patch:
        patch.setattr(OptimiserStep, "__call__", before_step(4, ctrl_c))
        assert command(patch, train, *stopped) == 130
    error = capsys.readouterr().err
    assert "Stage vision is saved at step 4; run the same command without overwrite=true to resume." in error
    assert "Traceback" not in error
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # the same start, with the same command
    run_train(*stopped)
    assert "resumes from" in capsys.readouterr().err
    assert_same_bits(final("stopped", "vision"), final("whole", "vision"))


def test_resuming_by_path_and_from_another_stage(arguments: list[str]) -> None:
    run_train(*arguments, "stage=vision", "experiment_name=x")
    checkpoint = follow(stage_folder("x", "vision") / LAST)
    with pytest.raises(ValueError, match=r"resume=.*stage 'vision', not 'resampler'.*init_from="):
        run_train(*arguments, "stage=resampler", "experiment_name=y", f"resume={checkpoint}")
    # A longer training goes on from a path as from the folder itself.
    longer = [*arguments, "stage=vision", "stage.vision.epochs=2"]
    run_train(*longer, "experiment_name=z", f"resume={checkpoint}")
    with opened(*longer, "stage.vision.epochs=3", "experiment_name=z", f"resume={checkpoint}") as run:
        assert run.resume_point("vision") == follow(run.experiment.stage_folder("vision") / LAST)  # and not there again
    run_train(*longer, "experiment_name=x")
    assert_same_bits(final("z", "vision"), final("x", "vision"))


def test_best_weights_go_on_to_the_next_stage(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The last epoch's validation loss is the worse one: what is handed on is the first epoch's."""
    losses = iter([1.0, 2.0])
    monkeypatch.setattr("panollava.training.loop.validate", lambda *args, **_: {"loss": next(losses)})
    run_train(*arguments, "stage=vision", "experiment_name=x", "stage.vision.epochs=2")
    folder = stage_folder("x", "vision")
    best, last = follow(folder / BEST), follow(folder / LAST)
    assert best is not None
    assert ("epoch01" in best.name, last is not None and "epoch02" in last.name) == (True, True)
    with opened(*arguments, "stage=resampler", "experiment_name=x") as run:
        trained = build_stage(run, "resampler").trained()
        start_from(run, "resampler", trained, {})
    tensors = load_file(best / "trained.safetensors")
    shared = set(trained) & set(tensors)
    assert shared == {name for name in tensors if name.startswith("vision.resampler.")}
    assert all(torch.equal(trained[name], tensors[name]) for name in shared)


@pytest.mark.parametrize("stage", ["vision", "finetune"])
def test_bf16_trains_fp32_weights_close_to_fp32(arguments: list[str], stage: str) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        with opened(*arguments, f"trainer.precision={precision}", f"experiment_name={precision}") as run:
            torch.manual_seed(0)
            module = build_stage(run, stage)
            step = OptimiserStep(
                module,
                module,
                torch.optim.SGD(module.trained().values()),
                run.compute.scaler(),
                run.compute,
                run.procs,
                0.0,
            )
            window = next(iter(run.batches(stage, run.stage_options(stage)).windows(0)))
            losses[precision] = step(window, lr=0.1)["loss"]
            assert {parameter.dtype for parameter in module.trained().values()} == {torch.float32}
            frozen = {p.dtype for p in module.parameters() if not p.requires_grad}
            assert frozen == {torch.float32 if precision == "fp32" else torch.bfloat16}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses["bf16"] != losses["fp32"]


@pytest.mark.parametrize("workers", [0, 2])
def test_shared_prefixes_are_resumed_to_the_bit(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Three rows about each of four pictures, in batches of four rows."""
    for name in "abcd":
        Path(f"{name}.png").write_bytes(by_pillow(noise(64, 128), "PNG"))
    lines = [f"{name}.png,what {number}?,red {number}" for number in range(3) for name in "abcd"]
    for split in ("train", "val", "test"):
        Path(f"{split}.csv").write_text("\n".join(["image,question,answer", *lines]) + "\n")
    asked = [one for one in arguments if not one.startswith("data.")]
    asked += ["stage=finetune", *LEARNT, "data=csv", "data.dir=.", "data.shared_prefix=true"]
    asked += ["stage.finetune.batch_size=4", f"trainer.num_workers={workers}"]
    run_train(*asked, "experiment_name=first")
    with monkeypatch.context() as patch:
        patch.setattr(OptimiserStep, "__call__", before_step(6, power_cut))
        with pytest.raises(RuntimeError, match="power cut"):
            run_train(*asked, "experiment_name=cut")
    run_train(*asked, "experiment_name=cut")
    assert_same_bits(final("cut"), final("first"))
    with pytest.raises(ValueError, match=r"data\.shared_prefix"):
        run_train(*asked, "experiment_name=first", "data.shared_prefix=false")
    with pytest.raises(ValueError, match=r"data\.augment=true changes it"):
        run_train(*asked, "experiment_name=changed", "data.augment=true", "data.names_directions=none")
