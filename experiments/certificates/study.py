"""Certifies runs of several designs and seeds, and says what each design is robust to.

``python -m experiments.certificates.study runs/a runs/b [key=value …] --into <folder>`` certifies each run that has no
certificates of its weights in ``results/`` yet, with the keys of ``python -m panollava.certify``, and writes
``rows.csv``, a line a run and certificate. Certificates that were not asked alike are refused. Where the folder has a
``contrasts.yaml``, ``designs.md`` and ``designs.png`` say what each design loses, and whether two designs differ;
without runs in the command they are written anew out of ``rows.csv``.
"""

from __future__ import annotations

import argparse
import csv
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from matplotlib.figure import Figure

from experiments.decisive.report import NOT_LEARNT, learning_marks
from panollava.disk import csv_text, write_file
from panollava.evaluation.certificates import NAMES
from panollava.evaluation.comparison import INK, PAPER, difference_text, drawn, markdown_lines
from panollava.evaluation.metrics import EXACT
from panollava.evaluation.seeds import SeedComparison, compare_seeds
from panollava.evaluation.statistics import LEVEL, rounded
from panollava.logs import counted
from panollava.run.certify import ASKED, differing_changes, differing_settings, newest_document
from panollava.run.conditions import recorded_config
from panollava.run.restore import Restored, restore
from panollava.run.sweep_report import read_job
from panollava.store.identity import FileIdentity

COLUMNS = (
    "verdict",
    "questions",
    "pictures",
    "before",
    "after",
    "difference",
    "low",
    "high",
    "adjusted_p",
    "detectable",
    "changes",
)
DESIGN = ("resampler", "crop", "overlap", "position")
logger = logging.getLogger(__name__)


def documents(folders: Sequence[str], keys: Sequence[str], results: Path) -> dict[str, tuple[Restored, dict[str, Any]]]:
    """The newest certificates of each run, made where there are none."""
    known, found = FileIdentity(None), {}
    for folder in folders:
        run = restore(folder)
        if (document := newest_document(run, results, known)) is None:
            command = [sys.executable, "-m", "panollava.certify", folder, f"results_dir={results}", *keys]
            subprocess.run(command, check=True)
            document = newest_document(run, results, known)
            assert document is not None
        else:
            asked = ", ".join(f"{key}={document['settings'].get(key)}" for key in ASKED)
            logger.info("%s has certificates of %s: %s.", folder, document["created"], asked)
        found[folder] = run, document
    if differing := differing_settings(document for _, document in found.values()):
        raise ValueError(
            f"The newest certificates in {results} differ in {', '.join(differing)}. Certify the runs alike, with "
            "--results=<another folder>."
        )
    return found


def rows_of(found: Mapping[str, tuple[Restored, dict[str, Any]]], workplace: Path = Path()) -> list[list[object]]:
    """The table, its header first; ``workplace`` is the folder in which the runs were started."""
    rows: list[list[object]] = [["run", "seed", *DESIGN, "exact_match", "learning", "certificate", *COLUMNS]]
    for folder, (run, document) in found.items():
        job = read_job(Path(folder), workplace)
        score = None if job is None or EXACT not in job.scores else round(job.scores[EXACT].value, 6)
        learning = "unknown" if job is None or job.learning is None else job.learning.verdict
        own = [Path(folder).name, *_setting(run), score, learning]
        for one in document["certificates"]:
            told = {**one, "changes": "; ".join(sorted(one.get("changes") or ()))}
            values = [told.get(column) for column in COLUMNS]
            shown = [round(value, 6) if isinstance(value, float) else value for value in values]
            rows.append([*own, one["name"], *shown])
    return rows


def _setting(run: Restored) -> list[object]:
    """Seed and design of a run."""
    model, crop = run.settings["model"], run.settings["crop"]
    seed = (recorded_config(run.folder) or {}).get("seed", "")
    return [seed, model["resampler"]["type"], crop["type"], float(crop.get("overlap") or 0), model["position"]["type"]]


@dataclass(frozen=True)
class Contrast:
    """Two designs of which the second one's change of a certificate less the first one's is tested."""

    first: str
    second: str
    certificate: str


@dataclass(frozen=True)
class Study:
    """What was written before the first run."""

    seeds: tuple[int, ...]
    designs: Mapping[str, Mapping[str, object]]
    contrasts: tuple[Contrast, ...]


def read_study(path: Path) -> Study:
    """Reads ``contrasts.yaml``. Raises ValueError if it is not what a study needs."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        designs = {name: {key: one[key] for key in DESIGN} for name, one in document["designs"].items()}
        contrasts = tuple(
            Contrast(one["first"], one["second"], name) for one in document["contrasts"] for name in one["certificates"]
        )
        seeds = tuple(document["seeds"])
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} needs seeds, designs with {', '.join(DESIGN)}, and contrasts: {error!r}.") from error
    unknown = {name for one in contrasts for name in (one.first, one.second)} - designs.keys()
    unknown |= {one.certificate for one in contrasts} - set(NAMES)
    if unknown:
        raise ValueError(f"{path}: contrasts name {', '.join(sorted(unknown))}, which is no design or certificate.")
    return Study(seeds, designs, contrasts)


@dataclass(frozen=True)
class Results:
    """Certificates of all runs of a study, by design and certificate, in the order of their seeds."""

    study: Study
    changes: Mapping[tuple[str, str], list[float]]  # empty where it is not applicable
    fired: Mapping[tuple[str, str], int]  # runs in which it fires
    scores: Mapping[str, list[float]]  # exact match of a design's runs
    learning: Mapping[str, list[str]]  # whether each of a design's runs was still learning: yes, no or unknown
    unlike: Sequence[str]  # certificates that designs were asked in other changes, as their crops have other tiles

    def own(self, name: str, certificate: str) -> list[float]:
        """Changes of a design's runs."""
        return self.changes.get((name, certificate), [])


def read_results(study: Study, path: Path) -> Results:
    """Reads ``rows.csv``. Raises ValueError if a run is of no design, or there twice."""
    changes: dict[tuple[str, str], list[float]] = {}
    fired: dict[tuple[str, str], int] = {}
    scores: dict[str, dict[int, float]] = {}
    learning: dict[str, dict[int, str]] = {}
    seen = set()
    with path.open(encoding="utf-8", newline="") as stream:
        rows = sorted(csv.DictReader(stream), key=lambda row: int(row["seed"]))
    for row in rows:
        setting = {key: float(row[key]) if key == "overlap" else row[key] for key in DESIGN}
        name = next((name for name, one in study.designs.items() if one == setting), None)
        seed, certificate = int(row["seed"]), row["certificate"]
        if name is None or seed not in study.seeds:
            raise ValueError(f"{path}: {row['run']} is of no design and seed of the study: {setting}, seed {seed}.")
        if (name, seed, certificate) in seen:
            raise ValueError(f"{path}: {name} has two runs of seed {seed}; name one of them.")
        seen.add((name, seed, certificate))
        scores.setdefault(name, {})[seed] = float(row["exact_match"] or "nan")
        learning.setdefault(name, {})[seed] = row["learning"]
        if row["difference"]:
            changes.setdefault((name, certificate), []).append(float(row["difference"]))
            fired[name, certificate] = fired.get((name, certificate), 0) + (row["verdict"] == "fires")
    by_design = {name: [own[seed] for seed in sorted(own)] for name, own in scores.items()}
    asked = [{"name": row["certificate"], "changes": row["changes"].split("; ")} for row in rows if row["changes"]]
    unlike = differing_changes([{"certificates": asked}])
    verdicts = {name: list(own.values()) for name, own in learning.items()}
    return Results(study, changes, fired, by_design, verdicts, unlike)


def against_none(results: Results) -> dict[tuple[str, str], SeedComparison]:
    """Each design's certificates against no change, with Holm's correction over all that were measured.

    Welch's test against a constant is Student's test of one sample.
    """
    keys = [(name, one) for name in results.study.designs for one in NAMES if len(results.own(name, one)) > 1]
    changes = [results.own(*key) for key in keys]
    return dict(zip(keys, compare_seeds([([0.0] * len(own), own) for own in changes]), strict=True))


def between(results: Results) -> list[SeedComparison | None]:
    """The contrasts, corrected for the number of all; None where a design has fewer than two runs."""
    pairs = [
        (results.own(one.first, one.certificate), results.own(one.second, one.certificate))
        for one in results.study.contrasts
    ]
    is_ready = [min(map(len, pair)) > 1 for pair in pairs]
    found = compare_seeds([pair if ready else ([0.0], [0.0]) for pair, ready in zip(pairs, is_ready, strict=True)])
    return [one if ready else None for one, ready in zip(found, is_ready, strict=True)]


def word(found: SeedComparison | None) -> str:
    """The verdict on a contrast."""
    if found is None:
        return "not tested yet"
    if found.adjusted_p is None:
        return "not tested, as the runs of a design do not differ"
    if found.is_distinguishable:
        return "loses less" if found.difference.value > 0 else "loses more"
    needed = found.seeds_needed
    return "cannot tell" if needed is None else f"cannot tell (would need {needed:,} seeds each)"


def markdown(results: Results, tested: Mapping[tuple[str, str], SeedComparison]) -> str:
    """What each design loses, and the contrasts; ``tested`` is of ``against_none``."""
    study = results.study
    wanted, there = len(study.designs) * len(study.seeds), sum(map(len, results.scores.values()))
    marked, unknown = (
        ", ".join(f"{own.count(word)} of {name}" for name, own in results.learning.items() if word in own)
        for word in NOT_LEARNT
    )
    rows = [["design", "exact match, %", *NAMES]]
    for name, scores in results.scores.items():
        cells = [_cell(results, tested, name, one) for one in NAMES]
        rows.append([name, f"{100 * fmean(scores):.1f}", *cells])
    contrasts = [["certificate", "second design", "first design", "difference", "p", "verdict", "notes"]]
    for one, found in zip(study.contrasts, between(results), strict=True):
        difference = p = "–"
        if found is not None:
            difference = difference_text(found.difference)
            p = "–" if found.adjusted_p is None else rounded(found.adjusted_p, 4, LEVEL)
            p = "< 0.0001" if p == "0.0000" else p
        marks = learning_marks({name: results.learning.get(name, []) for name in (one.first, one.second)})
        row = [one.certificate, one.second, one.first, difference, p, f"**{word(found)}**", "; ".join(marks)]
        contrasts.append(row)
    parts = [
        f"{there} of {wanted} runs have certificates. Still learning when training ended: {marked or 'none'}."
        + (f" Not known: {unknown}." if unknown else ""),
        "## What each design loses",
        "Points of exact match after the change less before it, mean over seeds, and in brackets in how many of the "
        f"runs the certificate fires. Bold: Student's test over seeds, with Holm's correction for all {len(tested)} "
        "cells that were measured.",
        "\n".join(markdown_lines(rows)),
        "Asked in other changes by other crops, so that designs do not compare in it: "
        f"{', '.join(results.unlike) or 'no certificate'}.",
        "## The written contrasts",
        "The second design's change less that of the first, in points: above 0, the second loses less. p is of Welch's "
        f"test over seeds after Holm's correction for all {counted(len(study.contrasts), 'contrast')}; the interval is "
        "at the level of its test.",
        "\n".join(markdown_lines(contrasts)),
    ]
    return "\n\n".join(parts) + "\n"


def _cell(results: Results, tested: Mapping[tuple[str, str], SeedComparison], name: str, certificate: str) -> str:
    own = results.own(name, certificate)
    if not own:
        return "–"
    found = tested.get((name, certificate))
    value = rounded(100 * fmean(own), 1, sign="+")
    shown = f"**{value}**" if found is not None and found.is_distinguishable else value
    return f"{shown} ({results.fired[name, certificate]})"


def picture(results: Results, tested: Mapping[tuple[str, str], SeedComparison]) -> bytes:
    """A PNG: of each certificate the change of every run, and the mean of each design."""
    names = list(results.scores)
    figure = Figure(figsize=(13, 1.6 + 0.5 * len(names)), dpi=120, facecolor=PAPER, layout="constrained")
    panels = figure.subplots(2, 4, sharey=True).ravel()
    for panel, certificate in zip(panels, NAMES, strict=True):
        for place, name in enumerate(reversed(names)):
            if not (own := results.own(name, certificate)):
                continue
            found = tested.get((name, certificate))
            color = INK if found is not None and found.is_distinguishable else "0.55"
            panel.plot([100 * one for one in own], [place] * len(own), "o", color="0.75", markersize=4)
            panel.plot(100 * fmean(own), place, "|", color=color, markersize=12, markeredgewidth=2)
        panel.axvline(0, color="0.3", linewidth=0.8)
        panel.set_title(certificate)
        panel.set_yticks(range(len(names)), list(reversed(names)))
    figure.supxlabel("points of exact match after the change less before it: runs and mean (dark: differs from 0)")
    return drawn(figure, *panels)["png"]


def write_report(folder: Path) -> str:
    """Writes ``designs.md`` and the picture out of ``contrasts.yaml`` and ``rows.csv``; returns the text."""
    results = read_results(read_study(folder / "contrasts.yaml"), folder / "rows.csv")
    tested = against_none(results)
    text = markdown(results, tested)
    write_file(folder / "designs.md", text)
    write_file(folder / "designs.png", picture(results, tested))
    return text


def main() -> None:
    """Certifies the runs of the command line and writes their rows and the report."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", help="run folders, then keys of the command with a =")
    parser.add_argument("--into", type=Path, default=Path(__file__).parent)
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    folders = [one for one in options.runs if "=" not in one]
    if folders:
        found = documents(folders, [one for one in options.runs if "=" in one], options.results)
        write_file(options.into / "rows.csv", csv_text(rows_of(found)))
        logger.info("%s: %s", counted(len(found), "run"), options.into / "rows.csv")
    if (options.into / "contrasts.yaml").is_file():
        logger.info("%s", write_report(options.into))


if __name__ == "__main__":
    main()
