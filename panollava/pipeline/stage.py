"""Runs one stage: its model and objective, the weights it starts from, the loop, and the record it leaves."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import nn

from panollava.assemble.check import STAGES
from panollava.assemble.run import Run
from panollava.assemble.stage import AnyStage, build_stage, skip_reason
from panollava.assemble.status import FINISHED, SKIPPED
from panollava.checkpoint import BEST, LAST, TRAINED, find_checkpoint, follow, read_state, read_tensors, replace_folder
from panollava.logs import LOG, log_file
from panollava.model.lora import has_lora, save_lora
from panollava.pipeline.metadata import stage_metadata
from panollava.run_folder import find_run_folder, known_checkpoints, short_name, write_metadata
from panollava.stages.instruct import InstructStage
from panollava.training.loop import FitResult, fit
from panollava.training.optim import make_optimizer
from panollava.training.options import StageOptions
from panollava.training.state import Checkpointer, Progress
from panollava.training.transfer import transfer


def run_stage(run: Run, name: str) -> AnyStage | None:
    """Trains one stage to its end and leaves its best weights in the returned module.

    Returns:
        The stage, or None where it was left out because there is nothing for it to learn.

    Raises:
        ValueError: it cannot run and was asked for by name; training stopped for a reason the message gives.
        KeyboardInterrupt: Ctrl-C; what was trained is saved.
    """
    reason = skip_reason(run, name)
    if reason and len(run.cfg.stage.run) > 1:
        LOG.info("Stage %s is left out: %s.", name, reason)
        if run.procs.is_main:
            run.experiment.record(name, status=SKIPPED)
        return None
    if reason:
        raise ValueError(f"stage={name} cannot run: {reason}. Choose another crop or resampler, or other stages.")
    folder = run.experiment.stage_folder(name)
    if (
        run.cfg.overwrite and run.procs.is_main
    ):  # only now: everything that could be wrong with the new run was looked at
        run.experiment.clear(name)
    run.procs.barrier()
    with log_file(folder / "logs", name) if run.procs.is_main else nullcontext():
        options = run.stage_options(name)
        while True:
            try:
                return _train(run, name, folder, options)
            except torch.OutOfMemoryError as error:
                options = _smaller(run, name, options, error)


def check_start(run: Run, name: str) -> None:
    """Whether the checkpoint a stage would start from or resume can be read, without reading its tensors.

    Raises:
        FileNotFoundError: ``init_from`` or ``resume`` names no checkpoint.
        ValueError: it is not one of ours.
    """
    if (resume := run.resume_point(name)) is not None:
        read_state(resume)
        return
    is_first = not any(earlier in run.cfg.stage.run for earlier in STAGES[: STAGES.index(name)])
    if is_first and (source := _source(run, name)) is not None:
        read_state(source)


def _train(run: Run, name: str, folder: Path, options: StageOptions) -> AnyStage:
    torch.manual_seed(run.seed(name))
    stage = build_stage(run, name).to(run.compute.device)
    torch.manual_seed(run.seed(name) + run.procs.rank)  # each process drops other units
    trained = stage.trained()
    resume = run.resume_point(name)
    if resume is None:
        _start_from(run, name, trained)
    total = sum(p.numel() for p in stage.parameters())
    share = sum(p.numel() for p in trained.values())
    LOG.info("Stage %s trains %s of %s parameters (%.2f %%).", name, f"{share:,}", f"{total:,}", 100 * share / total)
    optimizer, scaler = make_optimizer(trained, run.optim, options.lr), run.compute.scaler()
    checkpointer = Checkpointer(
        folder,
        prefix=_prefix(run),
        stage_name=name,
        parameters=trained,
        optimizer=optimizer,
        scaler=scaler,
        notes={"has_lora": _has_lora(stage), "tracking_run": run.tracker.run_id},
        on_save=_recorder(run, name, folder, stage),
    )
    progress = Progress()
    if resume is not None:
        progress = checkpointer.restore(resume)
        LOG.info("Stage %s resumes from %s: epoch %d, step %d.", name, resume, progress.epoch, progress.global_step)
    if run.procs.is_main:
        reached, loss = progress, None
        if (best := follow(folder / BEST)) is not None:
            state = read_state(best)
            reached, loss = Progress(**state["progress"]), state["validation_loss"]
        write_metadata(folder, stage_metadata(run, name, reached, loss), OmegaConf.to_yaml(run.cfg))
        run.experiment.record(name, status="running", tracking_run=run.tracker.run_id, started=_now())
    data = run.batches(name, options)
    try:
        result = fit(
            stage,
            data,
            optimizer=optimizer,
            scaler=scaler,
            optim=run.optim,
            options=options,
            trainer=run.trainer,
            compute=run.compute,
            procs=run.procs,
            checkpointer=checkpointer,
            tracker=run.tracker,
            progress=progress,
        )
    except BaseException as error:
        if run.procs.is_main:
            run.experiment.record(name, status="failed", error=f"{type(error).__name__}: {error}"[:500])
        raise
    if result.interrupted:
        if run.procs.is_main:
            run.experiment.record(name, status="interrupted")
        LOG.warning("Stage %s is saved at step %d; the same command goes on.", name, result.progress.global_step)
        raise KeyboardInterrupt
    _finish(run, name, folder, result, trained)
    return stage


def _start_from(run: Run, name: str, trained: dict[str, nn.Parameter]) -> None:
    """Loads what fits of the weights that ``init_from`` names."""
    source = _source(run, name)
    if source is None:
        if name != STAGES[0]:
            LOG.info(
                "Stage %s starts fresh: %s has no finished earlier stage (init_from=<folder> starts from another run).",
                name,
                run.experiment.root,
            )
        return
    tensors = read_tensors(source / TRAINED)
    report = transfer(tensors, trained)
    LOG.info("%s", report.summary(source))
    if not report.loaded:
        known = known_checkpoints(Path(run.cfg.output_dir), "vision")
        listed = ", ".join(map(str, known[:5])) or "none"
        raise ValueError(
            f"init_from={source}: none of its {len(tensors)} tensors fits this model"
            f"{' (' + '; '.join(report.misfits[:3]) + ')' if report.misfits else ''}. "
            f"Vision checkpoints below {run.cfg.output_dir}: {listed}. Use one of the same resampler and sizes, or "
            "init_from=none."
        )


def _source(run: Run, name: str) -> Path | None:
    """Checkpoint folder to start from: the named one, or the same experiment's previous stage."""
    earlier = STAGES[: STAGES.index(name)]
    is_first = not any(stage in run.cfg.stage.run for stage in earlier)
    if run.cfg.init_from == "none" and is_first:
        return None
    if run.cfg.init_from not in ("auto", "none") and is_first:
        path = Path(run.cfg.init_from).expanduser()
        if not path.exists():
            known = ", ".join(map(str, known_checkpoints(Path(run.cfg.output_dir), "vision")[:5])) or "none"
            raise ValueError(
                f"init_from={path} does not exist. Give auto, none, or a run's folder. Vision checkpoints below "
                f"{run.cfg.output_dir}: {known}."
            )
        return find_checkpoint(path if path.suffix == ".ckpt" else find_run_folder(path))
    for previous in reversed(earlier):
        folder = run.experiment.stage_folder(previous)
        if run.experiment.state(previous).get("status") == FINISHED and follow(folder / BEST):
            return find_checkpoint(folder)
    return None


def _finish(run: Run, name: str, folder: Path, result: FitResult, trained: dict[str, nn.Parameter]) -> None:
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


def _recorder(run: Run, name: str, folder: Path, stage: nn.Module) -> Callable[[Progress, float], None]:
    """What is written beside each best checkpoint: metadata, and the adapter as plain peft reads it."""

    def record(progress: Progress, loss: float) -> None:
        write_metadata(folder, stage_metadata(run, name, progress, loss), OmegaConf.to_yaml(run.cfg))
        if isinstance(stage, InstructStage) and has_lora(stage.model):
            replace_folder(folder / "lora_weights", lambda target: save_lora(stage.model, target))
        run.tracker.flush()

    return record


def _smaller(run: Run, name: str, options: StageOptions, error: BaseException) -> StageOptions:
    """Half the batch and twice the accumulation, or the message that says so."""
    half = replace(options, batch_size=options.batch_size // 2, accumulate=options.accumulate * 2)
    started = follow(run.experiment.stage_folder(name) / LAST) is not None
    if run.trainer.auto_batch and options.batch_size > 1 and not started:
        torch.cuda.empty_cache()
        LOG.warning("Out of memory at batch size %d: trying %d.", options.batch_size, half.batch_size)
        return half
    advice = (
        f"stage.{name}.batch_size={half.batch_size} stage.{name}.accumulate={half.accumulate} keeps the objective"
        if options.batch_size > 1
        else "the batch is 1 already"
    )
    raise ValueError(
        f"Out of memory in stage {name} with stage.{name}.batch_size={options.batch_size}: {advice}; "
        f"trainer.checkpoint_activations=true, a smaller stage.{name}.max_text_length "
        f"({options.max_text_length}) or crop.overlap=0 need less; trainer.auto_batch=true finds a batch that fits."
    ) from error


def _prefix(run: Run) -> str:
    cfg = run.cfg
    crop = cfg.crop.type.replace("_", "-")
    return f"{short_name(cfg.model.vision.name)}_{cfg.model.resampler.type}_{crop}_{cfg.data.name}"


def _has_lora(stage: nn.Module) -> bool:
    return isinstance(stage, InstructStage) and has_lora(stage.model)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
