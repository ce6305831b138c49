"""What a run does after its last stage: it gives the model to the tracker, and logs the paths of the results."""

import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from panollava.checkpoint import BEST, STATE, TRAINED, find_checkpoint, read_state
from panollava.disk import writing
from panollava.logs import LOG
from panollava.model.api import PanoLlava
from panollava.model.lora import LORA
from panollava.run.evaluate import PICTURE
from panollava.run.preflight import VIEWS
from panollava.run.run import Run, awaits_model, wanted_model
from panollava.run_folder import CONFIG, METADATA
from panollava.tracking.location import absolute_uri, how_to_view
from panollava.tracking.tracker import ModelLoss


def keep_model(run: Run) -> None:
    """Gives the last stage's best checkpoint to the tracker, as it is or as an export, if ``tracking`` says so."""
    last = run.cfg.stage.run[-1]
    if not (run.procs.is_main and awaits_model(run) and run.tracker.run_id):
        return
    folder = run.experiment.stage_folder(last)
    pano = PanoLlava.from_pretrained(folder) if run.tracker.model_form == "export" else None
    if pano is not None:
        pano.merge_lora_weights()
    with ExitStack() as stack:
        with writing(run.experiment.root):
            # In the run's folder, so that what waits for a server can be links instead of copies. What is not
            # removed here is removed at the next start.
            temporary = TemporaryDirectory(prefix=".tmp-model-", dir=run.experiment.root, ignore_cleanup_errors=True)
            target = Path(stack.enter_context(temporary)) / "model"
            if pano is not None:
                pano.save_pretrained(target)
            else:
                _copy_checkpoint(folder, target)
            for path in target.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors are written for their owner alone
        measured_on = f"{last}, validation data {' '.join(run.inputs(last)['val'].values())}"
        if run.stages[last].answers:
            measured_on += f", {run.cfg.model.language.name}"
        run.tracker.model(target, ModelLoss(read_state(find_checkpoint(folder))["validation_loss"], measured_on))
    finished = run.experiment.state(last).get("finished")
    run.experiment.record(last, kept_model={**(wanted_model(run) or {}), "finished": finished})


def _copy_checkpoint(folder: Path, target: Path) -> None:
    """Copies what opens a stage's best checkpoint, and nothing else."""
    checkpoint = find_checkpoint(folder)
    (target / BEST).mkdir(parents=True)
    for name in (TRAINED, STATE):
        shutil.copyfile(checkpoint / name, target / BEST / name)
    for name in (METADATA, CONFIG):
        shutil.copyfile(folder / name, target / name)
    if (folder / LORA).is_dir():
        shutil.copytree(folder / LORA, target / LORA)


def summarize(run: Run) -> None:
    """Logs where checkpoints, pictures and tracked metrics are."""
    if not run.procs.is_main:
        return
    if run.cfg.dry_run:
        LOG.info("Dry run: everything was built and one batch went through each stage; nothing was kept.")
        return
    if not run.pending:
        LOG.info("Every stage of this config is finished already; overwrite=true would train it anew.")
    for name in run.cfg.stage.run:
        best = run.experiment.stage_folder(name) / BEST
        if best.exists():
            LOG.info("Stage %s: %s", name, best)
    evaluated = run.experiment.state(run.cfg.stage.run[-1]).get("evaluated")
    pictures = [run.experiment.root / VIEWS, *([Path(evaluated) / PICTURE] if evaluated else [])]
    LOG.info("Pictures: %s", ", ".join(str(path) for path in pictures if path.is_file()))
    if run.tracker.run_id:
        LOG.info("Compare runs: %s", how_to_view(absolute_uri(run.cfg.tracking.uri)))
