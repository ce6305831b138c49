"""Runs one stage: its model and objective, the weights it starts from, the loop, and the record it leaves."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

from panollava.assemble.run import Run
from panollava.assemble.stage import AnyStage, build_stage, skip_reason
from panollava.assemble.status import SKIPPED, recorded_config
from panollava.checkpoint import BEST, LAST, follow, read_state
from panollava.logs import LOG, log_file
from panollava.pipeline.finish import show_views
from panollava.pipeline.fitting import fit_batch
from panollava.pipeline.forecast import forecast
from panollava.pipeline.inherited import trained_backbones
from panollava.pipeline.memory import explained, model_too_large, step_too_large
from panollava.pipeline.record import (
    carries_lora,
    checkpoint_prefix,
    finish,
    record_failure,
    record_start,
    recorder,
)
from panollava.pipeline.start import start_from
from panollava.training.loop import fit
from panollava.training.optim import make_optimizer
from panollava.training.options import StageOptions
from panollava.training.parallel import shard
from panollava.training.same_steps import Share, same_steps
from panollava.training.state import Checkpointer, Progress


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
    if run.cfg.overwrite and run.procs.is_main:
        run.experiment.clear(name)  # only now: everything that could be wrong with the new run was looked at
    run.procs.barrier()
    log = log_file(folder / "logs", name) if run.procs.is_main else nullcontext()
    with log, explained(lambda: model_too_large(run, name)):
        try:
            return _train(run, name, folder, run.stage_options(name))
        finally:
            if run.is_sharded:  # the next model cannot be built around shares
                run.backbones.forget()


def _train(run: Run, name: str, folder: Path, options: StageOptions) -> AnyStage:
    torch.manual_seed(run.seed(name))
    stage = build_stage(run, name)
    if run.is_sharded:
        tower = run.backbones.tower
        makes_features = not any(weight.requires_grad for weight in tower.parameters())
        shard(stage, run.procs, run.compute.device, apart=tower if makes_features else None)
    stage.to(run.compute.device)
    torch.manual_seed(run.seed(name) + run.procs.rank)  # each process drops other units
    trained = stage.trained()
    frozen, inherited = stage.frozen_backbone(), {}
    resume = run.agreed_path(run.resume_point(name))
    if resume is not None:
        shared = read_state(resume).get("share")
        options = same_steps(options, shared, run.procs.world_size, coupled=bool(stage.coupled))
    else:
        inherited = start_from(run, name, trained, frozen)
    if run.trainer.auto_batch:
        options = fit_batch(run, name, stage, options)
    forecast(run, name, stage, options)
    optimizer, scaler = make_optimizer(trained, run.optim, options.lr), run.compute.scaler()
    checkpointer = Checkpointer(
        folder,
        prefix=checkpoint_prefix(run),
        stage_name=name,
        parameters=trained,
        optimizer=optimizer,
        scaler=scaler,
        procs=run.procs,
        notes={
            "has_lora": carries_lora(stage),
            "share": asdict(Share.of(options, run.procs.world_size)),
        },
        on_save=recorder(run, name, folder, stage),
        frozen=frozen,
    )
    checkpointer.inherit(inherited)
    progress = Progress()
    if resume is not None:
        progress = checkpointer.restore(resume)
        LOG.info("Stage %s resumes from %s: epoch %d, step %d.", name, resume, progress.epoch, progress.global_step)
        if follow(folder / BEST) is None:
            progress.best_loss = math.inf  # the best so far is in the folder it came from: this one needs its own
    before = None if resume is None else recorded_config(resume.parent)
    if "tracker" not in vars(run):  # nothing refuses this start any more: its record is opened below
        show_views(run)
    checkpointer.notes["tracking_run"] = run.tracker.run_id
    checkpointer.notes["trained_backbones"] = trained_backbones(checkpointer.weights)
    if run.procs.is_main:
        if resume is not None and resume == follow(folder / LAST):
            checkpointer.remove_unlinked()
        record_start(run, name, folder, stage, progress, resume)
    data = run.batches(name, options)
    if before is not None:
        _tell_schedule(run, name, before["stage"][name]["epochs"], progress, data.steps_per_epoch)
    # Another number of processes may leave out another sample of an epoch, and a step with it.
    progress.step_in_epoch = min(progress.step_in_epoch, data.steps_per_epoch - 1)
    try:
        with explained(lambda: step_too_large(run, name, stage, options)):
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
            record_failure(run, name, error)
        raise
    if result.interrupted:
        if run.procs.is_main:
            run.experiment.record(name, status="interrupted")
        LOG.warning("Stage %s is saved at step %d; the same command goes on.", name, result.progress.global_step)
        raise KeyboardInterrupt
    finish(run, name, folder, result, trained)
    return stage


def _tell_schedule(run: Run, name: str, epochs: int, progress: Progress, steps_per_epoch: int) -> None:
    """Says what another number of epochs than at the last start does to the learning rate."""
    options, step = run.stage_options(name), progress.global_step
    if options.epochs == epochs:
        return
    total = options.epochs * steps_per_epoch
    old = run.optim.learning_rate(options.lr, max(0, step - 1), epochs * steps_per_epoch)
    new, last = (run.optim.learning_rate(options.lr, at, total) for at in (step, total - 1))
    LOG.info(
        "stage.%s.epochs=%d in place of %d: the learning rate follows the schedule of the new length, so it goes on at "
        "%.2e after %.2e, and ends at %.2e.",
        name, options.epochs, epochs, new, old, last,
    )  # fmt: skip
