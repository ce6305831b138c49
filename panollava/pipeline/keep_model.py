"""Gives the trained model to the tracker, as its checkpoint or as a Hugging Face folder."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from panollava.assemble.run import Run, plain
from panollava.assemble.status import awaits_model, wanted_model
from panollava.checkpoint import BEST, STATE, TRAINED, find_checkpoint, read_state
from panollava.disk import writing
from panollava.model.facade import PanoLlava
from panollava.model.lora import LORA
from panollava.run_folder import CONFIG, METADATA
from panollava.tracking.tracker import ModelLoss


def keep_model(run: Run) -> None:
    """Keeps the best checkpoint of the last stage with the run in the tracker, where ``tracking`` asks for it.

    Args:
        run: the run, all of whose stages are finished.
    """
    last, config = run.cfg.stage.run[-1], plain(run.cfg)
    if not (run.procs.is_main and awaits_model(config, run.experiment) and run.tracker.run_id):
        return
    folder = run.experiment.stage_folder(last)
    pano = PanoLlava.from_pretrained(folder) if run.tracker.model_form == "export" else None
    if pano is not None:
        pano.merge_lora_weights()
    with ExitStack() as stack:
        with writing(run.experiment.root):
            # Beside the run, so that what waits for a server can be links instead of copies; what cannot be removed
            # goes with the next start.
            place = TemporaryDirectory(prefix=".tmp-model-", dir=run.experiment.root, ignore_cleanup_errors=True)
            target = Path(stack.enter_context(place)) / "model"
            if pano is not None:
                pano.save_pretrained(target)
            else:
                gather_checkpoint(folder, target)
            for path in target.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors are written for their owner alone
        measured_on = f"{last}, validation data {' '.join(run.inputs(last)['val'].values())}"
        if last != "vision":
            measured_on += f", {run.cfg.model.language.name}"
        run.tracker.model(target, ModelLoss(read_state(find_checkpoint(folder))["validation_loss"], measured_on))
    finished = run.experiment.state(last).get("finished")
    run.experiment.record(last, kept_model={**(wanted_model(config["tracking"]) or {}), "finished": finished})


def gather_checkpoint(folder: Path, target: Path) -> None:
    """A run folder with nothing in it but what opens its best checkpoint.

    Args:
        folder: of the stage.
        target: made here.
    """
    checkpoint = find_checkpoint(folder)
    (target / BEST).mkdir(parents=True)
    for name in (TRAINED, STATE):
        shutil.copyfile(checkpoint / name, target / BEST / name)
    for name in (METADATA, CONFIG):
        shutil.copyfile(folder / name, target / name)
    if (folder / LORA).is_dir():
        shutil.copytree(folder / LORA, target / LORA)
