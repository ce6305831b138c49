"""Takes steps of a stage, compares numbers with those that are expected, and measures time."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from experiments.gpu.rows import Row, compared
from panollava.batch import Batch
from panollava.stages.protocol import Stage
from panollava.training.distributed import DistributedContext
from panollava.training.loop import OptimiserStep
from panollava.training.options import OptimOptions, make_optimizer
from panollava.training.precision import Compute

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
LIMITS = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (5e-2, 0.15), torch.float16: (1e-2, 5e-2)}
"""Largest error of a forward pass and of gradients. A number of bf16 has 8 binary digits, one of fp16 has 11."""

SCALE = 1024.0
"""Of the loss before the backward pass, so that fp16 resolves its gradients."""

WARMUP = 2
"""Steps before the first that is timed."""


def optimiser_step(stage: Stage, module: nn.Module, compute: Compute) -> OptimiserStep:
    """The step that training takes: forward, backward, clipping and AdamW."""
    optimizer = make_optimizer(stage.trained(), OptimOptions(), 1e-4)
    return OptimiserStep(stage, module, optimizer, compute.scaler(), compute, DistributedContext(), 1.0)


def loss_and_gradient(stage: Stage, module: nn.Module, batch: Batch, compute: Compute) -> dict[str, Tensor]:
    """The mean loss, and the gradient of ``SCALE`` times it, in one vector on the CPU; ``module`` wraps the stage."""
    with compute.autocast():
        (total,) = module(batch).losses.values()
    loss = total / sum(stage.counts(batch).values())
    (SCALE * loss).backward()
    weights = stage.trained().values()
    slopes = torch.cat([weight.grad.float().flatten().cpu() for weight in weights if weight.grad is not None])
    stage.zero_grad(set_to_none=True)
    return {"loss": loss.detach(), "gradients": slopes}


def agreement(
    what: str, found: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype, note: str
) -> list[Row]:
    """A row for each number: the error may be as large as is usual in the format ``dtype``."""
    limits = dict.fromkeys(found, LIMITS[dtype][0])
    if "gradients" in found:
        limits["gradients"] = LIMITS[dtype][1]
    return [compared(f"{what}: {name}", gap(found[name], expected[name]), limits[name], note) for name in found]


def gap(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    found, expected = found.detach().double().flatten().cpu(), expected.detach().double().flatten().cpu()
    return float((found - expected).norm() / expected.norm())


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ms(action: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median milliseconds of an action, after some that are not counted."""
    taken = []
    for _ in range(WARMUP + rounds):
        wait(device)
        start = time.perf_counter()
        action()
        wait(device)
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken[WARMUP:])


def tidy() -> None:
    """Frees what the last check has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
