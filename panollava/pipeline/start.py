"""What a stage starts from: the weights of an earlier stage or run, as far as they fit."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from panollava.assemble.check import STAGES
from panollava.assemble.run import Run
from panollava.assemble.status import FINISHED
from panollava.checkpoint import BEST, TRAINED, find_checkpoint, follow, read_state, read_tensors
from panollava.logs import LOG
from panollava.run_folder import find_run_folder, known_checkpoints
from panollava.training.transfer import transfer


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


def start_from(run: Run, name: str, trained: dict[str, nn.Parameter]) -> None:
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
