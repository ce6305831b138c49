"""Runs one stage: builds it, loads or resumes its weights, trains it, and writes its record."""

import math
import platform
import subprocess
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from panollava.checkpoint import (
    BEST,
    LAST,
    STANDS_ON,
    TRAINED,
    find_checkpoint,
    follow,
    read_state,
    read_weights,
    replace_folder,
)
from panollava.component import label, outside_packages
from panollava.config.job import this_start
from panollava.data.loader import StageLoader
from panollava.disk import write_file
from panollava.logs import LOG, log_file
from panollava.model.lora import LORA, has_lora, save_lora
from panollava.run.build_stage import (
    base_checkpoint,
    borrow,
    build_stage,
    is_left_out,
    start_from,
    trained_backbones,
)
from panollava.run.conditions import FINISHED, SKIPPED, STARTED_WEIGHTS, recorded_config
from panollava.run.memory import auto_batch_size, explained, forecast, model_too_large, step_too_large
from panollava.run.preflight import show_views
from panollava.run.run import Run, plain, resume_path
from panollava.run.sources import file_key
from panollava.run_folder import CURVE, short_name, write_metadata
from panollava.stages.protocol import Stage
from panollava.stages.registry import for_metadata
from panollava.training.checkpointer import Checkpointer, Progress, read_progress
from panollava.training.learning import Learning, judge
from panollava.training.loop import FitResult, fit, validate
from panollava.training.options import BatchSplit, StageOptions, elastic_resume, make_optimizer
from panollava.training.parallel import copy_into, shard


def run_stage(run: Run, name: str) -> Stage | None:
    """Trains one stage to its end and leaves its best weights in the returned module.

    Returns:
        The stage, or None where it was left out because there is nothing for it to learn.

    Raises:
        ValueError: it is the only stage and cannot run; or training stopped, and the message says why.
        KeyboardInterrupt: Ctrl-C; what was trained is saved.
    """
    if is_left_out(run, name):
        if run.procs.is_main:
            run.experiment.record(name, status=SKIPPED, start=this_start()[0])
        return None
    folder = run.experiment.stage_folder(name)
    if name in run.experiment.replaced and run.procs.is_main:
        run.experiment.clear(name)  # only now: everything that could be wrong with the new run was looked at
    run.procs.barrier()
    log = log_file(folder / "logs", name) if run.procs.is_main else nullcontext()
    with log, explained(lambda: model_too_large(run, name)):
        try:
            return _train(run, name, folder, run.stage_options(name))
        finally:
            if run.is_sharded:  # the next model cannot be built around shards
                run.backbones.forget()


def _train(run: Run, name: str, folder: Path, options: StageOptions) -> Stage:
    # Model and weights: of a checkpoint of this stage (resume), else of an earlier stage or run (init_from).
    stage = _built(run, name)
    trained = stage.trained()
    frozen, inherited = stage.frozen_backbone(), {}
    resume = run.agreed_path(run.resume_point(name))
    if resume is not None:
        shared = read_state(resume).get("share")
        options = elastic_resume(options, shared, run.procs.world_size, coupled=bool(stage.coupled))
    elif not stage.borrows:
        inherited = start_from(run, name, trained, frozen)
    source = base_checkpoint(run, name) if resume is None else None
    base = borrow(run, name, stage, resume) if stage.borrows else None
    # Optimizer, and the state of the run that is resumed.
    if run.trainer.auto_batch:
        options = auto_batch_size(run, name, stage, options)
    forecast(run, name, stage, options)
    optimizer, scaler = make_optimizer(trained, run.optim, options.lr), run.compute.scaler()
    checkpointer = Checkpointer(
        folder,
        prefix=_checkpoint_prefix(run),
        stage_name=name,
        parameters=trained,
        optimizer=optimizer,
        scaler=scaler,
        procs=run.procs,
        notes={
            "has_lora": stage.composite is not None and has_lora(stage.composite),
            "number_format": run.number_format,
            "share": asdict(BatchSplit(run.procs.world_size, options.batch_size, options.accumulate)),
        },
        keep_best=run.trainer.keep_best,
        on_save=partial(record_best, run, name, folder, stage),
        frozen=frozen,
    )
    if base is not None:
        checkpointer.notes[STANDS_ON] = base
    checkpointer.inherit(inherited)
    progress = Progress()
    if resume is not None:
        progress = checkpointer.restore(resume)
        LOG.info("Stage %s resumes from %s: epoch %d, step %d.", name, resume, progress.epoch, progress.global_step)
        if follow(folder / BEST) is None:
            progress.best_loss = math.inf  # the best so far is in the folder it came from: this one needs its own
    # Records: nothing can refuse this start any more.
    before = None if resume is None else recorded_config(resume.parent)
    if "tracker" not in vars(run):  # the first stage that trains opens it
        show_views(run)
    checkpointer.notes["tracking_run"] = run.tracker.run_id
    checkpointer.notes["trained_backbones"] = trained_backbones(checkpointer.weights)
    if run.procs.is_main:
        if resume is not None and resume == follow(folder / LAST):
            checkpointer.remove_unlinked()
        _record_start(run, name, folder, stage, progress, resume, source)
    # Data, and the loop.
    data = run.batches(name, options, places=stage.places)
    if before is not None:
        _log_schedule(run, name, before["stage"][name]["epochs"], progress, data.steps_per_epoch)
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
            learning = None if result.interrupted else measure_learning(run, name, stage, data, result)
    except BaseException as error:
        if run.procs.is_main:
            _record_failure(run, name, error)
        raise
    if result.interrupted:
        if run.procs.is_main:
            run.experiment.record(name, status="interrupted")
        step = result.progress.global_step
        without = " without overwrite=true" if run.cfg.overwrite else ""
        LOG.warning("Stage %s is saved at step %d; run the same command%s to resume.", name, step, without)
        raise KeyboardInterrupt
    finish(run, name, folder, result, learning)
    return stage


def _built(run: Run, name: str) -> Stage:
    """The stage on its device, sharded where the run is; its new weights are drawn from the seed."""
    torch.manual_seed(run.seed(name))
    stage = build_stage(run, name)
    if run.is_sharded:
        tower = run.backbones.tower
        makes_features = not any(weight.requires_grad for weight in tower.parameters())
        shard(stage, run.procs, run.compute.device, exclude=tower if makes_features else None)
    stage.to(run.compute.device)
    torch.manual_seed(run.seed(name) + run.procs.rank)  # another dropout in each process
    return stage


def _log_schedule(run: Run, name: str, epochs: int, progress: Progress, steps_per_epoch: int) -> None:
    """Logs how the learning rate changes where a stage resumes with another number of epochs."""
    options, step = run.stage_options(name), progress.global_step
    if options.epochs == epochs:
        return
    total = options.epochs * steps_per_epoch
    old = run.optim.learning_rate(options.lr, max(0, step - 1), epochs * steps_per_epoch)
    new, last = (run.optim.learning_rate(options.lr, at, total) for at in (step, total - 1))
    LOG.info(
        "stage.%s.epochs=%d in place of %d: the learning rate follows the schedule of the new length, continues at "
        "%.2e after %.2e, and ends at %.2e.",
        name, options.epochs, epochs, new, old, last,
    )  # fmt: skip


def measure_learning(run: Run, name: str, stage: Stage, data: StageLoader, result: FitResult) -> Learning | None:
    """Loads the best weights into the stage, and measures whether it was still learning; None without answers.

    It takes one more pass over the validation split.
    """
    run.procs.barrier()
    best = find_checkpoint(run.experiment.stage_folder(name))
    tensors = read_weights(best)
    for key, parameter in stage.trained().items():
        copy_into(parameter, tensors[key])
    run.procs.barrier()  # the folder of a dry run is removed when the first process is done
    if not run.stages[name].answers:
        return None
    batches, swapped = data.swapped_validation(), None
    if batches is not None:
        with run.procs.detect_lost():
            swapped = validate(stage, stage, data, run.compute, run.procs, batches=batches)["loss"]
    return judge(result.progress.whole_curve, read_state(best)["validation_loss"], swapped)


def finish(run: Run, name: str, folder: Path, result: FitResult, learning: Learning | None) -> None:
    """Records the result of a stage."""
    if not run.procs.is_main:
        return
    best = find_checkpoint(folder)
    loss, progress = read_state(best)["validation_loss"], result.progress
    write_file(folder / CURVE, progress.curve.csv())
    run.tracker.metrics(
        {
            f"{name}/seconds": progress.seconds,
            f"{name}/best_val_loss": loss,
            f"{name}/mean_samples_per_second": progress.samples_per_second,
            f"{name}/peak_memory_gb": progress.peak_memory_gb,
        },
        step=progress.global_step,
    )
    if learning is not None:
        run.tracker.tags({f"panollava.learning.{name}": learning.verdict})
        learnt = {f"{name}/{key}": value for key, value in learning.measures.items()}
        run.tracker.metrics(learnt, step=progress.global_step)
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
        learning=None if learning is None else learning.record(),
    )
    LOG.info(
        "Stage %s: %.1f s, %.1f samples/s, peak %.2f GB, best validation loss %.4f in %s",
        name, progress.seconds, progress.samples_per_second, progress.peak_memory_gb, loss, folder / BEST,
    )  # fmt: skip
    for concern in result.concerns:
        LOG.warning("Stage %s ended with a concern: %s", name, concern)
    if learning is not None:
        LOG.info("Stage %s: still learning at its end: %s (%s).", name, learning.verdict, learning.why)


def stage_metadata(run: Run, name: str, progress: Progress, loss: float | None) -> dict[str, Any]:
    """Content of ``checkpoint_metadata.json``: enough to rebuild the model, to read its data, and to cite it."""
    cfg, options, record = run.cfg, run.stage_options(name), run.stages[name]
    data, model, inputs = plain(cfg.data), plain(cfg.model), run.inputs(name)
    for part in model.keys() & inputs.keys():  # a hub model is opened again at the commit it was trained with
        model[part]["revision"] = (inputs[part] or {}).get("commit", model[part].get("revision"))
    return {
        "experiment_name": run.experiment.name,
        "stage": name,
        "model_config": {
            "vision_name": cfg.model.vision.name,
            "language_model_name": cfg.model.language.name,
            "resampler_type": cfg.model.resampler.type,
            "latent_dimension": run.backbones.outline.width,
            "image_size": list(run.backbones.tower.image_size),
        },
        "training_config": {
            "crop_strategy": cfg.crop.type,
            "fov_deg": cfg.crop.get("fov_deg"),
            "overlap_ratio": cfg.crop.get("overlap"),
            "effective_overlap": run.backbones.crop.strategy.effective_overlap,
            "learning_rate": options.lr,
            "batch_size": options.batch_size,
            "use_vision_processor": True,
        },
        "dataset": {
            "train_csv": data.get(file_key(data, "train")),
            "val_csv": data.get(file_key(data, "val")),
            "dataset_name": data["name"],
        },
        "epoch": progress.epoch,
        "step": progress.global_step,
        "validation_loss": loss,
        "model": model,
        "crop": plain(cfg.crop),
        "data": data,
        "evaluation": plain(cfg.evaluation),
        "generation": plain(cfg.generation),
        "stage_settings": plain(cfg.stage[name]),
        "precision": cfg.trainer.precision,
        "number_format": run.number_format,
        "inputs": inputs,
        "workplace": str(Path.cwd()),
        "packages": outside_packages({**plain(cfg), "stage": {name: plain(cfg.stage[name])}}),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in _RECORDED}},
        "git_commit": _git_commit(),
        **({"prompt": run.backbones.prompt.format.record()} if record.answers else {}),
        **({"classes": list(getattr(run.data.train, "class_names", ()))} if record.finds else {}),
        **for_metadata(record),
    }


_RECORDED = ("panollava", "torch", "transformers", "peft", "timm", "numpy", "opencv-python")


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).resolve().parents[2]), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None  # not a checkout, or no git here: the versions above still say what ran


def _checkpoint_prefix(run: Run) -> str:
    """Start of the checkpoints' names: ``<vision>_<resampler>_<crop>_<dataset>``."""
    cfg = run.cfg
    crop = label(cfg.crop.type).replace("_", "-")
    return f"{short_name(cfg.model.vision.name)}_{label(cfg.model.resampler.type)}_{crop}_{cfg.data.name}"


def _record_start(
    run: Run, name: str, folder: Path, stage: Stage, progress: Progress, resumed: Path | None, source: Path | None
) -> None:
    """Records that a stage runs, with the metadata of the best checkpoint so far.

    Args:
        resumed: the checkpoint that has the progress; None for a stage that begins.
        source: the checkpoint that a stage begins from; None for new weights.
    """
    reached, loss, best = progress, None, follow(folder / BEST)
    if best is not None:
        state = read_state(best)
        reached, loss = read_progress(state, best), state.get("validation_loss")
    if best is not None and best == resumed:
        # A process that was killed right after it had saved its best has not written all that belongs to it.
        record_best(run, name, folder, stage, reached, loss)
    else:
        write_metadata(folder, stage_metadata(run, name, reached, loss), OmegaConf.to_yaml(run.cfg))
    values: dict[str, Any] = {"status": "running", "tracking_run": run.tracker.run_id, "start": this_start()[0]}
    if resumed is None or resumed.resolve().parent != folder.resolve():  # what resumes here has begun before
        weights = None if source is None else run.known.identify(source / TRAINED)
        values |= {"started": _now(), STARTED_WEIGHTS: weights, "resumed": None}
    elif STARTED_WEIGHTS not in run.experiment.state(name):  # of an older version, which compared times alone
        values["started"] = _now()
    if resumed is not None and (given := resume_path(run.cfg)) is not None:
        values["resumed"] = given
    run.experiment.record(name, **values)


def record_best(run: Run, name: str, folder: Path, stage: Stage, progress: Progress, loss: float | None) -> None:
    """Writes what belongs to a best checkpoint: metadata, and the adapter in peft's format."""
    write_metadata(folder, stage_metadata(run, name, progress, loss), OmegaConf.to_yaml(run.cfg))
    model = stage.composite
    if model is not None and has_lora(model):
        tensors = read_weights(find_checkpoint(folder))  # full, where each process has only a shard of them
        replace_folder(folder / LORA, lambda target: save_lora(model, target, tensors))


def _record_failure(run: Run, name: str, error: BaseException) -> None:
    status = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
    try:
        run.experiment.record(name, status=status, error=f"{type(error).__name__}: {error}"[:500])
    except OSError:  # a disk that ends a run does not take this either, and the first message is the one to read
        LOG.debug("The end of stage %s could not be recorded.", name, exc_info=True)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
