"""Certifies several runs and collects their certificates: a line a run and certificate.

``python -m experiments.certificates.study runs/a runs/b [key=value …] --into <folder>`` certifies each run that has no
certificates of its weights in ``results/`` yet, with the keys of ``python -m panollava.certify``, and writes
``rows.csv``. Certificates that were not asked alike are refused. Runs of one setting with several seeds have lines of
their own; ``seed``, ``resampler``, ``crop`` and ``position`` say which they are of.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from panollava.disk import csv_text, write_file
from panollava.run.certify import differing_settings, newest_document
from panollava.run.conditions import recorded_config
from panollava.run.restore import Restored, restore
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
)
logger = logging.getLogger(__name__)


def documents(folders: Sequence[str], keys: Sequence[str], results: Path) -> dict[str, tuple[Restored, dict[str, Any]]]:
    """The newest certificates of each run, made where there are none."""
    known, found = FileIdentity(None), {}
    for folder in folders:
        run = restore(folder)
        if newest_document(run, results, known) is None:
            command = [sys.executable, "-m", "panollava.certify", folder, f"results_dir={results}", *keys]
            subprocess.run(command, check=True)
        document = newest_document(run, results, known)
        assert document is not None
        found[folder] = run, document
    if differing := differing_settings(document for _, document in found.values()):
        raise ValueError(
            f"The newest certificates in {results} differ in {', '.join(differing)}. Certify the runs alike, with "
            "--results=<another folder>."
        )
    return found


def rows_of(found: dict[str, tuple[Restored, dict[str, Any]]]) -> list[list[object]]:
    """The table, its header first."""
    rows: list[list[object]] = [["run", "seed", "resampler", "crop", "position", "certificate", *COLUMNS]]
    for folder, (run, document) in found.items():
        model, seed = run.settings["model"], (recorded_config(run.folder) or {}).get("seed", "")
        setting = [model["resampler"]["type"], run.settings["crop"]["type"], model["position"]["type"]]
        for one in document["certificates"]:
            values = [one.get(column) for column in COLUMNS]
            shown = [round(value, 6) if isinstance(value, float) else value for value in values]
            rows.append([Path(folder).name, seed, *setting, one["name"], *shown])
    return rows


def main() -> None:
    """Certifies the runs of the command line and writes their rows."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, then keys of the command with a =")
    parser.add_argument("--into", type=Path, default=Path(__file__).parent)
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    folders = [one for one in options.runs if "=" not in one]
    found = documents(folders, [one for one in options.runs if "=" in one], options.results)
    write_file(options.into / "rows.csv", csv_text(rows_of(found)))
    logger.info("%d runs: %s", len(found), options.into / "rows.csv")


if __name__ == "__main__":
    main()
