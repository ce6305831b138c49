"""Collects the jobs of a sweep that are repeated over seeds, and compares their settings on the same questions.

``python experiments/study.py runs/<sweep> --by model.resampler.type --into experiments/<study>`` writes the folder's
``rows.csv`` (one line per job), ``configs/`` (each job's config), ``table.md`` and ``pairs.csv``.
"""

from __future__ import annotations

import argparse
import csv
import logging
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path

import yaml

from panollava.evaluation.comparison import settings_table, verdict_lines, verdicts, verdicts_csv
from panollava.run.sweep_report import read_job

logger = logging.getLogger(__name__)


def main() -> None:
    """Collect a sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweeps", nargs="+", type=Path, help="folders with one folder per job")
    parser.add_argument("--by", nargs="+", required=True, help="config keys that distinguish the settings")
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--workplace", type=Path, default=Path(), help="folder in which the sweep was started")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    jobs = []
    for folder in sorted(path.parent for sweep in options.sweeps for path in sweep.glob("*/stage_state.json")):
        job = read_job(folder, options.workplace)
        if job is None or not job.predictions:
            logger.warning("%s is not finished and is left out.", folder)
            continue
        jobs.append((job, [str(reduce(getitem, key.split("."), job.config)) for key in options.by]))
    jobs.sort(key=lambda one: (one[1], one[0].config["seed"]))
    configs = options.into / "configs"
    configs.mkdir(parents=True, exist_ok=True)
    rows = []
    for job, setting in jobs:
        (configs / f"{job.name}.yaml").write_text(yaml.safe_dump(job.config, sort_keys=False), encoding="utf-8")
        keys = dict(zip(options.by, setting, strict=True)) | {"seed": job.config["seed"]}
        rows.append({"job": job.name} | keys | {name: f"{value:.6g}" for name, value in job.numbers().items()})
    with (options.into / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    keys = [key.removeprefix("model.").removesuffix(".type") for key in options.by]
    settings = [dict(zip(keys, setting, strict=True)) for _, setting in jobs]
    named = enumerate(zip(jobs, settings, strict=True))  # jobs of two sweeps may have the same name
    contenders = [replace(job.contender(own), name=f"{number} {job.name}") for number, ((job, _), own) in named]
    found = verdicts(contenders, "unicode")
    text = f"{settings_table(contenders, 'unicode')}\n{verdict_lines(found)}"
    (options.into / "table.md").write_text(text, encoding="utf-8")
    (options.into / "pairs.csv").write_text(verdicts_csv(found), encoding="utf-8")
    logger.info(text)


if __name__ == "__main__":
    main()
