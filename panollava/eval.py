"""python -m panollava.eval checkpoint=<run folder>: answers a split's questions and scores them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval
from omegaconf import DictConfig, OmegaConf

from panollava.component import allow, outside_packages
from panollava.config.check import check_section, refuse
from panollava.config.entrypoint import entrypoint
from panollava.data.scenes.questions import names_direction, turn_words
from panollava.evaluation.clip import clip_config
from panollava.evaluation.exact_match import rotation_consistency
from panollava.evaluation.metrics import check_metrics
from panollava.evaluation.results import write_measures
from panollava.logs import LOG, configure_console, counted
from panollava.model.api import PanoLlava
from panollava.run.config_check import EvaluationOptions, check_tracking
from panollava.run.data import asked_data, asked_name
from panollava.run.evaluate import answer_questions, answer_split
from panollava.run.features import open_features
from panollava.run.restore import Restored, measure, restore
from panollava.run.run import open_tracker
from panollava.run.sections import check_generation
from panollava.run.sources import open_source
from panollava.store.catalogue import StoreOptions
from panollava.tracking.tracker import Tracker
from panollava.training.precision import Compute, recorded_compute


@dataclass(frozen=True)
class EvalOptions:
    """Keys of ``conf/eval.yaml``; see there."""

    checkpoint: str | None
    config: str | None
    split: Literal["train", "val", "test"]
    csv_input: str | None
    world_seed: Annotated[int, Interval(ge=0, lt=2**32)] | None
    world_scenes: Annotated[int, Interval(ge=1)] | None
    turn_deg: float | None
    max_samples: Annotated[int, Interval(ge=1)] | None
    blank: bool | None
    loss: bool
    words: Literal["auto", "ptb", "unicode"] | None
    meteor: bool | None
    clip: str | None
    metrics: list[str] | None
    batch_size: Annotated[int, Interval(ge=1)] | None
    results_dir: str
    log_samples: bool
    log_interval: Annotated[int, Interval(ge=1)]
    log_max_samples: Annotated[int, Interval(ge=0)]
    device: str
    num_workers: Annotated[int, Interval(ge=0)]
    allow: str | list[str]


@entrypoint("eval", bare="checkpoint", loose=("crop",))
def main(cfg: DictConfig) -> None:
    """Evaluates one run.

    Args:
        cfg: composed from ``conf/eval.yaml`` and the command line.
    """
    configure_console()
    options, tracking, store, crop, generation = _checked(cfg)
    if options.clip is not None:
        clip_config(options.clip)
    allow(options.allow)
    run = restore(options.checkpoint, config=options.config, crop=crop, generation=generation)
    for line in run.lines():
        LOG.info("%s", line)
    compute = recorded_compute(options.device, run.settings["precision"])
    data = asked_data(options, run.settings["data"], turn_deg=options.turn_deg)
    tags = {"panollava.folder": str(run.folder)}
    name, out = f"eval {run.settings['experiment_name']}", Path(options.results_dir)
    with open_tracker(tracking, run_name=name, outbox=out, tags=tags) as tracker:
        if not run.record.answers:
            _measure(run, None, data, options.split, options, store, compute, tracker)
            return
        pano = PanoLlava.from_checkpoint(run.checkpoint, run.settings, device=compute.device, dtype=compute.dtype)
        if options.loss:
            recorded = run.settings.get("validation_loss")
            LOG.info("Validation loss in training: %s", "not recorded" if recorded is None else f"{recorded:.6f}")
            # A data file that is named has no validation split beside it: the loss is of its own answers.
            split = "val" if options.csv_input is None else options.split
            _measure(run, pano, data, split, options, store, compute, tracker)
        _answer(run, pano, data, options, store, compute, tracker)


def _answer(
    run: Restored,
    pano: PanoLlava,
    data: dict[str, Any],
    options: EvalOptions,
    store: StoreOptions,
    compute: Compute,
    tracker: Tracker,
) -> None:
    """Answers, scores and records a split's questions."""
    evaluation = _evaluation(options, run.settings["evaluation"])
    workers = options.num_workers
    result = answer_split(
        run, data, options.split, evaluation, compute, tracker, pano=pano, store=store, num_workers=workers
    )
    LOG.info("%s", result.summary(asked_name(options, data)))
    if options.turn_deg:
        upright = open_source({**data, "turn_deg": 0.0}, options.split, pano.crop)
        features = open_features(store, pano.model.vision.tower, pano.crop)
        with compute.autocast():
            before = answer_questions(pano, upright, evaluation, num_workers=workers, features=features)
        count, share = rotation_consistency(before, result.predictions, partial(turned, turn_deg=options.turn_deg))
        LOG.info("Of %s naming a direction, %.1f %% turned along.", counted(count, "answer"), 100 * share)
    LOG.info("Predictions and metrics: %s", result.files.folder)


def _measure(
    run: Restored,
    pano: PanoLlava | None,
    data: dict[str, Any],
    split: str,
    options: EvalOptions,
    store: StoreOptions,
    compute: Compute,
    tracker: Tracker,
) -> None:
    """Takes and records the loss and the stage's own measures on a split."""
    found = measure(run, pano, data, split, compute, store=store, num_workers=options.num_workers)
    LOG.info("Stage %s on %s: %s", run.stage, split, ", ".join(f"{name} {value:.6f}" for name, value in found.items()))
    tracker.metrics({f"{split}/{name}": value for name, value in found.items()}, step=0)
    path = write_measures(
        Path(options.results_dir),
        run.settings["experiment_name"],
        found,
        {**run.subject(store.file_identity()), "split": split, "data": data},
    )
    LOG.info("Measures: %s", path)


def turned(answer: str, turn_deg: float) -> str | None:
    """What an answer becomes when the panorama is turned; None where it names no direction."""
    return turn_words(answer, turn_deg) if names_direction(answer) else None


def _checked(cfg: DictConfig) -> tuple[EvalOptions, dict[str, Any], StoreOptions, dict[str, Any], dict[str, Any]]:
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    tracking, crop, store = values.pop("tracking"), values.pop("crop"), values.pop("store")
    generation = values.pop("generation")
    problems = check_section(values, EvalOptions, "") + check_tracking(tracking)
    problems += check_section(store, StoreOptions, "store") + check_generation(generation, recorded=True)
    allow(outside_packages(values))
    refuse(problems + check_metrics(values["metrics"], "metrics"))
    return EvalOptions(**values), tracking, StoreOptions(**store), crop, generation


def _evaluation(options: EvalOptions, recorded: dict[str, Any]) -> EvaluationOptions:
    """The run's own evaluation settings with what the command line changes."""
    recorded = {"clip": None, "metrics": None, **recorded}  # older runs do not have them
    keys = ("batch_size", "blank", "words", "meteor", "clip", "metrics")
    asked = {key: value for key in keys if (value := getattr(options, key)) is not None}
    return EvaluationOptions(
        **{key: recorded[key] for key in keys} | asked,
        enabled=True,
        max_samples=options.max_samples,
        results_dir=options.results_dir,
        log_samples=options.log_samples,
        log_interval=options.log_interval,
        log_max_samples=options.log_max_samples,
    )


if __name__ == "__main__":
    main()
