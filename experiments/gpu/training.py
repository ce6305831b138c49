"""Compiling, DDP and FSDP2, resuming, and running out of memory, each against plain training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from experiments.gpu.measure import SHORT, agreement, loss_and_gradient, optimiser_step, tidy
from experiments.gpu.models import STRATEGY, Setting, instruct_stage, with_texts
from experiments.gpu.rows import NOT_INSTALLED, Check, Row, UnavailableError, compared
from panollava.batch import Batch
from panollava.checkpoint import LAST, follow
from panollava.crop.cameras import camera_tensor
from panollava.run.memory import auto_batch_size, explained, step_too_large
from panollava.stages.protocol import Stage
from panollava.stages.registry import STAGES
from panollava.training.checkpointer import Checkpointer, Progress
from panollava.training.distributed import DistributedContext
from panollava.training.loop import fit
from panollava.training.options import OptimOptions, StageOptions, TrainerOptions, make_optimizer
from panollava.training.parallel import check_compiler, compile_errors, full_tensor, shard, wrap_ddp
from panollava.training.precision import Compute


def compile(setting: Setting) -> Iterator[Check]:
    """A compiled stage against the same one as it is."""
    try:
        check_compiler(setting.device.type)
    except ValueError as error:
        raise UnavailableError(NOT_INSTALLED, str(error)) from error
    for dtype in _formats(setting):
        yield f"compiled, {SHORT[dtype]}", partial(_compiled, setting, dtype)


def _formats(setting: Setting) -> list[torch.dtype]:
    """The format of training there, and fp32."""
    return list(dict.fromkeys((setting.compute.dtype, torch.float32)))


def _compiled(setting: Setting, dtype: torch.dtype) -> list[Row]:
    size, compute = setting.size, setting.in_dtype(dtype)
    stage = instruct_stage(setting, size.language, dtype)
    batch = with_texts(size, size.language, 2).to(setting.device)
    expected = loss_and_gradient(stage, stage, batch, compute)
    start = time.perf_counter()
    with compile_errors([]):
        module = wrap_ddp(stage, compiled=True, device=setting.device, procs=DistributedContext())
        found = loss_and_gradient(stage, module, batch, compute)
    note = f"against the stage as it is; forward and backward were compiled in {time.perf_counter() - start:.0f} s"
    return agreement(f"compiled, {SHORT[dtype]}", found, expected, dtype, note)


STEPS = 3
"""Optimiser steps that are compared."""


def parallel(setting: Setting) -> Iterator[Check]:
    """DDP and FSDP2 with one process, against none: losses and weights after some steps."""
    with _process_group(setting):
        for dtype in _formats(setting):
            expected = _trained(setting, dtype, lambda stage: stage)
            for way, wrap in (("DDP", _ddp), ("FSDP2", _fsdp)):
                name = f"{way}, {SHORT[dtype]}"
                yield name, partial(_like_plain, setting, name, dtype, partial(wrap, setting), expected)


@contextmanager
def _process_group(setting: Setting) -> Iterator[None]:
    """This process as a group of its own, which torchrun would make."""
    if setting.on_gpu:
        torch.cuda.set_device(setting.device)
    dist.init_process_group("nccl" if setting.on_gpu else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _ddp(setting: Setting, stage: Stage) -> nn.Module:
    """As ``wrap_ddp`` does with several processes."""
    devices = [setting.device.index] if setting.on_gpu else None
    return DistributedDataParallel(stage, device_ids=devices, broadcast_buffers=False, find_unused_parameters=True)


def _fsdp(setting: Setting, stage: Stage) -> nn.Module:
    shard(stage.cpu(), DistributedContext(), setting.device)
    return stage.to(setting.device)


def _trained(setting: Setting, dtype: torch.dtype, wrap: Callable[[Stage], nn.Module]) -> dict[str, Tensor]:
    """Losses of some steps of stage 2, and the trained weights after them."""
    language = setting.size.language
    stage = instruct_stage(setting, language, dtype)
    step = optimiser_step(stage, wrap(stage), setting.in_dtype(dtype))
    batches = [with_texts(setting.size, language, 2, seed).to(setting.device) for seed in range(STEPS)]
    losses = torch.tensor([step([batch], 1e-3)["loss"] for batch in batches])
    weights = torch.cat([full_tensor(weight.detach()).flatten().cpu() for weight in stage.trained().values()])
    return {"losses": losses, "weights": weights}


def _like_plain(
    setting: Setting,
    name: str,
    dtype: torch.dtype,
    wrap: Callable[[Stage], nn.Module],
    expected: dict[str, Tensor],
) -> list[Row]:
    found = _trained(setting, dtype, wrap)
    is_same = all(torch.equal(found[key], expected[key]) for key in expected)
    note = f"{STEPS} steps in a group of one process, against none: {'the same bits' if is_same else 'other bits'}"
    return agreement(name, found, expected, dtype, note)


STOP = 3
"""Steps before the run is stopped; a checkpoint is written after each two."""


@dataclass
class Windows:
    """Optimiser steps of one micro-batch, and a validation batch; ends as by Ctrl-C before step ``stop``."""

    batches: list[Batch]
    stop: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        return len(self.batches)

    def windows(self, _epoch: int, start: int) -> Iterator[list[Batch]]:
        for index in range(start, len(self.batches)):
            if index == self.stop:
                raise KeyboardInterrupt
            yield [self.batches[index]]

    def validation(self) -> Iterator[Batch]:
        yield self.batches[0]


def resume(setting: Setting) -> Iterator[Check]:
    """A run that is stopped and resumed against one that is not: equality of bits, with LoRA's dropout."""
    for dtype in _formats(setting):
        yield f"resumed, {SHORT[dtype]}", partial(_resumed, setting, dtype)


def _resumed(setting: Setting, dtype: torch.dtype) -> list[Row]:
    try:
        share, kernels = _differing(setting, dtype, strictly=True), "deterministic kernels"
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        share = _differing(setting, dtype, strictly=False)
        kernels = f"not all kernels are deterministic: {str(error).split('. ')[0]}"
    note = f"{100 * share:.0f} % of the trained tensors differ from those of an uninterrupted run; stopped after step "
    note += f"{STOP}, resumed from step {STOP - 1}; {kernels}; stage 3 with LoRA's dropout"
    return [compared(f"resumed, {SHORT[dtype]}", share, 0.0, note)]


def _differing(setting: Setting, dtype: torch.dtype, *, strictly: bool) -> float:
    """Share of the trained tensors that differ; ``strictly``: an operation that is not deterministic is an error.

    Without, the attention kernels use their faster forms, whose backward pass is not deterministic.
    """
    size = setting.size
    batches = [with_texts(size, size.language, 2, seed) for seed in range(STOP + 1)]
    whole_folder, folder = (setting.folder / f"{name}_{dtype}_{strictly}" for name in ("whole", "stopped"))
    torch.use_deterministic_algorithms(True, warn_only=not strictly)
    try:
        whole = _fitted(setting, dtype, whole_folder, Windows(batches))
        tidy()
        with suppress(KeyboardInterrupt):
            _fitted(setting, dtype, folder, Windows(batches, stop=STOP))
        tidy()
        resumed = _fitted(setting, dtype, folder, Windows(batches))
    finally:
        torch.use_deterministic_algorithms(False)
    return sum(not torch.equal(weight, whole[name]) for name, weight in resumed.items()) / len(whole)


def _fitted(setting: Setting, dtype: torch.dtype, folder: Path, data: Windows) -> dict[str, Tensor]:
    """The trained weights after the last step, resumed where the folder has a checkpoint."""
    folder.mkdir(exist_ok=True)
    compute, stage = setting.in_dtype(dtype), instruct_stage(setting, setting.size.language, dtype, "finetune")
    trained = stage.trained()
    optimizer, scaler = make_optimizer(trained, OptimOptions(), 1e-3), compute.scaler()
    names = {"prefix": "check", "stage_name": stage.name}
    saver = Checkpointer(folder, **names, parameters=trained, optimizer=optimizer, scaler=scaler)
    torch.manual_seed(2)
    last = follow(folder / LAST)
    progress = Progress() if last is None else saver.restore(last)
    assert progress.global_step == (0 if last is None else STOP - 1)
    fit(
        stage,
        data,
        optimizer=optimizer,
        scaler=scaler,
        optim=OptimOptions(),
        options=StageOptions(epochs=1, batch_size=2, accumulate=1, lr=1e-3, max_text_length=setting.size.text),
        trainer=TrainerOptions(save_every_steps=STOP - 1),
        compute=compute,
        checkpointer=saver,
        progress=progress,
    )
    return {name: weight.detach().cpu().clone() for name, weight in trained.items()}


TOGETHER = 8
"""Samples of a micro-batch that does not fit."""


@dataclass
class SmallRun:
    """What of a run ``auto_batch`` and the messages read; an open run would need a config."""

    stage: Stage
    compute: Compute
    batch: Batch
    folder: Path
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    procs: DistributedContext = field(default_factory=DistributedContext)
    stages: dict[str, Any] = field(default_factory=lambda: dict(STAGES))

    def __post_init__(self) -> None:
        self.cfg = SimpleNamespace(crop={"overlap": STRATEGY.overlap})
        self.experiment = SimpleNamespace(stage_folder=lambda _name: self.folder)
        crop = SimpleNamespace(camera_rows=camera_tensor(STRATEGY.cameras()))
        tokens = len(crop.camera_rows) * self.stage.vision.tokens_per_view
        self.backbones = SimpleNamespace(crop=crop, image_tokens=tokens)

    def batches(self, _name: str, _options: StageOptions, *, share: bool = True, places: object = None) -> Any:
        """A window of the batch."""
        return SimpleNamespace(windows=lambda _epoch: iter([[self.batch]]))


def memory(setting: Setting) -> Iterator[Check]:
    """The batch that ``trainer.auto_batch`` finds, and the message where a step does not fit."""
    yield "auto_batch and the message", partial(_out_of_memory, setting)


def _out_of_memory(setting: Setting) -> list[Row]:
    size, compute = setting.size, setting.compute
    stage, batch = instruct_stage(setting, size.language, compute.dtype), with_texts(size, size.language, TOGETHER)
    run: Any = SmallRun(stage, compute, batch, setting.folder)
    options = StageOptions(epochs=1, batch_size=TOGETHER, accumulate=2, lr=1e-4, max_text_length=size.text + 1)
    step = optimiser_step(stage, stage, compute)
    message = ""
    with (_limited_gpu if setting.on_gpu else _simulated)(setting, stage, batch) as how:
        found = auto_batch_size(run, stage.name, stage, options)
        try:
            with explained(lambda: step_too_large(run, stage.name, stage, options)):
                step([batch.to(setting.device)], 1e-4)
        except ValueError as error:
            message = str(error)
        stage.zero_grad(set_to_none=True)
        tidy()
        step([batch.first(found.batch_size).to(setting.device)], 1e-4)
    keeps = found.batch_size * found.accumulate == options.batch_size * options.accumulate
    is_right = 1 <= found.batch_size < TOGETHER and keeps
    note = f"{how}; batch {found.batch_size} x {found.accumulate} in place of {TOGETHER} x 2, whose step then fits"
    expected = (f"batch_size={TOGETHER}", f"batch_size={TOGETHER // 2}", "accumulate=4", "auto_batch=true")
    lacking = [part for part in expected if part not in message]
    return [
        compared("auto_batch", float(not is_right), 0.0, note),
        compared("message out of memory", len(lacking) / len(expected), 0.0, f"it says: {message or 'nothing'}"),
    ]


@contextmanager
def _simulated(_setting: Setting, stage: Stage, _batch: Batch) -> Iterator[str]:
    """An error for more than half of the batch, as the memory of a CPU has no limit of its own."""

    def refuse(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if len(inputs[0]) > TOGETHER // 2:
            raise torch.OutOfMemoryError("out of memory, simulated")

    hook = stage.register_forward_pre_hook(refuse)
    try:
        yield "simulated on a CPU"
    finally:
        hook.remove()


@contextmanager
def _limited_gpu(setting: Setting, stage: Stage, batch: Batch) -> Iterator[str]:
    """Memory for half of the batch, not for the whole."""
    device, peaks = setting.device, []
    for count in (TOGETHER // 2, TOGETHER):
        tidy()
        torch.cuda.reset_peak_memory_stats(device)
        loss_and_gradient(stage, stage, batch.first(count).to(device), setting.compute)
        peaks.append(torch.cuda.max_memory_reserved(device))
    tidy()
    # What auto_batch sets aside for the optimiser: three copies of the trained weights.
    aside = 3 * sum(weight.numel() * weight.element_size() for weight in stage.trained().values())
    limit = sum(peaks) / 2 + aside
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    try:
        took = " and ".join(f"{peak / 1e9:.1f}" for peak in peaks)
        yield f"the process may take {limit / 1e9:.1f} GB; batches of {TOGETHER // 2} and {TOGETHER} took {took}"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
