"""AdamW with decay on matrices only, and a schedule that is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Interval
from torch import nn


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
