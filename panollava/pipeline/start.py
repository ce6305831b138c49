"""The weights a stage starts from: the stage before it, a named run, or the newest vision stage that suits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from panollava.assemble.check import STAGES
from panollava.assemble.conditions import differences
from panollava.assemble.run import Run
from panollava.assemble.status import FINISHED, check_inputs, recorded_config, recorded_inputs
from panollava.checkpoint import BEST, LAST, find_checkpoint, follow, read_state, read_weights
from panollava.logs import LOG
from panollava.pipeline.inherited import check_backbones
from panollava.run_folder import differing_keys, find_run_folder, known_checkpoints, read_metadata
from panollava.training.transfer import transfer

AUTO, NONE, NEWEST = "auto", "none", "newest"
"""Values of ``init_from`` that are no folder."""


def check_start(run: Run, name: str) -> None:
    """Whether the checkpoint a stage would start from or resume can be read, without reading its tensors.

    Raises:
        FileNotFoundError: ``init_from`` or ``resume`` names no checkpoint.
        ValueError: it is not one of ours.
    """
    if name == run.pending[0] and run.cfg.resume not in ("auto", "none") and not run.cfg.overwrite:
        _check_resume(run)
    if (resume := run.resume_point(name)) is not None:
        read_state(resume)
        return
    if _is_first(run, name) and (source := _source(run, name)) is not None:
        read_state(source)


def _check_resume(run: Run) -> None:
    """Whether ``resume=<path>`` names a checkpoint of a stage that is trained now, and of this very run."""
    path = Path(run.cfg.resume).expanduser()
    checkpoint = follow(path / LAST) or find_checkpoint(path)
    stage = read_state(checkpoint)["stage"]
    if stage not in run.pending:
        raise ValueError(
            f"resume={checkpoint} is a checkpoint of stage {stage!r}, not {', '.join(map(repr, run.pending))}, which "
            f"is to be trained. To start from its weights use init_from={checkpoint}."
        )
    recorded = recorded_config(checkpoint.parent)
    if different := differing_keys(stage, run.plain, recorded) if recorded else {}:
        shown = "; ".join(f"{key}: {old!r} there, {new!r} now" for key, (old, new) in different.items())
        raise ValueError(
            f"resume={checkpoint} is of a run with another config ({shown}), and resuming goes on with the very same "
            f"run. Give the same values, or start from its weights with init_from={checkpoint}."
        )
    check_inputs(run, stage, checkpoint.parent, f"or start from its weights with init_from={checkpoint}")


def start_from(
    run: Run, name: str, trained: dict[str, nn.Parameter], frozen: dict[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Loads what fits of the weights that ``init_from`` names.

    Args:
        run: the run.
        name: the stage.
        trained: its parameters that train, by name.
        frozen: weights of its backbones that do not.

    Returns:
        Weights of the frozen backbones that an earlier stage has trained, not yet put in their place.

    Raises:
        ValueError: nothing fits, or a backbone was trained further that is not the one of this run.
    """
    source = run.agreed_path(_source(run, name))
    if source is None:
        if name != STAGES[0]:
            LOG.info(
                "Stage %s starts fresh: %s has no finished earlier stage (init_from=<folder> starts from another run).",
                name,
                run.experiment.root,
            )
        return {}
    tensors = read_weights(source)
    if run.procs.is_main:
        own = {part: run.inputs(name).get(part) for part in ("vision", "language")}
        if changed := differences(recorded_inputs(source.parent) or {}, own):
            LOG.warning(
                "%s was trained on backbones of other content than this run's (%s).", source, ", ".join(changed)
            )
    check_backbones(run, name, source, tensors, {**frozen, **trained})
    inherited = {key: tensors[key] for key in tensors.keys() & frozen.keys()}
    report = transfer(tensors, trained, kept=inherited)
    LOG.info("%s", report.summary(source))
    if details := report.details():
        LOG.debug("%s", details)  # hundreds of names: for the log file alone
    if not report.loaded:
        raise ValueError(
            f"init_from={source}: none of its {len(tensors)} tensors fits this model"
            f"{' (' + '; '.join(report.misfits[:3]) + ')' if report.misfits else ''}. "
            f"Vision checkpoints below {run.cfg.output_dir}: {_listed(run)}. Use one of the same resampler and sizes, "
            "or init_from=none."
        )
    if run.procs.is_main:
        run.experiment.record(name, started_from=str(source))
    return inherited


def _source(run: Run, name: str) -> Path | None:
    """Checkpoint folder to start from: the named one, or the same experiment's previous stage."""
    earlier = STAGES[: STAGES.index(name)]
    asked, is_first = run.cfg.init_from, _is_first(run, name)
    if asked == NONE and is_first:
        return None
    if asked == NEWEST and is_first:
        return _newest_vision(run)
    if asked not in (AUTO, NONE, NEWEST) and is_first:
        path = Path(asked).expanduser()
        if not path.exists():
            raise ValueError(
                f"init_from={path} does not exist. Give auto, none, newest, or a run's folder. Vision checkpoints "
                f"below {run.cfg.output_dir}: {_listed(run)}."
            )
        if path.suffix == ".ckpt":
            return find_checkpoint(path)
        # Of an experiment's stages the ones before this one come first: it is their work that goes on.
        order = [*reversed(earlier), *(stage for stage in reversed(STAGES) if stage not in earlier)]
        return find_checkpoint(find_run_folder(path, order))
    for previous in reversed(earlier):
        folder = run.experiment.stage_folder(previous)
        if run.experiment.state(previous).get("status") == FINISHED and follow(folder / BEST):
            return find_checkpoint(folder)
    return None


def _newest_vision(run: Run) -> Path:
    """The newest checkpoint of a vision stage with this encoder and this resampler, whatever its crop."""
    model = run.cfg.model
    for folder in known_checkpoints(Path(run.cfg.output_dir), "vision"):
        recorded: dict[str, Any] = read_metadata(folder)["model_config"]
        if (recorded["vision_name"], recorded["resampler_type"]) == (model.vision.name, model.resampler.type):
            return find_checkpoint(folder)
    raise ValueError(
        f"init_from=newest: no vision stage below {run.cfg.output_dir} has vision.name={model.vision.name} and "
        f"resampler={model.resampler.type}. Vision checkpoints there: {_listed(run)}. Train one, python -m "
        f"panollava.train stage=vision resampler={model.resampler.type}, or name a run, init_from=<folder>."
    )


def _is_first(run: Run, name: str) -> bool:
    """Whether the run trains no stage before this one."""
    return not any(stage in run.cfg.stage.run for stage in STAGES[: STAGES.index(name)])


def _listed(run: Run) -> str:
    return ", ".join(map(str, known_checkpoints(Path(run.cfg.output_dir), "vision")[:5])) or "none"
