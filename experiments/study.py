"""Collects the jobs of sweeps that are repeated over seeds, and compares their settings on the same questions.

``python experiments/study.py runs/<sweep> --by model.resampler.type --within crop.overlap --into experiments/<study>``
compares the resamplers with each other at each overlap. It writes the folder's ``rows.csv`` (a line a job),
``configs/`` (of each setting its job of the lowest seed) and ``table.md``.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import getitem
from pathlib import Path

import yaml

from panollava.evaluation.comparison import settings_table, verdict_lines, verdicts
from panollava.run.sweep_report import Job, read_job

logger = logging.getLogger(__name__)


@dataclass
class Arm:
    """A job with its values of the compared keys and of those that separate comparisons."""

    job: Job
    setting: dict[str, str]
    group: dict[str, str]

    @property
    def keys(self) -> dict[str, str]:
        """All values, in the order of the command line."""
        return self.setting | self.group


def read_arms(sweeps: Sequence[Path], by: Sequence[str], within: Sequence[str], workplace: Path) -> list[Arm]:
    """The finished and evaluated jobs of all sweeps, sorted by their values and seeds.

    Jobs that can be compared with none, since only one setting agrees with them in ``within``, are left out.
    """
    arms = []
    for folder in sorted(path.parent for sweep in sweeps for path in sweep.glob("*/stage_state.json")):
        job = read_job(folder, workplace)
        if job is None or not job.predictions:
            logger.warning("%s is not finished and is left out.", folder)
            continue
        setting, group = (
            {key: str(reduce(getitem, key.split("."), job.config)) for key in keys} for keys in (by, within)
        )
        arms.append(Arm(job, setting, group))
    settings = {tuple(arm.keys.items()): arm.group for arm in arms}.values()
    arms = [arm for arm in arms if sum(group == arm.group for group in settings) > 1]
    return sorted(arms, key=lambda arm: (*arm.group.values(), *arm.setting.values(), arm.job.config["seed"]))


def compare(arms: Sequence[Arm]) -> str:
    """Markdown: a table of the settings and their verdicts, by group."""
    parts = []
    for group, own in itertools.groupby(arms, key=lambda arm: arm.group):
        contenders = [  # numbered, since jobs of two sweeps may have the same name
            replace(arm.job.contender(_short(arm.setting)), name=f"{number} {arm.job.name}")
            for number, arm in enumerate(own)
        ]
        if group:
            parts.append("## " + ", ".join(f"{key}={value}" for key, value in _short(group).items()) + "\n")
        parts += [settings_table(contenders, "unicode"), verdict_lines(verdicts(contenders, "unicode"))]
    return "\n".join(parts)


def _short(keys: dict[str, str]) -> dict[str, str]:
    return {key.removeprefix("model.").removesuffix(".type"): value for key, value in keys.items()}


def main() -> None:
    """Collect sweeps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweeps", nargs="+", type=Path, help="folders with one folder per job")
    parser.add_argument("--by", nargs="+", required=True, help="config keys that distinguish the settings")
    parser.add_argument(
        "--within", nargs="+", default=[], help="config keys: only jobs that agree in them are compared"
    )
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--workplace", type=Path, default=Path(), help="folder in which the sweeps were started")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arms = read_arms(options.sweeps, options.by, options.within, options.workplace)
    configs = options.into / "configs"
    configs.mkdir(parents=True, exist_ok=True)
    for _, own in itertools.groupby(arms, key=lambda arm: arm.keys):
        first = next(own).job
        (configs / f"{first.name}.yaml").write_text(yaml.safe_dump(first.config, sort_keys=False), encoding="utf-8")
    rows = [
        {"job": arm.job.name, **arm.keys, "seed": arm.job.config["seed"]}
        | {name: f"{value:.6g}" for name, value in arm.job.numbers().items()}
        for arm in arms
    ]
    with (options.into / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = compare(arms)
    (options.into / "table.md").write_text(text, encoding="utf-8")
    logger.info(text)


if __name__ == "__main__":
    main()
