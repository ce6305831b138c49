"""The plan of a run: steps, FLOPs, memory, the batch that fits and hours of each stage, for a named GPU.

It comes from shapes and the data's records: no weights and no pictures are opened.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import psutil
import torch
from omegaconf import OmegaConf

from panollava.data.loader import EpochSampler
from panollava.data.source import spread_indices
from panollava.logs import LOG, in_words
from panollava.model.backbones import Backbones
from panollava.run.build_stage import build_stage, is_left_out
from panollava.run.config_check import Gpu
from panollava.run.cost import Memory, MicroBatch, Setting, flops
from panollava.run.memory import estimate
from panollava.run.preflight import describe_features
from panollava.run.run import Run, plans_only
from panollava.stages.protocol import Stage
from panollava.training.options import StageOptions
from panollava.training.precision import planned_compute

FILLED = 0.9
"""Share of a device's memory that a batch may fill; the rest is for the allocator, kernels and the driver."""
LIBRARIES = 900 * 10**6
"""Bytes of a process before its model: Python, PyTorch, transformers and the data's tables. Measured on Linux."""
EXAMINED = 200
"""Records whose texts are encoded for their mean length."""
LARGEST_BATCH = 2**16
"""Larger ones are not looked for."""


@dataclass(frozen=True)
class Device:
    """What a plan needs to know of a device.

    Attributes:
        name: for the table.
        memory: in bytes.
        peak: dense bf16 FLOPs a second with fp32 accumulation; None where they are not known.
        taken: bytes of the process beside the model, where they are in the same memory.
    """

    name: str
    memory: int
    peak: float | None
    taken: int = 0


# Source: NVIDIA's data sheets of A100 (PCIe and SXM), H100 SXM, H200 SXM and L4, and the Ada architecture's white paper
# for the RTX 4090. Where a sheet states values with sparsity alone, these are half of them. The memory of a GPU in GB,
# as sold, is 10^9 bytes to within 2 % of what the driver gives.
GPUS: dict[Gpu, Device] = {
    "a100-40": Device("a100-40", 40 * 10**9, 312e12),
    "a100-80": Device("a100-80", 80 * 10**9, 312e12),
    "h100": Device("h100", 80 * 10**9, 989e12),
    "h200": Device("h200", 141 * 10**9, 989e12),
    "rtx4090": Device("rtx4090", 24 * 10**9, 165e12),
    "l4": Device("l4", 24 * 10**9, 121e12),
}
OF_NAMES: dict[str, Gpu] = {"A100": "a100-80", "H100": "h100", "H200": "h200", "4090": "rtx4090", "L4": "l4"}
"""Words in the name that CUDA gives a GPU, and whose peak it has."""
SLOWER = {"PCIe", "NVL", "Laptop", "D", "MIG"}
"""Words in the names of variants with another peak."""


@dataclass(frozen=True)
class StagePlan:
    """What one stage takes.

    Attributes:
        options: of the stage.
        steps: optimiser steps, of all epochs.
        samples: of an optimiser step, in all processes.
        image_tokens, text_tokens: of a sample; text as long as the mean of the records.
        parameters, trained: weights of the model, and those that train.
        step_flops, flops: of an optimiser step, with the encoder where its features are not stored, and of the stage
            with its validations and encoding, in all processes.
        memory: of one process, with texts as long as they may be.
        fits: the largest micro-batch that fits; 0 where none does.
    """

    name: str
    options: StageOptions
    steps: int
    samples: int
    image_tokens: int
    text_tokens: int
    parameters: int
    trained: int
    step_flops: int
    flops: int
    memory: Memory
    fits: int


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Attributes:
        device: what it is for.
        dtype: number format of frozen weights and autocast.
        mfu: share of the device's peak that the hours assume.
        processes: as many devices work together.
        features: a sentence about the feature store; None where nothing is stored.
        stages: in their order.
    """

    device: Device
    dtype: torch.dtype
    mfu: float
    processes: int
    features: str | None
    stages: list[StagePlan]

    def hours(self, stage: StagePlan) -> float | None:
        """Hours of computation; None where the device's peak in this number format is not known."""
        if self.device.peak is None or self.dtype is torch.float32:
            return None
        return stage.flops / (self.device.peak * self.mfu * self.processes) / 3600

    def total(self, stage: StagePlan) -> int:
        """Memory of a stage on its device, in bytes."""
        return self.device.taken + stage.memory.total

    def __str__(self) -> str:
        return "\n".join([self._head(), *_table([["", *(stage.name for stage in self.stages)], *self._rows()])])

    def _head(self) -> str:
        speed = "FLOPs a second unknown"
        if self.device.peak is not None:
            speed = f"{self.device.peak / 1e12:.0f} TFLOPS in dense bf16, of which MFU {self.mfu:g}"
        count = f"{self.processes} x " if self.processes > 1 else ""
        kind = str(self.dtype).removeprefix("torch.")
        return f"Plan for {count}{self.device.name} ({self.device.memory / 1e9:.0f} GB, {speed}), {kind}:"

    def _rows(self) -> list[list[str]]:
        """Rows of the table: a title, and a cell for each stage."""
        rows: dict[str, Callable[[StagePlan], str]] = {
            "parameters": lambda stage: f"{stage.parameters:,}",
            "that train": lambda stage: f"{stage.trained:,}",
            "samples a step": lambda stage: f"{stage.samples:,}",
            "image tokens of a sample": lambda stage: f"{stage.image_tokens:,}",
            "text tokens, mean": lambda stage: f"{stage.text_tokens:,}",
            "tokens a step": lambda stage: f"{stage.samples * (stage.image_tokens + stage.text_tokens):,}",
            "steps": lambda stage: f"{stage.steps:,}",
            "FLOPs a step": lambda stage: f"{stage.step_flops:.2e}",
            "FLOPs in all": lambda stage: f"{stage.flops:.2e}",
            "hours": lambda stage: _in_hours(self.hours(stage)),
        }
        if self.device.taken:
            rows["memory: libraries"] = lambda _: _size(self.device.taken)
        for part in fields(Memory):
            rows[f"memory: {part.name}"] = lambda stage, key=part.name: _size(getattr(stage.memory, key))  # type: ignore[misc]
        rows |= {
            "memory: in all": lambda stage: _size(self.total(stage)),
            "batch_size": lambda stage: str(stage.options.batch_size),
            f"largest that fits {100 * FILLED:.0f} %": lambda stage: (
                f"{stage.fits}{'+' if stage.fits == LARGEST_BATCH else ''}"
            ),
        }
        return [[title, *map(shown, self.stages)] for title, shown in rows.items()]


def log_plan(run: Run) -> None:
    """Logs the plan of a run, and where a stage does not fit."""
    if not run.procs.is_main:
        return
    plan = plan_run(run)
    LOG.info("%s", plan)
    if plan.features is not None:
        LOG.info("%s", plan.features)
    if plan.device.peak is not None:
        LOG.info("Hours are of the model alone: decoding, cropping, checkpoints and the evaluation take more.")
    for stage in plan.stages:
        if stage.fits < stage.options.batch_size:
            way_out = f"stage.{stage.name}.batch_size={stage.fits} fits" if stage.fits else "Not even one sample fits"
            LOG.warning(
                "Stage %s: batch_size=%d needs %s of memory, and %.0f %% of %s may be filled. %s; "
                "trainer.checkpoint_activations=true, fewer trainable blocks and a smaller crop.overlap need less too.",
                stage.name, stage.options.batch_size, _size(plan.total(stage)), 100 * FILLED, _size(plan.device.memory),
                way_out,
            )  # fmt: skip


def plan_run(run: Run) -> Plan:
    """The plan of a run's stages, from models without weights."""
    announce = plans_only(run.cfg)  # else each stage has been built before, and has said what it is
    run = _planned(run)
    plan = Plan(_device(run), run.compute.dtype, run.cfg.mfu, run.procs.world_size, describe_features(run), [])
    is_encoded = False  # whether an earlier stage has filled the feature store
    for name in run.pending:
        if is_left_out(run, name):
            continue
        stage = build_stage(run, name, announce=announce)
        plan.stages.append(_plan_stage(run, stage, plan.device, is_encoded=is_encoded))
        is_encoded = _batch(run, stage, 0).is_stored  # a stage that trains the encoder leaves other features
    return plan


def _planned(run: Run) -> Run:
    """The run as it will be without the limits of a dry run, on the named GPU, with models that have no weights."""
    known, compute = run.backbones, planned_compute(run.cfg.trainer.precision) if run.cfg.gpu else run.compute
    backbones = known
    if known.weights:
        options: dict[str, Any] = {"today": known.today, "recorded_size": known.recorded_size}
        backbones = Backbones(known.model, known.crop_spec, dtype=compute.dtype, weights=False, **options)
    cfg = OmegaConf.create({**run.plain, "dry_run": False})
    data = replace(run.data, backbones=backbones)
    return replace(run, cfg=cfg, compute=compute, backbones=backbones, data=data, parameters={})


def _device(run: Run) -> Device:
    """The GPU that ``gpu`` names, or this machine's device where it is null."""
    if run.cfg.gpu is not None:
        return GPUS[run.cfg.gpu]
    if run.compute.device.type != "cuda":
        return Device(run.compute.device.type, int(psutil.virtual_memory().total), None, taken=LIBRARIES)
    properties = torch.cuda.get_device_properties(run.compute.device)
    return Device(properties.name, properties.total_memory, peak_of(properties.name))


def peak_of(name: str) -> float | None:
    """The peak of a GPU by the name that CUDA gives it, in FLOPs a second; None where it is not known."""
    words = set(name.replace("-", " ").split())
    if words & SLOWER:
        return None
    return next((GPUS[gpu].peak for word, gpu in OF_NAMES.items() if word in words), None)


def _plan_stage(run: Run, stage: Stage, device: Device, *, is_encoded: bool) -> StagePlan:
    """The plan of one stage; ``is_encoded``: the store holds the features already."""
    name, train, val = stage.name, run.data.train, run.data.val
    options, count = run.stage_options(name), run.procs.world_size
    an_epoch = EpochSampler(len(train), options.batch_size, options.accumulate, world_size=count).steps_per_epoch
    steps = min(options.epochs * an_epoch, run.trainer.max_steps or options.epochs * an_epoch)
    samples = options.batch_size * options.accumulate * count
    text = _text_tokens(run, name, options)
    batch = _batch(run, stage, text)
    cost = flops(stage, batch, Setting.of(run))
    encoder = 0 if batch.is_stored else cost.encoder
    validations = max(1, round(steps / an_epoch * run.trainer.validations_per_epoch))
    validations += run.stages[name].answers  # once more, with swapped pictures
    seen = min(steps * samples, options.epochs * len(train))
    training, validating = cost.forward + cost.backward + encoder, cost.forward + encoder
    total = (seen * training + validations * len(val) * validating) // options.batch_size
    if batch.is_stored and not is_encoded:
        pictures = {source.picture(index) for source in (train, val) for index in range(len(source))}
        total += len(pictures) * cost.encoder // batch.panoramas
    return StagePlan(
        name=name,
        options=options,
        steps=steps,
        samples=samples,
        image_tokens=run.backbones.image_tokens,
        text_tokens=text,
        parameters=sum(weight.numel() for weight in stage.parameters()),
        trained=sum(weight.numel() for weight in stage.trained().values()),
        step_flops=training * samples // options.batch_size,
        flops=total,
        memory=estimate(run, stage, options),
        fits=_largest(lambda size: estimate(run, stage, replace(options, batch_size=size)).total, device),
    )


def _batch(run: Run, stage: Stage, text: int) -> MicroBatch:
    return MicroBatch.of(run, stage, run.stage_options(stage.name), text)


def _largest(needed: Callable[[int], int], device: Device) -> int:
    """The largest micro-batch whose bytes fit on a device, up to ``LARGEST_BATCH``; 0 for none."""
    return bisect_right(range(1, LARGEST_BATCH + 1), FILLED * device.memory - device.taken, key=needed)


def _text_tokens(run: Run, name: str, options: StageOptions) -> int:
    """Mean length of the texts of a stage; 0 where it reads none."""
    targets, train = run.stages[name].targets, run.data.train
    if targets is None:
        return 0
    encoder = run.data.text(targets, options)
    chosen = spread_indices(len(train), EXAMINED)
    lengths = [len(encoder.record(train.record(index, 0)).ids) - encoder.image_tokens for index in chosen]
    return round(sum(lengths) / len(lengths))


def _in_hours(hours: float | None) -> str:
    if hours is None:
        return "unknown"
    return f"{hours:.2f}" if hours >= 0.01 else "below 0.01"


def _size(count: int) -> str:
    return in_words(count, base=1000)


def _table(rows: list[list[str]]) -> list[str]:
    """Lines of aligned cells, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return [f"| {' | '.join([row[0].ljust(widths[0]), *cells[1:]])} |" for row, cells in zip(rows, padded, strict=True)]
