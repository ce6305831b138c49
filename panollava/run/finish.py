"""Gives the trained model to the tracker, as its checkpoint or as a Hugging Face folder."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from panollava.checkpoint import BEST, STATE, TRAINED, find_checkpoint, read_state
from panollava.disk import write_file, writing
from panollava.evaluation.drawing import encode_png
from panollava.evaluation.gallery import gallery_picture
from panollava.evaluation.predictions import UNFINISHED
from panollava.evaluation.results import result_folder
from panollava.generation import GenerationOptions
from panollava.logs import LOG
from panollava.model.api import PanoLlava
from panollava.model.lora import LORA
from panollava.run.conditions import answer_conditions
from panollava.run.config_check import EvaluationOptions
from panollava.run.evaluate import PICTURE, Evaluation, answer_logs, evaluate_answers
from panollava.run.features import open_features
from panollava.run.restore import Restored
from panollava.run.run import Run, awaits_model, plain, wanted_model
from panollava.run_folder import CONFIG, METADATA
from panollava.stages.protocol import Stage
from panollava.tracking.location import absolute_uri, how_to_view
from panollava.tracking.tracker import ModelLoss

VIEWS = "views.png"


def show_views(run: Run) -> None:
    """Tracks a picture of the views of one panorama, and keeps it in the experiment's folder."""
    if not run.procs.is_main or not run.pending or run.cfg.dry_run:
        return
    panorama, crop = run.data.train.panorama(0), run.backbones.crop
    title = f"{run.cfg.crop.type}: {crop.summary}"
    path = run.experiment.root / VIEWS
    write_file(path, encode_png(gallery_picture(panorama, crop.views(panorama), crop.cameras, title=title)))
    run.tracker.image(path, VIEWS)


def evaluate_run(run: Run, trained: Stage | None) -> Evaluation | None:
    """Evaluates the run's last stage, if it can answer and was not evaluated yet.

    Args:
        run: the run.
        trained: its last stage with the best weights in it, or None where every stage was finished before.
    """
    last = run.cfg.stage.run[-1]
    if not run.procs.is_main:
        return None
    if run.cfg.dry_run:
        LOG.info("Dry run: the evaluation is left out.")
        return None
    if run.data.test is None or not run.stages[last].answers:
        return None
    options = EvaluationOptions(**plain(run.cfg.evaluation))
    is_done = trained is None and not run.evaluation_due
    if is_done and not (result_folder(Path(options.results_dir), run.experiment.name) / UNFINISHED).is_dir():
        return None
    subject = Restored(
        find_checkpoint(run.experiment.stage_folder(last)),
        {
            "stage": last,
            "crop": plain(run.cfg.crop),
            "model": run.backbones.model,
            "inputs": run.inputs(last),
            "generation": plain(run.cfg.generation),
        },
    )
    prompt, precision = run.backbones.prompt.format.record(), run.compute.name
    conditions = answer_conditions(
        subject.checkpoint, subject.settings, run.data.test, run.known, prompt=prompt, precision=precision
    )
    if is_done:
        for log in answer_logs(options, run.experiment.name, conditions):
            log.discard()  # of a process that died just after its result was on record
        return None
    model = None if trained is None or trained.name != last or run.is_sharded else trained.composite
    if model is not None:
        pano = PanoLlava(model.eval(), run.backbones.prompt, run.backbones.crop)
    else:  # finished earlier, but stopped before its evaluation was; or this process has but a share of it
        pano = PanoLlava.from_pretrained(
            run.experiment.stage_folder(last), device=run.compute.device, dtype=run.compute.dtype
        )
    pano.generation = GenerationOptions(**plain(run.cfg.generation))
    features = open_features(run.store, pano.model.vision.tower, pano.crop)
    with run.compute.autocast():
        result = evaluate_answers(
            pano,
            run.data.test,
            options,
            experiment=run.experiment.name,
            tracker=run.tracker,
            num_workers=run.trainer.num_workers,
            features=features,
            conditions=conditions,
            settings={**subject.subject(run.known), "split": "test", "data": plain(run.cfg.data)},
            written=lambda files: run.experiment.record(last, evaluated=str(files.folder)),
        )
    LOG.info("%s", result.summary("Test split"))
    LOG.info("Predictions and metrics: %s", result.files.folder)
    return result


def farewell(run: Run) -> None:
    """Says where everything is."""
    if not run.procs.is_main:
        return
    if run.cfg.dry_run:
        LOG.info("Dry run: everything was built and one batch went through each stage; nothing was kept.")
        return
    if not run.pending:
        LOG.info("Every stage of this config is finished already; overwrite=true would train it anew.")
    for name in run.cfg.stage.run:
        folder = run.experiment.stage_folder(name)
        if (folder / BEST).exists():
            LOG.info("Stage %s: %s", name, folder / BEST)
    pictures = [run.experiment.root / VIEWS, *(Path(f) / PICTURE for f in [_evaluated(run)] if f)]
    LOG.info("Pictures: %s", ", ".join(str(path) for path in pictures if path.is_file()))
    if run.tracker.run_id:
        LOG.info("Compare runs: %s", how_to_view(absolute_uri(run.cfg.tracking.uri)))


def _evaluated(run: Run) -> str | None:
    return run.experiment.state(run.cfg.stage.run[-1]).get("evaluated")


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
        if run.stages[last].answers:
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
