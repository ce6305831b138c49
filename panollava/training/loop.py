"""The training loop: accumulated updates, validation, checkpoints, resuming, and warnings where nothing is learnt."""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from panollava.batch import Batch
from panollava.logs import LOG
from panollava.stages.protocol import Stage
from panollava.tracking.tracker import NullTracker, Tracker
from panollava.training import parallel
from panollava.training.checkpointer import Checkpointer, Progress
from panollava.training.distributed import DistributedContext, catch_signals
from panollava.training.options import OptimOptions, StageOptions, TrainerOptions
from panollava.training.precision import Compute

STILL_STEPS = 20
"""Steps in a row with the same loss, on different samples, after which a stage counts as stuck."""

STILL_VALIDATIONS = 3
"""Validations in a row with the same loss."""

_SAME = 1e-6
"""Relative difference below which losses are the same; float32 resolves no smaller one."""


class TrainingMonitor:
    """Concerns about a stage while it trains; each is logged when it first arises."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._repeated: dict[str, tuple[float, int]] = {}
        self._current: dict[str, str] = {}
        self._logged: set[str] = set()

    @property
    def concerns(self) -> list[str]:
        """The concerns that hold at present."""
        return list(self._current.values())

    def step(self, loss: float, grad_norm: float, lr: float) -> None:
        """Call it after an optimiser step, with the gradient norm before clipping."""
        count, text = self._repeats("steps", loss), None
        if count >= STILL_STEPS:
            text = (
                f"the loss has been {loss:.6g} in each of the last {count} steps, on different samples (gradient norm "
                f"{grad_norm:.1e}, lr {lr:.1e}): the weights get no useful gradient, as after a collapse or with a far "
                f"too high learning rate. Start again (overwrite=true) with a lower stage.{self.stage.name}.lr."
            )
        self._update("steps", text)

    def validation(self, metrics: Mapping[str, float]) -> None:
        """Call it after a validation, with its means."""
        count, text = self._repeats("validations", metrics["loss"]), None
        if count >= STILL_VALIDATIONS:
            text = (
                f"the validation loss has been {metrics['loss']:.6g} in each of the last {count} validations: the "
                f"stage no longer learns. If it never did, change stage.{self.stage.name}.lr; else use fewer "
                f"stage.{self.stage.name}.epochs."
            )
        self._update("validations", text)
        self._update("stage", self.stage.concern(metrics))

    def _repeats(self, kind: str, value: float) -> int:
        """How often in a row the value was the same, this time included."""
        first, count = self._repeated.get(kind, (math.nan, 0))
        is_same = abs(value - first) <= _SAME * abs(first)
        self._repeated[kind] = (first, count + 1) if is_same else (value, 1)
        return self._repeated[kind][1]

    def _update(self, kind: str, text: str | None) -> None:
        if text is None:
            self._current.pop(kind, None)
            return
        self._current[kind] = text
        if kind not in self._logged:
            self._logged.add(kind)
            LOG.warning("Stage %s: %s", self.stage.name, text)


MAX_OVERFLOWS = 20
"""fp16 steps in a row that may overflow while the scaler looks for its scale."""

_NOT_FINITE = "not finite"
"""Key, among the sums over processes, of the number of micro-batches whose loss is not finite."""


class TrainData(Protocol):
    """Training batches, grouped into the windows of optimiser steps."""

    steps_per_epoch: int

    def windows(self, epoch: int, start: int) -> Iterator[list[Batch]]:
        """Windows of an epoch from optimiser step ``start`` on; a function of (seed, epoch, start) alone."""
        ...

    def validation(self) -> Iterator[Batch]:
        """The validation split in a fixed order."""
        ...


@dataclass
class FitResult:
    """How the training of a stage ended: ``metrics`` of the last validation, ``concerns`` that hold at the end."""

    progress: Progress
    metrics: dict[str, float]
    concerns: list[str]
    interrupted: bool = False
    """Whether SIGINT or SIGTERM ended it."""


def fit(
    stage: Stage,
    data: TrainData,
    *,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    optim: OptimOptions,
    options: StageOptions,
    compute: Compute,
    checkpointer: Checkpointer,
    trainer: TrainerOptions | None = None,
    procs: DistributedContext | None = None,
    tracker: Tracker | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Trains ``stage`` from ``progress`` to the end of its last epoch, with validations and checkpoints.

    Args:
        optimizer, scaler: of the stage's weights; the checkpointer must have the same ones.
        optim, options: learning rate and length.
        checkpointer: saves checkpoints; ``best.ckpt`` in its folder has the lowest validation loss.
        trainer: limits and intervals; None for the defaults.
        procs, tracker: None for a single process, and for no tracking.
        progress: where to resume; None starts from the beginning.

    Raises:
        ValueError: a loss or gradient is not finite, or torch.compile failed.
        ProcessLost: another process ended or did not answer.
    """
    trainer, procs, tracker = trainer or TrainerOptions(), procs or DistributedContext(), tracker or NullTracker()
    progress = progress or Progress()
    assert isinstance(stage, nn.Module)
    module = parallel.wrap_ddp(stage, compiled=trainer.compile, device=compute.device, procs=procs)
    if trainer.compile and progress.global_step:
        LOG.info("trainer.compile: numbers agree with those of an uninterrupted run within rounding, not bit for bit.")
    monitor = TrainingMonitor(stage)
    step = OptimiserStep(stage, module, optimizer, scaler, compute, procs, trainer.clip_norm)
    steps, save_every = data.steps_per_epoch, trainer.save_every_steps
    total, limit = options.epochs * steps, trainer.max_steps or math.inf
    validate_at = _validation_steps(steps, trainer.validations_per_epoch)
    compute.reset_peak_memory()
    record = _Recorder(stage, trainer, compute, checkpointer, procs, tracker, progress)
    metrics: dict[str, float] = {}

    def is_over() -> bool:
        return progress.epoch >= options.epochs or progress.global_step >= limit or record.stops_early()

    def check() -> bool:
        """Makes the validation that is due; returns whether a signal ends the stage, the same in all processes."""
        if progress.validation_due and not procs.any(bool(signals)):
            found = validate(stage, module, data, compute, procs, signals=signals)
            if found:
                metrics.update(found)
                progress.validation_due = False
                record.validation(metrics)
                monitor.validation(metrics)
                stage.train()
        return procs.any(bool(signals))

    quiet = None if procs.is_main else True  # None draws the bar on a terminal only
    bar = tqdm(total=min(total, limit), initial=progress.global_step, desc=stage.name, unit="step", disable=quiet)
    with bar, catch_signals(procs.world_size) as signals, procs.detect_lost(), parallel.compile_errors(signals):
        interrupted = check()  # the validation in which a signal stopped the run that is resumed
        while not interrupted and not is_over():
            stage.train()
            epoch = progress.epoch
            record.tick = time.perf_counter()
            for window in data.windows(epoch, progress.step_in_epoch):
                lr = optim.learning_rate(options.lr, progress.global_step, total)
                report = step([batch.to(compute.device, non_blocking=True) for batch in window], lr)
                if "loss" in report:
                    monitor.step(report["loss"], report["grad_norm"], lr)
                progress.global_step += 1
                progress.step_in_epoch += 1
                bar.update()
                record.step(report, lr, sum(map(len, window)) * procs.world_size, bar)
                progress.validation_due = progress.step_in_epoch in validate_at or progress.global_step >= limit
                if progress.step_in_epoch == steps:
                    progress.epoch, progress.step_in_epoch = epoch + 1, 0
                elif not progress.validation_due and save_every and progress.global_step % save_every == 0:
                    record.save()
                interrupted = check()
                if interrupted or is_over():
                    break
        if interrupted:
            record.save()
        elif record.stops_early():
            LOG.info("%s: no better loss in %d validations, stopped early.", stage.name, trainer.patience)
    record.measure()
    return FitResult(progress, metrics, monitor.concerns, interrupted)


def _validation_steps(steps: int, count: int) -> set[int]:
    """Steps of an epoch after which a validation follows: evenly over the epoch, and always the last one."""
    return {max(1, round(steps * (i + 1) / count)) for i in range(count)} | {steps}


@torch.no_grad()
def validate(
    stage: Stage,
    module: nn.Module,
    data: TrainData,
    compute: Compute,
    procs: DistributedContext,
    *,
    batches: Iterator[Batch] | None = None,
    signals: Sequence[int] = (),
) -> dict[str, float]:
    """Loss and metrics over the whole validation split, each divided by its own total.

    Args:
        batches: this process's part of the split in another form, in place of ``data.validation()``.
        signals: received so far; one in any process ends the validation after a batch, and nothing is returned.

    Raises:
        ValueError: the validation split has no batch, or nothing in it counts.
    """
    stage.eval()
    inner = module.module if isinstance(module, DistributedDataParallel) else module
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    batches = iter(data.validation() if batches is None else batches)
    lockstep = parallel.is_sharded(stage)  # the forward pass of a sharded stage is a collective
    pairs = parallel.lockstep_batches(batches, procs, signals) if lockstep else ((batch, True) for batch in batches)
    for batch, is_counted in pairs:
        if signals and not lockstep:
            break
        on_device = batch.to(compute.device, non_blocking=True)
        with compute.autocast():
            output = inner(on_device)
        if not is_counted:
            continue
        for name, count in stage.counts(on_device).items():
            counts[name] = counts.get(name, 0.0) + count
        for name, value in {**output.losses, **output.metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    if procs.any(bool(signals)):
        return {}
    totals = procs.sum(counts)
    result = summarise(procs.sum(sums), totals)
    if not result:
        raise ValueError("The validation split gave no batch: it is empty, or smaller than the number of processes.")
    if not any(totals.values()) and not result["loss"]:
        raise ValueError(
            f"stage.{stage.name}: nothing in the split counts for the loss, which would be 0 whatever the "
            f"weights are. {stage.uncounted} Or give the split more samples."
        )
    return result


def summarise(sums: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
    """Divides sums by their counts, and adds ``loss``: the sum of all losses.

    Args:
        sums: a loss by its name, a metric as ``<loss>/<term>``.
        counts: of each loss.
    """
    values = {name: value / max(counts[name.split("/")[0]], 1.0) for name, value in sums.items()}
    return {"loss": sum(values[name] for name in counts if name in values), **values} if values else {}


@dataclass
class OptimiserStep:
    """Forward and backward over a window of micro-batches, then one update.

    Each loss is divided by its count over the whole window and all processes. So a batch of 8, two accumulated
    batches of 4, and two processes with 4 samples each give the same loss and the same update.

    Attributes:
        stage: gives counts and trained parameters.
        module: the stage or its wrapper, which is called.
        clip_norm: largest gradient norm; 0 does not clip.
    """

    stage: Stage
    module: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    compute: Compute
    procs: DistributedContext
    clip_norm: float

    def __post_init__(self) -> None:
        self.parameters = list(self.stage.trained().values())
        self.overflows = 0

    def __call__(self, window: list[Batch], lr: float) -> dict[str, float]:
        """Takes one step with the micro-batches of this process.

        Returns:
            ``loss`` (the sum of all losses), each loss, the metrics and ``grad_norm``; ``grad_norm`` alone where
            nothing in the window counts for a loss.

        Raises:
            ValueError: a loss or gradient that is not finite; the message names the samples.
        """
        counts: dict[str, float] = {}
        for batch in window:
            for name, count in self.stage.counts(batch).items():
                counts[name] = counts.get(name, 0.0) + count
        totals = self.procs.sum(counts)
        sums: dict[str, Tensor] = {}
        per_batch: list[Tensor] = []
        for index, batch in enumerate(window):
            with self._sync_on_last(index == len(window) - 1), self.compute.autocast():
                output = self.module(batch)
                losses = {name: value / max(totals[name], 1.0) for name, value in output.losses.items()}
                loss = torch.stack(list(losses.values())).sum()
                # DDP and FSDP average gradients over processes; the totals need their sum.
                self.scaler.scale(loss * self.procs.world_size).backward()
            per_batch.append(loss.detach())
            for name, value in {**output.losses, **output.metrics}.items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        names = sorted(sums)
        # One transfer from the device for all sums, after the whole window.
        values = dict(zip(names, torch.stack([sums[n].float() for n in names]).tolist(), strict=True))
        bad = [not fine for fine in torch.isfinite(torch.stack(per_batch)).tolist()]
        values = self.procs.sum({**values, _NOT_FINITE: float(sum(bad))})
        norm = self._update(window, bad, bad_anywhere=values.pop(_NOT_FINITE) > 0)
        return {**(summarise(values, totals) if any(totals.values()) else {}), "grad_norm": norm}

    def _update(self, window: list[Batch], bad: list[bool], *, bad_anywhere: bool) -> float:
        """Clips and steps. All processes decide alike, since each has the norm of the reduced gradients."""
        self.scaler.unscale_(self.optimizer)
        limit = self.clip_norm or math.inf
        norm = float(parallel.full_tensor(nn.utils.clip_grad_norm_(self.parameters, limit)))
        overflow = self.scaler.is_enabled() and not bad_anywhere and not math.isfinite(norm)
        self.overflows = self.overflows + 1 if overflow else 0
        if (not overflow and (bad_anywhere or not math.isfinite(norm))) or self.overflows > MAX_OVERFLOWS:
            raise ValueError(self._not_finite(window, bad, bad_anywhere=bad_anywhere))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _not_finite(self, window: list[Batch], bad: list[bool], *, bad_anywhere: bool) -> str:
        culprits = [b for b, is_bad in zip(window, bad, strict=True) if is_bad] if bad_anywhere else window
        own = json.dumps([name for batch in culprits for name in batch.sample_ids])
        names = [name for text in self.procs.texts(own) for name in json.loads(text)]
        return (
            f"The {'loss' if bad_anywhere else 'gradient'} of stage {self.stage.name!r} is not finite in the step with "
            f"samples {', '.join(names[:16])}{' …' if len(names) > 16 else ''}; the weights were not changed. Check "
            f"these samples, lower stage.{self.stage.name}.lr, or use trainer.precision=fp32."
        )

    def _sync_on_last(self, is_last: bool) -> contextlib.AbstractContextManager:
        """Lets DDP reduce gradients once per window, in the backward pass of its last micro-batch.

        FSDP reduces in each: unreduced gradients would take the memory that it saves.
        """
        if isinstance(self.module, DistributedDataParallel) and not is_last:
            return self.module.no_sync()
        return contextlib.nullcontext()


@dataclass
class _Recorder:
    """Measures, logs and saves while a stage trains."""

    stage: Stage
    trainer: TrainerOptions
    compute: Compute
    checkpointer: Checkpointer
    procs: DistributedContext
    tracker: Tracker
    progress: Progress
    tick: float = 0.0
    """Start of the current step, after a validation if there was one."""

    def __post_init__(self) -> None:
        # When the stage would have started without interruptions.
        self.started = time.perf_counter() - self.progress.seconds

    def measure(self) -> None:
        """Updates time and memory, which each checkpoint keeps and a resumed run continues."""
        self.progress.seconds = time.perf_counter() - self.started
        self.progress.peak_memory_gb = max(self.progress.peak_memory_gb, self.compute.peak_memory_gb())

    def stops_early(self) -> bool:
        """Whether early stopping ends the stage here; also true for a run that is resumed at such a checkpoint."""
        return bool(self.trainer.patience) and self.progress.validations_since_best >= self.trainer.patience

    def step(self, report: dict[str, float], lr: float, samples: int, bar: tqdm) -> None:
        name, progress, now = self.stage.name, self.progress, time.perf_counter()
        spent, self.tick = now - self.tick, now
        progress.samples, progress.step_seconds = progress.samples + samples, progress.step_seconds + spent
        loss = report.get("loss", math.nan)
        progress.curve.step(progress.samples, lr, report.get("loss"))
        self.measure()
        if not self.procs.is_main or progress.global_step % self.trainer.log_every_steps:
            return
        memory, rate = progress.peak_memory_gb, samples / max(spent, 1e-9)
        left = tqdm.format_interval((bar.total - progress.global_step) * spent)
        bar.set_postfix_str(f"loss {loss:.4f} lr {lr:.1e} {rate:.0f} samples/s {memory:.1f} GB")
        LOG.debug(
            "%s epoch %d step %d: loss %.6f lr %.3e %.1f samples/s %.2f GB, %s left",
            name, progress.epoch, progress.global_step, loss, lr, rate, memory, left,
        )  # fmt: skip
        values = {**report, "lr": lr, "samples_per_second": rate, "memory_gb": memory}
        self.tracker.metrics({f"{name}/{key}": value for key, value in values.items()}, step=progress.global_step)
        if "loss" in report:
            self.tracker.metrics({f"{name}/loss_by_samples": loss}, step=round(progress.samples))

    def validation(self, metrics: dict[str, float]) -> None:
        self.measure()
        name, loss, progress = self.stage.name, metrics["loss"], self.progress
        if not math.isfinite(loss):
            raise ValueError(
                f"The validation loss of stage {name!r} is {loss} after step {progress.global_step}. Earlier "
                f"checkpoints are kept; lower stage.{name}.lr, or use trainer.precision=fp32."
            )
        progress.curve.validation(loss)
        is_best = loss < progress.best_loss
        progress.best_loss = min(loss, progress.best_loss)
        progress.validations_since_best = 0 if is_best else progress.validations_since_best + 1
        if self.procs.is_main:
            terms = ", ".join(f"{key.split('/')[1]} {value:.4f}" for key, value in metrics.items() if "/" in key)
            best = ", the best so far" if is_best else ""
            caveat = f"; {self.stage.caveat}" if self.stage.caveat else ""
            LOG.info("%s step %d: validation loss %.4f%s (%s)%s", name, progress.global_step, loss, best, terms, caveat)
            values = {f"{name}/val_{key}": value for key, value in metrics.items()}
            self.tracker.metrics({**values, f"{name}/epoch": progress.epoch}, step=progress.global_step)
            self.tracker.metrics({f"{name}/val_loss_by_samples": loss}, step=round(progress.samples))
        self.save(loss, is_best=is_best)
        self.tick = time.perf_counter()

    def save(self, loss: float | None = None, *, is_best: bool = False) -> None:
        if self.procs.is_main:
            # First: a run that resumes from this checkpoint does not log the steps before it again.
            self.tracker.flush()
        self.checkpointer.save(self.progress, loss, is_best=is_best)
        self.procs.barrier()
