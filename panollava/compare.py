"""python -m panollava.compare <run> <run> …: which is better on the same questions, and is the difference real?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval
from omegaconf import DictConfig, OmegaConf

from panollava.component import allow, outside_packages
from panollava.config.check import check_section, refuse
from panollava.config.entrypoint import entrypoint
from panollava.crop.crop import Crop
from panollava.disk import write_file
from panollava.evaluation.comparison import (
    Contender,
    find_measure,
    markdown,
    scores_picture,
    standings,
    standings_csv,
    trade_off_picture,
    verdicts,
    verdicts_csv,
)
from panollava.evaluation.words import choose_words
from panollava.logs import LOG, configure_console, counted
from panollava.model.api import PanoLlava
from panollava.run.conditions import answer_conditions, unequal
from panollava.run.config_check import EvaluationOptions, check_tracking
from panollava.run.data import asked_data, asked_name
from panollava.run.evaluate import Answers, answer_split, find_answers, first_difference
from panollava.run.restore import Restored, restore
from panollava.run.run import open_tracker
from panollava.run.sections import check_generation
from panollava.run.sources import open_source
from panollava.store.catalogue import StoreOptions
from panollava.tracking.store import folders_of
from panollava.tracking.tracker import NullTracker
from panollava.training.precision import recorded_compute


@dataclass(frozen=True)
class CompareOptions:
    """Keys of ``conf/compare.yaml``; see there."""

    runs: list[str]
    mlflow_experiment: str | None
    split: Literal["train", "val", "test"]
    csv_input: str | None
    world_seed: Annotated[int, Interval(ge=0, lt=2**32)] | None
    world_scenes: Annotated[int, Interval(ge=1)] | None
    max_samples: Annotated[int, Interval(ge=1)] | None
    measure: str
    words: Literal["auto", "ptb", "unicode"]
    batch_size: Annotated[int, Interval(ge=1)] | None
    results_dir: str
    out: str
    device: str
    num_workers: Annotated[int, Interval(ge=0)]
    allow: str | list[str]


@entrypoint("compare", bare="runs[]")
def main(cfg: DictConfig) -> None:
    """Compares runs.

    Args:
        cfg: composed from ``conf/compare.yaml`` and the command line.
    """
    configure_console()
    options, tracking, store, generation = _checked(cfg)
    allow(options.allow)
    runs = [restore(folder, generation=generation) for folder in _folders(options, tracking)]
    without_answers = [str(run.folder) for run in runs if not run.record.answers]
    if without_answers:
        raise ValueError(f"{', '.join(without_answers)}: stage-1 runs give no answers, so there is nothing to compare.")
    data = asked_data(options, runs[0].settings["data"])
    names = _names(runs)
    answers = {name: _answers(name, run, data, options, store) for name, run in zip(names, runs, strict=True)}
    _check_same_questions(answers)
    contenders = [Contender(name, tuple(one.predictions), one.image_tokens) for name, one in answers.items()]
    words = choose_words(options.words)
    found, places = verdicts(contenders, words, options.measure), standings(contenders, words)
    title = f"{len(runs)} runs on {asked_name(options, data)}, by {options.measure}"
    text = markdown(places, found, title, words)
    LOG.info("\n%s", text)
    for line in unequal({name: one.conditions for name, one in answers.items()}):
        LOG.warning("%s.", line)
        text += f"\n{line}.\n"
    out = Path(options.out).expanduser()
    files: dict[str, str | bytes] = {
        "comparison.md": text,
        "scores.csv": standings_csv(places),
        "pairs.csv": verdicts_csv(found),
        "scores.png": scores_picture(places),
        "trade_off.png": trade_off_picture(places),
    }
    for name, content in files.items():
        write_file(out / name, content)
    tags = {"panollava.compared": ", ".join(names)}
    name = "compare " + " ".join(names)[:200]
    with open_tracker(tracking, run_name=name, outbox=out, tags=tags) as tracker:
        tracker.folder(out, "comparison")
    LOG.info("Tables and pictures: %s", out)


def _folders(options: CompareOptions, tracking: dict[str, Any]) -> list[str]:
    """The named runs, and those of an MLflow experiment."""
    tracked = folders_of(options.mlflow_experiment, tracking["uri"]) if options.mlflow_experiment else []
    folders = [*options.runs, *(folder for folder in tracked if folder not in options.runs)]
    if len(folders) < 2:
        raise ValueError(
            f"{counted(len(folders), 'run')}: it takes two to compare. Name them, python -m panollava.compare runs/a "
            "runs/b, or an MLflow experiment of several, mlflow_experiment=<name>."
        )
    return folders


def _answers(name: str, run: Restored, data: dict[str, Any], options: CompareOptions, store: StoreOptions) -> Answers:
    """A run's answers to the questions, read where they are on disk."""
    recorded = run.settings["evaluation"]
    evaluation = EvaluationOptions(
        enabled=True,
        batch_size=options.batch_size or recorded["batch_size"],
        max_samples=options.max_samples,
        blank=False,
        words=options.words,
        meteor=False,
        results_dir=options.results_dir,
        log_samples=False,
        log_interval=25,
        log_max_samples=0,
    )
    # The encoder, which knows the size of the views, need not be opened to read the questions.
    source = open_source(data, options.split, Crop.from_spec(run.settings["crop"], view_size=(1, 1)))
    conditions = answer_conditions(run.checkpoint, run.settings, source, store.file_identity())
    found = find_answers(run, source, Path(options.results_dir), options.max_samples, conditions)
    if found is not None:
        return found
    LOG.info("%s has no answers to these questions yet: they are asked now.", name)
    compute = recorded_compute(options.device, run.settings["precision"])
    pano = PanoLlava.from_checkpoint(run.checkpoint, run.settings, device=compute.device, dtype=compute.dtype)
    given = answer_split(
        run,
        data,
        options.split,
        evaluation,
        compute,
        NullTracker(),
        pano=pano,
        store=store,
        num_workers=options.num_workers,
        conditions=conditions,
    )
    return Answers(given.predictions, given.image_tokens, given.conditions)


def _check_same_questions(answers: dict[str, Answers]) -> None:
    """Checks that all runs answered the same questions with the same references.

    Raises:
        ValueError: naming the first sample that differs.
    """
    (first, one), *others = answers.items()
    for name, other in others:
        if difference := first_difference(one.predictions, other.predictions):
            raise ValueError(
                f"{first} and {name} were not asked the same ({difference}). Evaluate both on one test set, with "
                "csv_input= or world_seed=."
            )


def _names(runs: list[Restored]) -> list[str]:
    """Short names, different for different runs."""
    for parts in (1, 2, 3, 4, 5):
        names = [_name(run, parts) for run in runs]
        if len(set(names)) == len({run.checkpoint.resolve() for run in runs}):
            break
    seen: Counter[str] = Counter()
    for place, name in enumerate(names):
        seen[name] += 1
        names[place] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names


def _name(run: Restored, parts: int) -> str:
    """The experiment's name, with `parts` - 1 of stage, setting, checkpoint and path."""
    whole = [run.folder.parent.parent.name, run.stage, run.folder.name, run.checkpoint.name, str(run.folder.resolve())]
    return "/".join(whole[:parts])


def _checked(cfg: DictConfig) -> tuple[CompareOptions, dict[str, Any], StoreOptions, dict[str, Any]]:
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    tracking, store, generation = (values.pop(key) for key in ("tracking", "store", "generation"))
    problems = check_section(values, CompareOptions, "") + check_tracking(tracking)
    problems += check_section(store, StoreOptions, "store") + check_generation(generation, recorded=True)
    refuse(problems)
    allow(outside_packages({"metrics": [values["measure"]]}))
    find_measure(values["measure"])
    return CompareOptions(**values), tracking, StoreOptions(**store), generation


if __name__ == "__main__":
    main()
