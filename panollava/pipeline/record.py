"""The record a stage leaves: beside its checkpoints while it trains, in the experiment's state, and when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import nn

from panollava.assemble.run import Run
from panollava.assemble.stage import AnyStage
from panollava.assemble.status import FINISHED
from panollava.checkpoint import BEST, TRAINED, find_checkpoint, follow, read_state, read_tensors, replace_folder
from panollava.logs import LOG
from panollava.model.lora import has_lora, save_lora
from panollava.pipeline.metadata import stage_metadata
from panollava.run_folder import short_name, write_metadata
from panollava.stages.instruct import InstructStage
from panollava.training.loop import FitResult
from panollava.training.state import Progress


def checkpoint_prefix(run: Run) -> str:
    """Start of the checkpoints' names: ``<vision>_<resampler>_<crop>_<dataset>``."""
    cfg = run.cfg
    crop = cfg.crop.type.replace("_", "-")
    return f"{short_name(cfg.model.vision.name)}_{cfg.model.resampler.type}_{crop}_{cfg.data.name}"


def carries_lora(stage: AnyStage) -> bool:
    """Whether the stage's language model has an adapter."""
    return isinstance(stage, InstructStage) and has_lora(stage.model)


def record_start(run: Run, name: str, folder: Path, progress: Progress) -> None:
    """Notes that a stage runs, with the metadata of the best checkpoint so far."""
    reached, loss = progress, None
    if (best := follow(folder / BEST)) is not None:
        state = read_state(best)
        reached, loss = Progress(**state["progress"]), state["validation_loss"]
    write_metadata(folder, stage_metadata(run, name, reached, loss), OmegaConf.to_yaml(run.cfg))
    run.experiment.record(name, status="running", tracking_run=run.tracker.run_id, started=_now())


def recorder(run: Run, name: str, folder: Path, stage: nn.Module) -> Callable[[Progress, float], None]:
    """What is written beside each best checkpoint: metadata, and the adapter as plain peft reads it."""

    def record(progress: Progress, loss: float) -> None:
        write_metadata(folder, stage_metadata(run, name, progress, loss), OmegaConf.to_yaml(run.cfg))
        if isinstance(stage, InstructStage) and has_lora(stage.model):
            replace_folder(folder / "lora_weights", lambda target: save_lora(stage.model, target))
        run.tracker.flush()

    return record


def finish(run: Run, name: str, folder: Path, result: FitResult, trained: dict[str, nn.Parameter]) -> None:
    """Puts the best weights into the stage and records how it went."""
    run.procs.barrier()
    best = find_checkpoint(folder)
    tensors = read_tensors(best / TRAINED)
    with torch.no_grad():
        for key, parameter in trained.items():
            parameter.copy_(tensors[key])
    if not run.procs.is_main:
        return
    loss = read_state(best)["validation_loss"]
    run.experiment.record(
        name,
        status=FINISHED,
        finished=_now(),
        epochs=run.stage_options(name).epochs,
        max_steps=run.trainer.max_steps,
        checkpoint=str(best.relative_to(run.experiment.root)),
        validation_loss=loss,
        seconds=round(result.seconds, 2),
    )
    run.tracker.metrics(
        {
            f"{name}/seconds": result.seconds,
            f"{name}/best_val_loss": loss,
            f"{name}/mean_samples_per_second": result.samples_per_second,
            f"{name}/peak_memory_gb": result.peak_memory_gb,
        },
        step=result.progress.global_step,
    )
    LOG.info(
        "Stage %s: %.1f s, %.1f samples/s, peak %.2f GB, best validation loss %.4f in %s",
        name, result.seconds, result.samples_per_second, result.peak_memory_gb, loss, folder / BEST,
    )  # fmt: skip
    for concern in result.concerns:
        LOG.warning("Stage %s ended with a concern: %s", name, concern)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
