"""python -m panollava.eval checkpoint=<run folder>: answers a split's questions and scores them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval
from omegaconf import DictConfig, OmegaConf

from panollava.assemble.check import EvaluationOptions, check_tracking
from panollava.assemble.data import open_source
from panollava.assemble.tracking import open_tracker
from panollava.config.check import check_section
from panollava.config.entrypoint import entrypoint
from panollava.data.scenes.questions import names_direction, turn_words
from panollava.evaluation.turns import turn_consistency
from panollava.logs import LOG, configure_console
from panollava.model.facade import PanoLlava
from panollava.pipeline.evaluate import answer_questions, evaluate_answers
from panollava.run_folder import CONFIG, find_run_folder
from panollava.training.precision import choose_compute


@dataclass(frozen=True)
class EvalOptions:
    """Keys of ``conf/eval.yaml``; see there."""

    checkpoint: str
    split: Literal["train", "val", "test"]
    csv_input: str | None
    world_seed: Annotated[int, Interval(ge=0, lt=2**32)] | None
    world_scenes: Annotated[int, Interval(ge=1)] | None
    turn_deg: float | None
    max_samples: Annotated[int, Interval(ge=1)] | None
    blank: bool
    words: Literal["auto", "ptb", "unicode"]
    meteor: bool
    batch_size: Annotated[int, Interval(ge=1)] | None
    max_new_tokens: Annotated[int, Interval(ge=1)] | None
    results_dir: str
    log_samples: bool
    log_interval: Annotated[int, Interval(ge=1)]
    log_max_samples: Annotated[int, Interval(ge=0)]
    device: str
    num_workers: Annotated[int, Interval(ge=0)]


@entrypoint("eval")
def main(cfg: DictConfig) -> None:
    """Evaluates one run.

    Args:
        cfg: composed from ``conf/eval.yaml`` and the command line.
    """
    configure_console()
    options, tracking = _checked(cfg)
    folder = find_run_folder(Path(options.checkpoint).expanduser())
    recorded: Any = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    precision = recorded["trainer"]["precision"]
    compute = choose_compute(options.device, "auto" if precision == "fp16" else precision)  # fp16 needs a GPU
    pano = PanoLlava.from_pretrained(options.checkpoint, device=compute.device, dtype=compute.dtype)
    data = _data(options, recorded["data"])
    source = open_source(data, options.split, pano.crop)
    LOG.info("Evaluating %s on %s.", folder, source.name)
    evaluation = EvaluationOptions(
        enabled=True,
        batch_size=options.batch_size or recorded["evaluation"]["batch_size"],
        max_new_tokens=options.max_new_tokens or recorded["evaluation"]["max_new_tokens"],
        max_samples=options.max_samples,
        blank=options.blank,
        words=options.words,
        meteor=options.meteor,
        results_dir=options.results_dir,
        log_samples=options.log_samples,
        log_interval=options.log_interval,
        log_max_samples=options.log_max_samples,
    )
    experiment = pano.metadata["experiment_name"]
    tags = {"panollava.folder": str(folder)}
    with open_tracker(tracking, run_name=f"eval {experiment}", tags=tags) as tracker, compute.autocast():
        result = evaluate_answers(
            pano,
            source,
            evaluation,
            experiment=experiment,
            tracker=tracker,
            num_workers=options.num_workers,
            settings={"checkpoint": str(folder), "split": options.split, "data": data},
        )
    LOG.info("%s", result.summary(source.name))
    if options.turn_deg:
        upright = open_source({**data, "turn_deg": 0.0}, options.split, pano.crop)
        with compute.autocast():
            before = answer_questions(pano, upright, evaluation, num_workers=options.num_workers)
        along = turn_consistency(before, result.predictions, partial(turned, turn_deg=options.turn_deg))
        LOG.info("Of %d answers that name a direction, %.1f %% turned along.", along.count, 100 * along.share)
    LOG.info("Predictions and metrics: %s", result.files.folder)


def turned(answer: str, turn_deg: float) -> str | None:
    """What an answer becomes when the panorama is turned; None where it names no direction."""
    return turn_words(answer, turn_deg) if names_direction(answer) else None


def _checked(cfg: DictConfig) -> tuple[EvalOptions, dict[str, Any]]:
    if OmegaConf.is_missing(cfg, "checkpoint"):
        raise ValueError("checkpoint is missing: name a run, such as checkpoint=runs/demo.")
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    tracking = values.pop("tracking")
    problems = check_section(values, EvalOptions, "") + check_tracking(tracking)
    if problems:
        raise ValueError("\n  ".join(["the config is not right:", *problems]))
    return EvalOptions(**values), tracking


def _data(options: EvalOptions, recorded: dict[str, Any]) -> dict[str, Any]:
    """The run's own data section with what the command line changes."""
    data = dict(recorded)
    world = {f"{options.split}_scenes": options.world_scenes, "seed": options.world_seed, "turn_deg": options.turn_deg}
    asked = {key: value for key, value in world.items() if value is not None}
    if options.csv_input is not None:
        read_as = ("query_template", "image_column", "query_column", "annotation_column")
        template = {key: data[key] for key in read_as if key in data}
        data = {"type": "csv", "name": "csv", f"{options.split}_csv": options.csv_input, **template}
    if asked and data["type"] != "world":
        raise ValueError(f"{', '.join(asked)}: only the built-in world has these, and the data are {data['type']}.")
    return {**data, **asked}


if __name__ == "__main__":
    main()
