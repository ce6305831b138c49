"""The record a stage leaves: beside its checkpoints while it trains, in the experiment's state, and when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import OmegaConf
from torch import nn

from panollava.assemble.run import Run
from panollava.assemble.stage import AnyStage
from panollava.assemble.status import FINISHED
from panollava.checkpoint import BEST, find_checkpoint, follow, read_state, read_weights, replace_folder
from panollava.logs import LOG
from panollava.model.lora import has_lora, save_lora
from panollava.pipeline.metadata import stage_metadata
from panollava.run_folder import short_name, write_metadata
from panollava.stages.instruct import InstructStage
from panollava.training.loop import FitResult
from panollava.training.parallel import put
from panollava.training.saved import read_progress
from panollava.training.state import Progress


def checkpoint_prefix(run: Run) -> str:
    """Start of the checkpoints' names: ``<vision>_<resampler>_<crop>_<dataset>``."""
    cfg = run.cfg
    crop = cfg.crop.type.replace("_", "-")
    return f"{short_name(cfg.model.vision.name)}_{cfg.model.resampler.type}_{crop}_{cfg.data.name}"


def carries_lora(stage: AnyStage) -> bool:
    """Whether the stage's language model has an adapter."""
    return isinstance(stage, InstructStage) and has_lora(stage.model)


def record_start(
    run: Run, name: str, folder: Path, stage: AnyStage, progress: Progress, resumed: Path | None = None
) -> None:
    """Notes that a stage runs, with the metadata of the best checkpoint so far.

    Args:
        run: the run.
        name: the stage's name.
        folder: where it keeps its checkpoints.
        stage: the stage itself.
        progress: where it goes on.
        resumed: the checkpoint it goes on from.
    """
    reached, loss, best = progress, None, follow(folder / BEST)
    if best is not None:
        state = read_state(best)
        reached, loss = Progress(**read_progress(state, best)), state.get("validation_loss")
    if best is not None and best == resumed:
        # A process that was killed right after it had saved its best has not written all that belongs to it.
        recorder(run, name, folder, stage)(reached, loss)
    else:
        write_metadata(folder, stage_metadata(run, name, reached, loss), OmegaConf.to_yaml(run.cfg))
    run.experiment.record(name, status="running", tracking_run=run.tracker.run_id, started=_now())


def record_failure(run: Run, name: str, error: BaseException) -> None:
    """Notes why a stage ended before its time."""
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    try:
        run.experiment.record(name, status=status, error=f"{type(error).__name__}: {error}"[:500])
    except OSError:  # a disk that ends a run does not take this either, and the first message is the one to read
        LOG.debug("The end of stage %s could not be recorded.", name, exc_info=True)


def recorder(run: Run, name: str, folder: Path, stage: nn.Module) -> Callable[[Progress, float | None], None]:
    """What is written beside each best checkpoint: metadata, and the adapter as plain peft reads it."""

    def record(progress: Progress, loss: float | None) -> None:
        write_metadata(folder, stage_metadata(run, name, progress, loss), OmegaConf.to_yaml(run.cfg))
        if isinstance(stage, InstructStage) and has_lora(stage.model):
            tensors = read_weights(find_checkpoint(folder))  # whole, where each process has but a share of them
            replace_folder(folder / "lora_weights", lambda target: save_lora(stage.model, target, tensors))

    return record


def finish(run: Run, name: str, folder: Path, result: FitResult, trained: dict[str, nn.Parameter]) -> None:
    """Puts the best weights into the stage and records how it went."""
    run.procs.barrier()
    best = find_checkpoint(folder)
    tensors = read_weights(best)
    for key, parameter in trained.items():
        put(parameter, tensors[key])
    run.procs.barrier()  # the folder of a dry run goes when the first process is done
    if not run.procs.is_main:
        return
    loss, progress = read_state(best)["validation_loss"], result.progress
    run.tracker.metrics(
        {
            f"{name}/seconds": progress.seconds,
            f"{name}/best_val_loss": loss,
            f"{name}/mean_samples_per_second": progress.samples_per_second,
            f"{name}/peak_memory_gb": progress.peak_memory_gb,
        },
        step=progress.global_step,
    )
    run.tracker.flush()  # a finished stage is not looked at again
    run.experiment.record(
        name,
        status=FINISHED,
        finished=_now(),
        epochs=run.stage_options(name).epochs,
        max_steps=run.trainer.max_steps,
        checkpoint=str(best.relative_to(run.experiment.root)),
        validation_loss=loss,
        seconds=round(progress.seconds, 2),
        samples_per_second=round(progress.samples_per_second, 2),
        peak_memory_gb=round(progress.peak_memory_gb, 3),
    )
    LOG.info(
        "Stage %s: %.1f s, %.1f samples/s, peak %.2f GB, best validation loss %.4f in %s",
        name, progress.seconds, progress.samples_per_second, progress.peak_memory_gb, loss, folder / BEST,
    )  # fmt: skip
    for concern in result.concerns:
        LOG.warning("Stage %s ended with a concern: %s", name, concern)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
