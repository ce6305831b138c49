"""Options of training: trainer, stage and optimiser, and the batch of a run that is resumed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import nn

from panollava.logs import LOG
from panollava.training.precision import Precision


@dataclass(frozen=True)
class TrainerOptions:
    """Options that all stages have in common (``trainer.*``).

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        precision: of frozen backbones and autocast; trained weights and losses are always fp32.
        num_workers: processes that read and crop panoramas; 0 does it in the main one.
        clip_norm: largest gradient norm; 0 does not clip.
        validations_per_epoch: how often the validation split is run.
        patience: validations without a better loss after which a stage stops; 0 never stops it.
        save_every_steps: interval of checkpoints between validations; 0 for none.
        keep_best: checkpoints with the lowest validation losses that stay; ``best.ckpt`` is the first of them.
        log_every_steps: interval of the tracked training metrics.
        max_steps: ends a stage early; for trials.
        checkpoint_activations: recompute activations of the language model and of trained encoder blocks in the
            backward pass, to save memory; losses and gradients keep their bits.
        compile: ``torch.compile`` the stage. The code depends on the lengths that come first, so a resumed run agrees
            with an uninterrupted one within rounding, not bit for bit.
        auto_batch: find the batch that fits before the first step, and keep the effective size by accumulation.
        parallel: several processes replicate the model (``ddp``) or shard it (``fsdp``).
        process_timeout_s: longest wait for another process, after which the run ends.
    """

    device: str = "auto"
    precision: Precision = "auto"
    num_workers: Annotated[int, Ge(0)] = 2
    clip_norm: Annotated[float, Ge(0)] = 1.0
    validations_per_epoch: Annotated[int, Ge(1)] = 1
    patience: Annotated[int, Ge(0)] = 0
    save_every_steps: Annotated[int, Ge(0)] = 0
    keep_best: Annotated[int, Ge(1)] = 1
    log_every_steps: Annotated[int, Ge(1)] = 10
    max_steps: Annotated[int, Ge(1)] | None = None
    checkpoint_activations: bool = False
    compile: bool = False
    auto_batch: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    process_timeout_s: Annotated[float, Gt(0)] = 1800.0


@dataclass(frozen=True)
class StageOptions:
    """Options of one stage (``stage.<name>.*``).

    Attributes:
        epochs: passes over the training split.
        batch_size: panoramas of a micro-batch, in each process.
        accumulate: micro-batches of an optimiser step.
        lr: peak learning rate.
        max_text_length: text tokens of a sample without image tokens; stage 1 reads no text.
        vision_trainable_blocks: last blocks of the encoder that train, or ``all`` of it.
        language_trainable_blocks: likewise of the language model; in finetune only.
    """

    epochs: Annotated[int, Ge(1)]
    batch_size: Annotated[int, Ge(1)]
    accumulate: Annotated[int, Ge(1)]
    lr: Annotated[float, Gt(0)]
    max_text_length: Annotated[int, Ge(8)]
    vision_trainable_blocks: Annotated[int, Ge(0)] | Literal["all"] = 0
    language_trainable_blocks: Annotated[int, Ge(0)] | Literal["all"] = 0


@dataclass(frozen=True)
class OptimOptions:
    """Optimiser and schedule (``optim.*``).

    Attributes:
        weight_decay: of parameters with two or more dimensions; biases, norms and single vectors have none.
        betas, eps: of AdamW.
        warmup_ratio: share of the optimiser steps with linear warmup; ``warmup_steps`` overrides it.
        schedule: after the warmup.
        final_ratio: learning rate at the end, as a share of the peak.
    """

    weight_decay: Annotated[float, Ge(0)] = 0.01
    betas: tuple[Annotated[float, Interval(ge=0, lt=1)], Annotated[float, Interval(ge=0, lt=1)]] = (0.9, 0.98)
    eps: Annotated[float, Interval(gt=0)] = 1e-8
    warmup_ratio: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    warmup_steps: Annotated[int, Ge(0)] | None = None
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    final_ratio: Annotated[float, Interval(ge=0, le=1)] = 0.0

    def learning_rate(self, peak: float, step: int, total: int) -> float:
        """Learning rate of optimiser step ``step`` (from 0) out of ``total``."""
        warmup = self.warmup_steps if self.warmup_steps is not None else round(self.warmup_ratio * total)
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        if self.schedule == "constant":
            return peak
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        factor = 1.0 - progress if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return peak * (self.final_ratio + (1.0 - self.final_ratio) * factor)


def make_optimizer(parameters: Mapping[str, nn.Parameter], options: OptimOptions, lr: float) -> torch.optim.AdamW:
    """AdamW over named parameters, in two groups: matrices decay, vectors do not."""
    groups = [
        {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=options.betas, eps=options.eps)


@dataclass(frozen=True)
class BatchSplit:
    """The samples of an optimiser step: ``processes`` x ``batch_size`` x ``accumulate``."""

    processes: int
    batch_size: int
    accumulate: int


def elastic_resume(
    options: StageOptions, saved: Mapping[str, Any] | None, processes: int, *, coupled: bool
) -> StageOptions:
    """Options for resuming with another number of processes: every optimiser step has as many samples as before.

    So the objective, the schedule and the position in the epoch stay the same. The micro-batch of a process does not
    grow, unless the objective couples it.

    Args:
        options: of the config.
        saved: ``share`` in the checkpoint's state, a ``BatchSplit``; older checkpoints have none.
        processes: their number now.
        coupled: whether the objective is taken over a whole micro-batch of all processes, which then keeps its size.

    Raises:
        ValueError: the samples cannot be divided equally among the processes.
    """
    if saved is None:
        return options
    before = BatchSplit(**saved)
    if before.processes == processes:
        return replace(options, batch_size=before.batch_size, accumulate=before.accumulate)
    micro_batch = before.processes * before.batch_size
    in_step = micro_batch * before.accumulate
    samples = micro_batch if coupled else in_step
    if samples % processes:
        possible = ", ".join(str(count) for count in range(1, samples + 1) if samples % count == 0)
        raise ValueError(
            f"The run to resume took {samples} samples in each {'micro-batch' if coupled else 'optimiser step'} with "
            f"{before.processes} processes, which {processes} processes cannot divide equally. Resume with one of "
            f"{possible} processes."
        )
    each = samples // processes
    size = each if coupled else max(size for size in range(1, before.batch_size + 1) if each % size == 0)
    result = replace(options, batch_size=size, accumulate=before.accumulate if coupled else each // size)
    LOG.info(
        "Resumed with %d processes in place of %d: batch size %d and accumulation %d in place of %d and %d, so that a "
        "step has %d samples as before.",
        processes, before.processes, size, result.accumulate, before.batch_size, before.accumulate, in_step,
    )  # fmt: skip
    return result
