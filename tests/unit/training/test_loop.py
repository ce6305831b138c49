"""The loop: validation, early stopping, where it saves, how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy_training import ALONE, CPU, ScriptedStage, Toy, ToyData, ToyStage, batch, before_step, power_cut, steps

from panollava.batch import Batch
from panollava.checkpoint import BEST, LAST, follow, read_state
from panollava.logs import LOG
from panollava.stages.protocol import StepOutput
from panollava.tracking.tracker import NullTracker
from panollava.training.checkpointer import Progress
from panollava.training.distributed import catch_signals
from panollava.training.loop import OptimiserStep, validate
from panollava.training.precision import Compute, choose_compute, continued, recorded_compute


def test_validation_weighs_samples_alike_however_they_are_batched() -> None:
    stage = ToyStage()
    level = float(stage.weight.detach().sum())
    values = [1.0, 2.0, 3.0, 9.0]
    expected = sum((value - level) ** 2 for value in values) / 4
    for split in ([values], [values[:3], values[3:]], [[value] for value in values]):
        data = ToyData([], [batch(*part) for part in split])
        result = validate(stage, stage, data, CPU, ALONE)
        assert result["loss"] == pytest.approx(expected)
        assert result["pull"] == pytest.approx(expected)
        assert result["pull/seen"] == pytest.approx(15 / 4)
    assert not stage.training


def test_an_empty_validation_split_is_refused() -> None:
    stage = ToyStage()
    with pytest.raises(ValueError, match="validation split"):
        validate(stage, stage, ToyData([], []), CPU, ALONE)


def test_epochs_steps_and_checkpoints(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    result = toy.fit(steps(3), epochs=4)
    assert (result.progress.epoch, result.progress.step_in_epoch, result.progress.global_step) == (4, 0, 12)
    assert len(toy.checkpoints()) <= 2
    last = follow(tmp_path / LAST)
    assert last is not None
    assert read_state(last)["progress"]["epoch"] == 4
    assert not result.interrupted


class UncountedStage(ToyStage):
    """Negative samples count for nothing, as micro-batches without a pair of views."""

    def counts(self, batch: Batch) -> dict[str, float]:
        return {"pull": float((batch.pixel_values[:, 0, 0, 0, 0] >= 0).sum())}

    def forward(self, batch: Batch) -> StepOutput:
        output = super().forward(batch)
        scale = float(self.counts(batch)["pull"] > 0)
        return StepOutput({"pull": output.losses["pull"] * scale}, {"pull/seen": output.metrics["pull/seen"] * scale})


def test_a_step_in_which_nothing_counts_has_no_loss(tmp_path: Path) -> None:
    """A loss of 0 would be the best of all in a plot."""
    toy = Toy(tmp_path, UncountedStage())
    step = OptimiserStep(toy.stage, toy.stage, toy.optimizer, toy.scaler, CPU, ALONE, 1.0)
    assert step([batch(-1.0, -1.0)], lr=0.1).keys() == {"grad_norm"}
    assert step([batch(-1.0), batch(1.0)], lr=0.1).keys() == {"loss", "pull", "pull/seen", "grad_norm"}
    logged: list[str] = []
    tracker = NullTracker()
    tracker.metrics = lambda values, step: logged.extend(f"{key} {step}" for key in values)
    toy = Toy(tmp_path, UncountedStage())
    data = ToyData([[batch(1.0, 2.0)], [batch(-1.0, -1.0)], [batch(1.0, 2.0)]], [batch(1.0)])
    progress = toy.fit(data, tracker=tracker, log_every_steps=1).progress
    first, second, third = (point.loss for point in progress.curve.points)
    assert second == first != third
    assert progress.curve.steps == progress.global_step == 3
    assert [name for name in logged if name.startswith("toy/loss ")] == ["toy/loss 1", "toy/loss 3"]
    assert "toy/grad_norm 2" in logged
    assert [name for name in logged if "loss_by" in name][:2] == ["toy/loss_by_samples 2", "toy/loss_by_samples 6"]


def test_best_is_the_lowest_validation_loss(tmp_path: Path) -> None:
    toy = Toy(tmp_path, ScriptedStage([3.0, 1.0, 2.0]))
    result = toy.fit(steps(2), epochs=3)
    assert result.progress.best_loss == 1.0
    assert toy.checkpoints() == ["toy_epoch02_loss1.0000.ckpt", "toy_epoch03_loss2.0000.ckpt"]
    assert [loss for _, loss in toy.saved] == [3.0, 1.0]


def test_early_stopping_waits_for_patience_in_a_row(tmp_path: Path) -> None:
    toy = Toy(tmp_path, ScriptedStage([5.0, 6.0, 4.0, 5.0, 4.5, 1.0]))
    result = toy.fit(steps(2), epochs=6, patience=2)
    assert result.progress.epoch == 5  # 4.0 in the third epoch started the count anew
    assert result.progress.best_loss == 4.0


@pytest.mark.parametrize("step", [5, 7])
def test_early_stopping_survives_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """In mid-epoch with the count at one, and right after the validation that ended the stage."""
    losses = [3.0, 1.0, 2.0, 2.5, 0.5]
    whole = Toy(tmp_path / "whole", ScriptedStage(losses))
    ended = whole.fit(steps(2), epochs=5, patience=2)
    assert ended.progress.epoch == 4
    cut = Toy(tmp_path / "cut", ScriptedStage(losses))
    with monkeypatch.context() as patch:
        if step == 7:
            patch.setattr("panollava.training.loop.TrainingMonitor.validation", lambda self, metrics: _die_at(cut, 4))
        else:
            patch.setattr(OptimiserStep, "__call__", before_step(step + 1, power_cut))
        with pytest.raises(RuntimeError, match="power cut"):
            cut.fit(steps(2), epochs=5, patience=2)
    last = follow(tmp_path / "cut" / LAST)
    assert last is not None
    epoch = read_state(last)["progress"]["epoch"]
    again = Toy(tmp_path / "cut", ScriptedStage(losses[epoch:]))
    result = again.fit(steps(2), again.checkpointer.restore(last), epochs=5, patience=2)
    assert result.progress == ended.progress
    assert torch.equal(again.weight(), whole.weight())
    assert again.checkpoints() == whole.checkpoints()


def _die_at(toy: Toy, epoch: int) -> None:
    last = follow(toy.folder / LAST)
    if last is not None and read_state(last)["progress"]["epoch"] == epoch:
        power_cut()


def test_validating_several_times_an_epoch(tmp_path: Path) -> None:
    toy = Toy(tmp_path, ScriptedStage([5.0, 4.0, 3.0, 2.0]))
    toy.fit(steps(4), epochs=2, validations_per_epoch=2)
    assert [epoch for epoch, _ in toy.saved] == [0, 1, 1, 2]


def test_max_steps_ends_a_stage_with_a_validation(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    result = toy.fit(steps(3), epochs=4, max_steps=5)
    assert (result.progress.epoch, result.progress.step_in_epoch, result.progress.global_step) == (1, 2, 5)
    assert follow(tmp_path / BEST) is not None
    assert result.metrics["loss"] > 0


@pytest.mark.parametrize(("every", "step", "place"), [(1, 6, 5), (2, 6, 4), (2, 5, 4), (0, 6, 3)])
def test_a_crash_loses_what_came_after_the_last_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, step: int, place: int
) -> None:
    whole = Toy(tmp_path / "whole")
    whole.fit(steps(3), epochs=3, save_every_steps=every)
    with monkeypatch.context() as patch:
        patch.setattr(OptimiserStep, "__call__", before_step(step, power_cut))
        with pytest.raises(RuntimeError, match="power cut"):
            Toy(tmp_path / "cut").fit(steps(3), epochs=3, save_every_steps=every)
    again = Toy(tmp_path / "cut")
    last = follow(tmp_path / "cut" / LAST)
    assert last is not None
    progress = again.checkpointer.restore(last)
    assert progress.global_step == place
    again.fit(steps(3), progress, epochs=3, save_every_steps=every)
    assert torch.equal(again.weight(), whole.weight())
    assert again.checkpoints() == whole.checkpoints()


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_time_samples_and_memory_are_those_of_the_whole_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("panollava.training.loop.time", clock)
    monkeypatch.setattr(Compute, "peak_memory_gb", lambda _: 8.0 if clock.now < 30 else 2.0)
    original, taken = OptimiserStep.__call__, []

    def step(self, *args):
        clock.now += 10.0
        taken.append(clock.now)
        if len(taken) == 3:  # two steps were saved, the third is lost with its seconds
            power_cut()
        return original(self, *args)

    monkeypatch.setattr(OptimiserStep, "__call__", step)
    with pytest.raises(RuntimeError, match="power cut"):
        Toy(tmp_path).fit(steps(3), save_every_steps=1)
    clock.now = 1000.0
    again = Toy(tmp_path)
    last = follow(tmp_path / LAST)
    assert last is not None
    whole = again.fit(steps(3), again.checkpointer.restore(last)).progress
    assert (whole.seconds, whole.step_seconds, whole.samples, whole.peak_memory_gb) == (30.0, 30.0, 6, 8.0)
    extended = Toy(tmp_path)
    last = follow(tmp_path / LAST)
    assert last is not None
    longer = extended.fit(steps(3), extended.checkpointer.restore(last), epochs=2).progress
    assert (longer.seconds, longer.samples, longer.samples_per_second) == (60.0, 12, 0.2)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_ctrl_c_finishes_the_step_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(OptimiserStep, "__call__", before_step(step, lambda: os.kill(os.getpid(), signal.SIGINT)))
    toy = Toy(tmp_path)
    result = toy.fit(steps(3), epochs=2)
    assert result.interrupted
    assert result.progress.global_step == step
    assert signal.getsignal(signal.SIGINT) is before
    again = Toy(tmp_path)
    last = follow(tmp_path / LAST)
    assert last is not None
    assert again.checkpointer.restore(last) == result.progress
    assert torch.equal(again.weight(), toy.weight())


class NoisyStage(ToyStage):
    """Draws random numbers in training; a signal comes in the validation batch of that number, from 1."""

    def __init__(self, signal_at: int = 0) -> None:
        super().__init__()
        self.signal_at, self.validated = signal_at, 0

    def forward(self, batch: Batch) -> StepOutput:
        """As its parent."""
        if self.training:
            batch.pixel_values = batch.pixel_values + torch.rand(1)
        else:
            self.validated += 1
            if self.validated == self.signal_at:
                os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(batch)


class Rows(NullTracker):
    """Keeps the losses that are tracked."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, int]] = []

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """See ``Tracker``."""
        self.rows += [(key, value, step) for key, value in values.items() if "loss" in key]


def checkpoint_bits(folder: Path) -> dict[str, bytes]:
    """Content of all files of tensors in a stage's folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.parametrize("in_batch", [1, 2, 3, 5, 6])
def test_a_signal_in_a_validation_saves_the_step_and_the_validation_is_made_when_it_resumes(
    tmp_path: Path, in_batch: int
) -> None:
    """Two validations an epoch, of two batches: the first falls into the epoch, the second ends it."""
    data = ToyData(steps(3)._windows, [batch(1.0), batch(2.0)])
    options: dict[str, Any] = {"epochs": 2, "validations_per_epoch": 2, "patience": 9, "log_every_steps": 1}
    whole, wholly = Toy(tmp_path / "whole", NoisyStage()), Rows()
    torch.manual_seed(3)
    expected = whole.fit(data, tracker=wholly, **options)
    cut, rows = Toy(tmp_path / "cut", NoisyStage(in_batch)), Rows()
    torch.manual_seed(3)
    result = cut.fit(data, tracker=rows, **options)
    step = {1: 2, 2: 2, 3: 3, 5: 5, 6: 5}[in_batch]
    assert result.interrupted
    assert result.progress.global_step == step
    assert cut.stage.validated == in_batch  # it ended with this batch
    last = follow(tmp_path / "cut" / LAST)
    assert last is not None
    assert read_state(last)["progress"]["global_step"] == step
    again = Toy(tmp_path / "cut", NoisyStage())
    resumed = again.fit(data, again.checkpointer.restore(last), tracker=rows, **options)
    assert not resumed.interrupted
    assert resumed.progress == expected.progress
    assert resumed.metrics == expected.metrics
    assert rows.rows == wholly.rows
    assert checkpoint_bits(tmp_path / "cut") == checkpoint_bits(tmp_path / "whole")


def queue_again(number: int, _frame: object) -> None:
    """As submitit does before a job's time limit."""
    sys.exit(-1)


def test_before_the_limit_of_a_slurm_job_the_step_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setattr(OptimiserStep, "__call__", before_step(2, lambda: os.kill(os.getpid(), signal.SIGUSR2)))
    before = signal.signal(signal.SIGUSR2, queue_again)
    try:
        toy = Toy(tmp_path)
        with pytest.raises(SystemExit, match="-1"):
            toy.fit(steps(3), epochs=2)
        assert signal.getsignal(signal.SIGUSR2) is queue_again
    finally:
        signal.signal(signal.SIGUSR2, before)
    again, last = Toy(tmp_path), follow(tmp_path / LAST)
    assert last is not None
    assert again.checkpointer.restore(last).global_step == 2
    assert torch.equal(again.weight(), toy.weight())


def test_a_slurm_job_is_queued_again_once_unless_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    calls: list[int] = []
    ours, at_limit = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, lambda number, _: calls.append(number))
    try:
        with catch_signals() as received:
            os.kill(os.getpid(), signal.SIGUSR2)
            os.kill(os.getpid(), signal.SIGUSR2)
            assert received == [signal.SIGUSR2] * 2
            assert calls == []
        assert calls == [signal.SIGUSR2]
        with contextlib.ExitStack() as stack:
            stack.enter_context(pytest.raises(KeyboardInterrupt))
            stack.enter_context(catch_signals(world_size=2))
            os.kill(os.getpid(), signal.SIGUSR2)
            os.kill(os.getpid(), signal.SIGTERM)  # the limit, in a step that took longer than the time left
        assert calls == [signal.SIGUSR2] * 2
        with contextlib.ExitStack() as stack:
            stack.enter_context(pytest.raises(ValueError, match="not finite"))
            stack.enter_context(catch_signals())
            os.kill(os.getpid(), signal.SIGUSR2)
            raise ValueError("not finite")
        assert calls == [signal.SIGUSR2] * 2
        monkeypatch.delenv("SUBMITIT_EXECUTOR")
        with catch_signals() as received:
            os.kill(os.getpid(), signal.SIGUSR2)  # not submitit's
        assert received == []
        assert calls == [signal.SIGUSR2] * 3
    finally:
        signal.signal(signal.SIGTERM, ours)  # several processes ignore it after an error
        signal.signal(signal.SIGUSR2, at_limit)


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(OptimiserStep, "__call__", before_step(2, twice))
    with pytest.raises(KeyboardInterrupt):
        Toy(tmp_path).fit(steps(3))


def test_a_finished_stage_takes_no_further_step(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    toy.fit(steps(2))
    before = toy.weight()
    result = toy.fit(steps(2), Progress(epoch=1, global_step=2))
    assert result.progress.global_step == 2
    assert torch.equal(toy.weight(), before)


def test_number_formats() -> None:
    assert choose_compute("cpu", "auto").dtype is torch.float32
    half = choose_compute("cpu", "bf16")
    assert half.dtype is torch.bfloat16
    with half.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    assert not half.scaler().is_enabled()
    with pytest.raises(ValueError, match=r"trainer\.precision=fp16.*bf16"):
        choose_compute("cpu", "fp16")
    with pytest.raises(ValueError, match=r"trainer\.device=cpuu"):
        choose_compute("cpuu", "fp32")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:2", r"device=cuda:2: PyTorch sees 2 GPUs, from cuda:0 on\. Use device=auto\."),
        ("mps", r"device=mps: this machine has no Apple GPU\."),
        ("meta", r"device=meta: known are auto, cpu, cuda, cuda:1, mps\."),
    ],
)
def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch, device: str, message: str) -> None:
    two_gpus(monkeypatch)
    with pytest.raises(ValueError, match=message):
        choose_compute(device, "fp32", section="")


def two_gpus(monkeypatch: pytest.MonkeyPatch, *, bf16: bool = True) -> None:
    """A machine with two GPUs, of a kind that has bf16 or imitates it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)


def test_what_a_gpu_only_imitates_is_not_chosen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LOG, "propagate", True)
    two_gpus(monkeypatch)
    assert choose_compute("auto", "auto").dtype is torch.bfloat16
    two_gpus(monkeypatch, bf16=False)
    assert choose_compute("auto", "auto").dtype is torch.float32
    assert not caplog.text
    assert choose_compute("cuda:1", "bf16").dtype is torch.bfloat16
    assert "trainer.precision=bf16 is emulated on this GPU, which is slow; fp16 is native." in caplog.text


def test_a_run_is_opened_as_it_was_trained_where_the_device_can(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recorded_compute("cpu", "fp16").dtype is torch.float32
    assert recorded_compute("cpu", "bf16").dtype is torch.bfloat16
    two_gpus(monkeypatch)
    assert recorded_compute("auto", "fp16").dtype is torch.float16
    assert recorded_compute("cuda", "fp32").dtype is torch.float32


@pytest.mark.parametrize(
    ("device", "has_bf16", "begun", "goes_on"),
    [
        ("cuda", True, "bf16", "bf16"),
        ("cuda", False, "bf16", "fp32"),  # such as a V100
        ("cuda", False, "fp16", "fp16"),
        ("cuda", True, "fp32", "fp32"),
        ("cpu", False, "bf16", "bf16"),
        ("cpu", False, "fp16", "fp32"),
    ],
)
def test_a_run_goes_on_in_the_format_that_it_was_begun_in(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    device: str,
    has_bf16: bool,
    begun: str,
    goes_on: str,
) -> None:
    monkeypatch.setattr(LOG, "propagate", True)
    two_gpus(monkeypatch, bf16=has_bf16)
    found = continued(choose_compute(device, "auto"), begun)
    assert (found.device.type, found.precision) == (device, goes_on)
    assert ("begun with precision" in caplog.text) is (begun != goes_on)
    assert ("trainer.precision=bf16 keeps the format" in caplog.text) is (begun == "bf16" != goes_on)


def test_what_names_no_gpu_means_that_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random states, a load in four bits and the question for bf16 name none."""
    two_gpus(monkeypatch)
    chosen: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: chosen[-1].index == 1)
    assert choose_compute("cuda:1", "auto").dtype is torch.bfloat16
    assert choose_compute("cuda", "auto").dtype is torch.float32
    assert choose_compute("auto", "auto", local_rank=1).dtype is torch.bfloat16
    assert chosen == [torch.device("cuda:1"), torch.device("cuda:0"), torch.device("cuda:1")]
