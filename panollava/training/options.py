"""Going on with another number of processes: the same samples in every optimiser step, shared out anew."""

from __future__ import annotations

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
    """Settings that every stage shares.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        precision: of frozen backbones and autocast; trained weights and losses are always fp32.
        num_workers: processes that read and cut panoramas; 0 does it in the main one.
        clip_norm: gradients are scaled down to this norm; 0 leaves them.
        validations_per_epoch: how often the validation split is run.
        patience: stop after so many validations without a better loss; 0 never.
        save_every_steps: checkpoints within an epoch, beside those at validations; 0 for none.
        log_every_steps: interval of the tracked training metrics.
        max_steps: ends a stage early; for trials.
        checkpoint_activations: recompute activations of the language model, and of encoder blocks that train, in the
            backward pass to save memory; losses and gradients keep their bits.
        compile: ``torch.compile`` the stage. It makes code for the lengths that come first, so a run that is resumed
            agrees with one that was not stopped within rounding, not to the bit.
        auto_batch: try before the first step which batch fits, and keep its effective size by accumulation.
        parallel: what several processes do with a model: each keeps all of it (``ddp``), or a share of it (``fsdp``).
        process_timeout_s: longest wait for another process, after which the run ends.
    """

    device: str = "auto"
    precision: Precision = "auto"
    num_workers: Annotated[int, Ge(0)] = 2
    clip_norm: Annotated[float, Ge(0)] = 1.0
    validations_per_epoch: Annotated[int, Ge(1)] = 1
    patience: Annotated[int, Ge(0)] = 0
    save_every_steps: Annotated[int, Ge(0)] = 0
    log_every_steps: Annotated[int, Ge(1)] = 10
    max_steps: Annotated[int, Ge(1)] | None = None
    checkpoint_activations: bool = False
    compile: bool = False
    auto_batch: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    process_timeout_s: Annotated[float, Gt(0)] = 1800.0


@dataclass(frozen=True)
class StageOptions:
    """Settings of one stage.

    Attributes:
        epochs: passes over the training split.
        batch_size: panoramas a micro-batch and process.
        accumulate: micro-batches an optimiser step.
        lr: peak learning rate.
        max_text_length: text tokens a sample, image tokens not counted; stage 1 reads no text.
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
        weight_decay: on parameters of two or more dimensions; never on biases, norms and single vectors.
        betas, eps: AdamW's.
        warmup_ratio: share of the optimiser steps that warm up linearly; ``warmup_steps`` overrides it.
        schedule: what follows the warmup.
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
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=options.betas, eps=options.eps)


@dataclass(frozen=True)
class Share:
    """How the samples of an optimiser step were shared out.

    Attributes:
        processes: number of processes.
        batch_size: samples of a micro-batch in each.
        accumulate: micro-batches of a step.
    """

    processes: int
    batch_size: int
    accumulate: int

    @classmethod
    def of(cls, options: StageOptions, processes: int) -> Share:
        """As a stage is told to."""
        return cls(processes, options.batch_size, options.accumulate)

    @property
    def samples(self) -> int:
        """Samples of an optimiser step."""
        return self.processes * self.batch_size * self.accumulate


def same_steps(
    options: StageOptions, saved: Mapping[str, Any] | None, processes: int, *, coupled: bool
) -> StageOptions:
    """Batch size and accumulation with which a run goes on as it began.

    A step keeps its samples, so that the objective, the schedule and the place in the epoch stay what they were. The
    micro-batch of a process does not grow, unless the objective is of the micro-batch of all processes.

    Args:
        options: of the config.
        saved: ``share`` of the checkpoint that is resumed.
        processes: of now.
        coupled: whether the objective is taken over a whole micro-batch of all processes.

    Raises:
        ValueError: so many processes cannot share a step's samples equally.
    """
    if saved is None:
        return options
    before = Share(**saved)
    if before.processes == processes:
        return replace(options, batch_size=before.batch_size, accumulate=before.accumulate)
    together = before.processes * before.batch_size
    whole = together if coupled else before.samples
    if whole % processes:
        possible = ", ".join(str(count) for count in range(1, whole + 1) if whole % count == 0)
        what = "micro-batch" if coupled else "optimiser step"
        raise ValueError(
            f"The run that is resumed took {whole} samples in each {what} with {before.processes} processes, which "
            f"{processes} processes cannot share equally. Go on with one of {possible} processes."
        )
    each = whole // processes
    if coupled:
        result = replace(options, batch_size=each, accumulate=before.accumulate)
    else:
        size = max(size for size in range(1, before.batch_size + 1) if each % size == 0)
        result = replace(options, batch_size=size, accumulate=each // size)
    LOG.info(
        "Resumed with %d processes in place of %d: batch size %d and accumulation %d in place of %d and %d, so that a "
        "step has %d samples as before.",
        processes, before.processes, result.batch_size, result.accumulate, before.batch_size, before.accumulate,
        before.samples,
    )  # fmt: skip
    return result
