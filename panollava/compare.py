"""python -m panollava.compare <run> <run> …: which is better on the same questions, and is the difference real?"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval
from omegaconf import DictConfig

from panollava.component import allow, outside_packages
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
from panollava.run.config_check import EvaluationOptions
from panollava.run.data import DataOptions, data_name, data_overrides
from panollava.run.evaluate import Answers, answer_split, find_answers, first_difference
from panollava.run.learning_report import learning_notes, run_learning
from panollava.run.restore import Restored, restore
from panollava.run.run import open_tracker
from panollava.run.sections import read_config
from panollava.run.sources import open_source
from panollava.run_folder import Experiment
from panollava.store.catalogue import StoreOptions
from panollava.store.identity import FileIdentity
from panollava.tracking.store import folders_of
from panollava.tracking.tracker import NullTracker
from panollava.training.learning import Learning
from panollava.training.precision import recorded_compute


@dataclass(frozen=True)
class CompareOptions(DataOptions):
    """Keys of ``conf/compare.yaml``; see there."""

    runs: list[str]
    mlflow_experiment: str | None
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
    """Compares runs."""
    configure_console()
    options, sections = read_config(cfg, CompareOptions)
    tracking, store, generation = sections["tracking"], StoreOptions(**sections["store"]), sections["generation"]
    allow(outside_packages({"metrics": [options.measure]}))
    find_measure(options.measure)
    allow(options.allow)
    runs = [restore(folder, generation=generation) for folder in _folders(options, tracking)]
    without_answers = [str(run.folder) for run in runs if not run.record.answers]
    if without_answers:
        raise ValueError(f"{', '.join(without_answers)}: stage-1 runs give no answers, so there is nothing to compare.")
    data = data_overrides(options, runs[0].settings["data"])
    names = _names(runs)
    known = store.file_identity()  # one for all runs: they share the pictures
    answers = {name: _answers(name, run, data, options, store, known) for name, run in zip(names, runs, strict=True)}
    (first, one), *others = answers.items()
    for name, other in others:
        if difference := first_difference(one.predictions, other.predictions):
            raise ValueError(
                f"{first} and {name} answered different questions ({difference}). Evaluate both on one test set, with "
                "csv_input= or world_seed=."
            )
    contenders = [Contender(name, tuple(one.predictions), one.image_tokens) for name, one in answers.items()]
    words = choose_words(options.words)
    found, places = verdicts(contenders, words, options.measure), standings(contenders, words)
    title = f"{len(runs)} runs on {data_name(options, data)}, by {options.measure}"
    text = markdown(places, found, title, words)
    text += "".join(f"\n{note}.\n" for note in learning_notes(_learning(dict(zip(names, runs, strict=True)))))
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
            f"{counted(len(folders), 'run')}: a comparison needs two. Name them, python -m panollava.compare runs/a "
            "runs/b, or an MLflow experiment of several, mlflow_experiment=<name>."
        )
    return folders


def _answers(
    name: str, run: Restored, data: dict[str, Any], options: CompareOptions, store: StoreOptions, known: FileIdentity
) -> Answers:
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
    # The encoder, which determines the size of the views, need not be opened to read the questions.
    source = open_source(data, options.split, Crop.from_spec(run.settings["crop"], view_size=(1, 1)))
    conditions = answer_conditions(run.checkpoint, run.settings, source, known)
    found = find_answers(run, source, Path(options.results_dir), options.max_samples, conditions)
    if found is not None:
        return found
    LOG.info("%s has no answers to these questions yet: they are generated now.", name)
    compute = recorded_compute(options.device, run.settings["precision"])
    pano = PanoLlava.from_checkpoint(run.checkpoint, run.settings, device=compute.device, dtype=compute.dtype)
    return answer_split(
        run,
        data,
        options.split,
        evaluation,
        compute,
        NullTracker(),
        pano=pano,
        store=store,
        known=known,
        num_workers=options.num_workers,
        conditions=conditions,
    )


def _learning(runs: Mapping[str, Restored]) -> dict[str, Learning]:
    """Whether each run was still learning when its stage ended."""
    found = {}
    for name, run in runs.items():
        states = Experiment(run.folder.parent.parent, run.folder.name, owner=False).states()
        found[name] = run_learning(states, f"{run.stage}/{run.folder.name}") or Learning.of_record(None)
    return found


def _names(runs: list[Restored]) -> list[str]:
    """Short names, different for different runs: the experiment's, with as much of the rest as is needed."""
    paths = [
        (run.folder.parent.parent.name, run.stage, run.folder.name, run.checkpoint.name, run.folder.resolve())
        for run in runs
    ]
    for parts in (1, 2, 3, 4, 5):
        names = ["/".join(map(str, path[:parts])) for path in paths]
        if len(set(names)) == len({run.checkpoint.resolve() for run in runs}):
            break
    seen: Counter[str] = Counter()
    for place, name in enumerate(names):
        seen[name] += 1
        names[place] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names


if __name__ == "__main__":
    main()
