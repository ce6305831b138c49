"""The training loop: one for every stage, and it knows none of them by name."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
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
from panollava.training.checkpointer import Checkpointer, Progress
from panollava.training.distributed import Processes, heeded
from panollava.training.monitor import Watch
from panollava.training.options import OptimOptions, StageOptions, TrainerOptions
from panollava.training.parallel import compiling, in_step, is_sharded, own_module, spread, whole
from panollava.training.precision import Compute

MAX_OVERFLOWS = 20
"""fp16 steps in a row that may overflow while the scaler looks for its scale."""

_BAD = "not finite"
"""Stands among the sums for the number of micro-batches whose loss is not finite."""


class OptimiserStep:
    """Forward and backward over a window of micro-batches, then one update.

    Each loss is divided by its count over the whole window and all processes, so that a batch of 8, two of 4
    accumulated, and two processes with 4 each have the same loss and the same update.

    Args:
        stage: gives counts and trained parameters.
        module: the stage, or its wrapper; it is what runs.
        optimizer, scaler: updated by every step.
        compute: device and number format.
        procs: ranks to sum over.
        clip_norm: largest gradient norm; 0 leaves gradients alone.
    """

    def __init__(
        self,
        stage: Stage,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        compute: Compute,
        procs: Processes,
        clip_norm: float,
    ) -> None:
        self.stage, self.module = stage, module
        self.optimizer, self.scaler = optimizer, scaler
        self.compute, self.procs, self.clip_norm = compute, procs, clip_norm
        self.parameters = list(stage.trained().values())
        self.overflows = 0

    def __call__(self, window: list[Batch], lr: float) -> dict[str, float]:
        """Takes one step.

        Args:
            window: the micro-batches of this process.
            lr: learning rate of the step.

        Returns:
            ``loss`` (their sum), each loss, the metrics and ``grad_norm``.

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
                self.scaler.scale(loss * self.procs.world_size).backward()
            per_batch.append(loss.detach())
            for name, value in {**output.losses, **output.metrics}.items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        names = sorted(sums)
        values = dict(zip(names, torch.stack([sums[n].float() for n in names]).tolist(), strict=True))
        bad = [not fine for fine in torch.isfinite(torch.stack(per_batch)).tolist()]
        values = self.procs.sum({**values, _BAD: float(sum(bad))})
        norm = self._update(window, bad, bad_anywhere=values.pop(_BAD) > 0)
        return {**summarise(values, totals), "grad_norm": norm}

    def _update(self, window: list[Batch], bad: list[bool], *, bad_anywhere: bool) -> float:
        """Clips and steps; every process comes to the same decisions, since all have the norm of all gradients."""
        self.scaler.unscale_(self.optimizer)
        limit = self.clip_norm or math.inf
        norm = float(whole(nn.utils.clip_grad_norm_(self.parameters, limit)))
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
        what = "loss" if bad_anywhere else "gradient"
        return (
            f"The {what} of stage {self.stage.name!r} is not finite in the step with samples {', '.join(names[:16])}"
            f"{' …' if len(names) > 16 else ''}; the weights were not changed. Look at these samples, lower "
            f"stage.{self.stage.name}.lr, or use trainer.precision=fp32."
        )

    def _sync_on_last(self, is_last: bool) -> contextlib.AbstractContextManager:
        """DDP's gradients travel between processes once a window, with its last micro-batch.

        FSDP's do each time: to keep them whole until the last one would take the memory that it saves.
        """
        if isinstance(self.module, DistributedDataParallel) and not is_last:
            return self.module.no_sync()
        return contextlib.nullcontext()


def summarise(sums: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
    """Sums divided by their counts, and ``loss``: the sum of all losses.

    Args:
        sums: a loss by its name, a metric as ``<loss>/<term>``.
        counts: of each loss.
    """
    values = {name: value / max(counts[name.split("/")[0]], 1.0) for name, value in sums.items()}
    if not values:
        return {}
    return {"loss": sum(values[name] for name in counts if name in values), **values}


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
    """How a stage went.

    Attributes:
        progress: where it ended, and what the whole stage took.
        metrics: of the last validation.
        concerns: what was wrong with it to the end, in words.
        interrupted: whether Ctrl-C ended it.
    """

    progress: Progress
    metrics: dict[str, float]
    concerns: list[str]
    interrupted: bool = False


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
    procs: Processes | None = None,
    tracker: Tracker | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Trains ``stage`` from ``progress`` to the end of its last epoch, validating and saving on the way.

    Args:
        stage: what trains.
        data: what it learns from.
        optimizer, scaler: of its weights; the checkpointer knows the same ones.
        optim, options: learning rate and length.
        compute: where and in which format.
        checkpointer: keeps the result.
        trainer: limits and intervals; None for the defaults.
        procs: None for a single process.
        tracker: None tracks nothing.
        progress: where to go on; None for the beginning.

    Returns:
        What happened; ``best.ckpt`` in the checkpointer's folder has the lowest validation loss.
    """
    trainer, procs, tracker = trainer or TrainerOptions(), procs or Processes(), tracker or NullTracker()
    progress = progress or Progress()
    assert isinstance(stage, nn.Module)
    module = spread(stage, compiled=trainer.compile, device=compute.device, procs=procs)
    if trainer.compile and progress.global_step:
        LOG.info("trainer.compile: numbers agree with those of a run that was not stopped within rounding, no closer.")
    watch = Watch(stage)
    step = OptimiserStep(stage, module, optimizer, scaler, compute, procs, trainer.clip_norm)
    total = options.epochs * data.steps_per_epoch
    validate_at = _validation_steps(data.steps_per_epoch, trainer.validations_per_epoch)
    limit = trainer.max_steps or math.inf
    compute.reset_peak_memory()
    started, metrics, interrupted = time.perf_counter() - progress.seconds, {}, False
    bar = tqdm(
        total=min(total, limit), initial=progress.global_step, desc=stage.name, unit="step", disable=_no_bar(procs)
    )
    with bar, heeded(procs.world_size) as signals, procs.together(), compiling(signals):
        while progress.epoch < options.epochs and progress.global_step < limit and not _in_vain(progress, trainer):
            stage.train()
            epoch, stop = progress.epoch, False
            tick = time.perf_counter()
            for window in data.windows(epoch, progress.step_in_epoch):
                lr = optim.learning_rate(options.lr, progress.global_step, total)
                report = step([batch.to(compute.device, non_blocking=True) for batch in window], lr)
                watch.step(report["loss"], report["grad_norm"], lr)
                progress.global_step += 1
                progress.step_in_epoch += 1
                samples = sum(map(len, window)) * procs.world_size
                now = time.perf_counter()
                spent, tick = now - tick, now
                progress.samples, progress.step_seconds = progress.samples + samples, progress.step_seconds + spent
                _measure(progress, started, compute)
                bar.update()
                _log_step(stage.name, report, lr, samples, spent, progress, trainer, procs, tracker, bar)
                last = progress.global_step >= limit
                if progress.step_in_epoch in validate_at or last:
                    if progress.step_in_epoch == data.steps_per_epoch:
                        progress.epoch, progress.step_in_epoch = epoch + 1, 0
                    metrics = validate(stage, module, data, compute, procs)
                    _measure(progress, started, compute)
                    _after_validation(stage, metrics, progress, procs, checkpointer, tracker)
                    watch.validation(metrics)
                    stop = _in_vain(progress, trainer)
                    stage.train()
                    tick = time.perf_counter()
                elif trainer.save_every_steps and progress.global_step % trainer.save_every_steps == 0:
                    _save(checkpointer, progress, None, False, procs, tracker)
                interrupted = procs.any(bool(signals))  # all stop after the same step, whoever was told to
                if interrupted or stop or last:
                    break
            if interrupted:
                _save(checkpointer, progress, None, False, procs, tracker)
                break
            if stop:
                LOG.info("%s: no better loss in %d validations, stopped early.", stage.name, trainer.patience)
                break
    _measure(progress, started, compute)
    return FitResult(progress, metrics, watch.concerns, interrupted)


@torch.no_grad()
def validate(stage: Stage, module: nn.Module, data: TrainData, compute: Compute, procs: Processes) -> dict[str, float]:
    """Loss and metrics over the whole validation split, each divided by its own total.

    Raises:
        ValueError: the validation split gives no target at all.
    """
    stage.eval()
    inner = own_module(module)
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    batches = iter(data.validation())
    for batch, is_counted in in_step(batches, procs) if is_sharded(stage) else ((batch, True) for batch in batches):
        on_device = batch.to(compute.device, non_blocking=True)
        with compute.autocast():
            output = inner(on_device)
        if not is_counted:
            continue
        for name, count in stage.counts(on_device).items():
            counts[name] = counts.get(name, 0.0) + count
        for name, value in {**output.losses, **output.metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    result = summarise(procs.sum(sums), procs.sum(counts))
    if not result:
        raise ValueError("The validation split gave no batch: it is empty, or smaller than the number of processes.")
    return result


def _measure(progress: Progress, started: float, compute: Compute) -> None:
    """Brings what the stage took up to now: each checkpoint keeps it, and whoever goes on from there adds to it.

    Args:
        progress: of the stage.
        started: when it would have begun, had it not been stopped.
        compute: knows the memory.
    """
    progress.seconds = time.perf_counter() - started
    progress.peak_memory_gb = max(progress.peak_memory_gb, compute.peak_memory_gb())


def _in_vain(progress: Progress, trainer: TrainerOptions) -> bool:
    """Whether early stopping ends the stage here, also when it is only now looked at again after a crash."""
    return bool(trainer.patience) and progress.validations_since_best >= trainer.patience


def _validation_steps(steps: int, per_epoch: int) -> set[int]:
    """Steps of an epoch after which to validate, evenly spread; the last one always."""
    return {max(1, round(steps * (i + 1) / per_epoch)) for i in range(per_epoch)} | {steps}


def _after_validation(
    stage: Stage,
    metrics: dict[str, float],
    progress: Progress,
    procs: Processes,
    checkpointer: Checkpointer,
    tracker: Tracker,
) -> None:
    name, loss = stage.name, metrics["loss"]
    if not math.isfinite(loss):
        raise ValueError(
            f"The validation loss of stage {name!r} is {loss} after step {progress.global_step}. The checkpoints "
            f"before it are kept; lower stage.{name}.lr, or use trainer.precision=fp32."
        )
    is_best = loss < progress.best_loss
    progress.best_loss = min(loss, progress.best_loss)
    progress.validations_since_best = 0 if is_best else progress.validations_since_best + 1
    if procs.is_main:
        terms = ", ".join(f"{key.split('/')[1]} {value:.4f}" for key, value in metrics.items() if "/" in key)
        best = ", the best so far" if is_best else ""
        caveat = f"; {stage.caveat}" if stage.caveat else ""
        LOG.info("%s step %d: validation loss %.4f%s (%s)%s", name, progress.global_step, loss, best, terms, caveat)
        values = {f"{name}/val_{key}": value for key, value in metrics.items()}
        tracker.metrics({**values, f"{name}/epoch": progress.epoch}, step=progress.global_step)
    _save(checkpointer, progress, loss, is_best, procs, tracker)


def _save(
    checkpointer: Checkpointer,
    progress: Progress,
    loss: float | None,
    is_best: bool,
    procs: Processes,
    tracker: Tracker,
) -> None:
    if procs.is_main:
        tracker.flush()  # first: what a run that resumes from this checkpoint does not log again must be there
    checkpointer.save(progress, loss, is_best=is_best)
    procs.barrier()


def _log_step(
    name: str,
    report: dict[str, float],
    lr: float,
    samples: int,
    spent: float,
    progress: Progress,
    trainer: TrainerOptions,
    procs: Processes,
    tracker: Tracker,
    bar: tqdm,
) -> None:
    if not procs.is_main or progress.global_step % trainer.log_every_steps:
        return
    memory, rate = progress.peak_memory_gb, samples / max(spent, 1e-9)
    left = tqdm.format_interval((bar.total - progress.global_step) * spent)
    bar.set_postfix_str(f"loss {report['loss']:.4f} lr {lr:.1e} {rate:.0f} samples/s {memory:.1f} GB")
    LOG.debug(
        "%s epoch %d step %d: loss %.6f lr %.3e %.1f samples/s %.2f GB, %s left",
        name, progress.epoch, progress.global_step, report["loss"], lr, rate, memory, left,
    )  # fmt: skip
    values = {f"{name}/{key}": value for key, value in report.items()}
    tracker.metrics(
        {**values, f"{name}/lr": lr, f"{name}/samples_per_second": rate, f"{name}/memory_gb": memory},
        step=progress.global_step,
    )


def _no_bar(procs: Processes) -> bool | None:
    """None lets tqdm draw its bar only on a terminal; other ranks never draw."""
    return None if procs.is_main else True
