"""Compares runs on the same questions: answers that are missing, scores, paired tests, tables and pictures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from panollava.component import allow
from panollava.disk import write_file
from panollava.evaluation.comparison import (
    Contender,
    group_tables,
    markdown,
    scores_picture,
    settings_table,
    standings,
    standings_csv,
    trade_off_picture,
    verdict_lines,
    verdicts,
    verdicts_csv,
)
from panollava.evaluation.measure import choose_measure, group_scores
from panollava.evaluation.metrics import AnswerSet
from panollava.evaluation.paper_table import SUFFIXES, paper_table
from panollava.evaluation.predictions import as_scored, with_groups
from panollava.evaluation.words import choose_words
from panollava.logs import LOG, counted
from panollava.model.api import PanoLlava
from panollava.run.certify import recorded_certificates
from panollava.run.conditions import answer_conditions, recorded_config, unequal, unlike_times
from panollava.run.data import data_name, data_overrides, evaluation_options
from panollava.run.evaluate import Answers, answer_split, find_answers, first_difference
from panollava.run.learning_report import is_learning, learning_notes, run_learning
from panollava.run.options import CompareOptions
from panollava.run.place_comparison import compare_detections
from panollava.run.restore import Restored, restore
from panollava.run.settings import settings_of, trained_with, unlike_training
from panollava.run.sources import open_source
from panollava.run.tools import Tools
from panollava.run.tracker import open_tracker
from panollava.run_folder import Experiment
from panollava.store.catalogue import StoreOptions
from panollava.store.identity import FileIdentity
from panollava.tracking.store import folders_of
from panollava.training.learning import Learning
from panollava.training.precision import recorded_compute


def compare_runs(options: CompareOptions, sections: dict[str, Any]) -> None:
    """Compares the runs that are named, or those of an MLflow experiment.

    Args:
        options: the plain keys of ``conf/compare.yaml``, checked.
        sections: its other keys: ``evaluation``, ``generation``, ``store`` and ``tracking``.
    """
    tracking, store, generation = sections["tracking"], StoreOptions(**sections["store"]), sections["generation"]
    allow(options.allow)
    runs = [restore(folder, generation=generation) for folder in _folders(options, tracking)]
    if runs and all(run.record.finds for run in runs):
        data = data_overrides(options, runs[0].settings["data"], learnt=runs[0].settings["classes"])
        compare_detections(dict(zip(_names(runs), runs, strict=True)), data, options, sections)
        return
    without_answers = [str(run.folder) for run in runs if not run.record.answers]
    if without_answers:
        raise ValueError(
            f"{', '.join(without_answers)}: stages without text give no answers, so there is nothing to compare. Runs "
            "of stage detect are compared with each other alone."
        )
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
    learning = _learning(dict(zip(names, runs, strict=True)))
    contenders, note, unlike = _contenders(runs, answers, learning)
    words = choose_words(options.words)
    sets = {one.name: AnswerSet(as_scored(one.predictions), words) for one in contenders}
    chosen = choose_measure(sections["evaluation"]["measure"], sets[first])
    LOG.info("%s", chosen)
    measure = chosen.name
    found, places = verdicts(contenders, words, chosen.type), standings(contenders, words, chosen.type)
    tested_on = data_name(options, data)
    title = f"{len(runs)} runs on {tested_on}, by {measure}"
    judged = [settings_table(contenders, words, chosen.type), note, verdict_lines(found, measure)]
    text = markdown(places, "\n".join(filter(None, judged)), title, words, measure)
    if groups := group_tables({name: group_scores(one, chosen.metric) for name, one in sets.items()}, measure):
        text += f"\n{groups}"
    text += "".join(f"\n{line}.\n" for line in learning_notes(learning))
    if certified := recorded_certificates(dict(zip(names, runs, strict=True)), Path(options.results_dir), known):
        text += f"\n{certified}"
    LOG.info("\n%s", text)
    unlike += unequal({name: one.conditions for name, one in answers.items()})
    for line in [*unlike, *unlike_times({name: one.timing for name, one in answers.items()})]:
        LOG.warning("%s.", line)
        text += f"\n{line}.\n"
    out = Path(options.out).expanduser()
    files: dict[str, str | bytes] = {
        "comparison.md": text,
        "scores.csv": standings_csv(places),
        "pairs.csv": verdicts_csv(found),
        **{f"scores.{kind}": picture for kind, picture in scores_picture(places, measure).items()},
        **{f"trade_off.{kind}": picture for kind, picture in trade_off_picture(places, measure).items()},
    }
    if options.table is not None:
        table = paper_table(contenders, places, found, measure, data=tested_on)
        files[f"table{SUFFIXES[options.table]}"] = table.text(options.table)
    for name, content in files.items():
        write_file(out / name, content)
    tags = {"panollava.compared": ", ".join(names)}
    name = "compare " + " ".join(names)[:200]
    about = [run.checkpoint for run in runs]
    with open_tracker(tracking, run_name=name, outbox=out, tags=tags, job="compare", about=about) as tracker:
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


def _contenders(
    runs: list[Restored], answers: dict[str, Answers], learning: Mapping[str, Learning]
) -> tuple[list[Contender], str, list[str]]:
    """The runs with their settings, where all have a config; how these differ, and what else does but should not."""
    configs = [recorded_config(run.folder) for run in runs]
    settings: Sequence[dict[str, str] | None] = [None] * len(runs)
    differing: list[str] = []
    unlike: list[str] = []
    if all(configs):
        known = [config or {} for config in configs]
        settings, differing = settings_of(known, [run.stage for run in runs])
        training = [trained_with(run.folder, config) for run, config in zip(runs, known, strict=True)]
        unlike = unlike_training(dict(zip(answers, training, strict=True)), known, settings)
    note = f"The settings differ in {', '.join(differing)}.\n" if differing else ""
    contenders = [
        Contender(
            name,
            tuple(one.predictions),
            one.image_tokens,
            setting=setting,
            seed=str((config or {}).get("seed", "")),
            still_learning=is_learning(learning[name]),
        )
        for (name, one), setting, config in zip(answers.items(), settings, configs, strict=True)
    ]
    return contenders, note, unlike


def _answers(
    name: str, run: Restored, data: dict[str, Any], options: CompareOptions, store: StoreOptions, known: FileIdentity
) -> Answers:
    """A run's answers to the questions, read where they are on disk."""
    asked = {"max_samples": options.max_samples, "words": options.words, "log_interval": 25}
    evaluation = evaluation_options(options, run.settings["evaluation"], **asked)
    source = open_source(data, options.split, run.reader)
    conditions = answer_conditions(run.checkpoint, run.settings, source, known)
    found = find_answers(run, source, Path(options.results_dir), options.max_samples, conditions)
    if found is not None:
        return replace(found, predictions=with_groups(found.predictions, source.questions()))
    LOG.info("%s has no answers to these questions yet: they are generated now.", name)
    compute = recorded_compute(options.device, run.settings["precision"])
    pano = PanoLlava.from_checkpoint(run.checkpoint, run.settings, device=compute.device, dtype=compute.dtype)
    tools = Tools(compute, store, known, num_workers=options.num_workers)
    return answer_split(run, data, options.split, evaluation, tools, pano=pano, conditions=conditions)


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
