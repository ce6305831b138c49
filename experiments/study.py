"""The rows of a study, and what they say: one sweep's jobs, repeated over seeds, compared on the same questions.

``python experiments/study.py runs/<sweep> --by model.resampler.type --into experiments/<study>`` writes the folder's
``rows.csv`` (a line a job), ``configs/`` (each job's config) and ``table.md``.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import logging
import math
import re
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from panollava.evaluation.statistics import compare, mean_interval
from panollava.model.facade import PanoLlava

logger = logging.getLogger(__name__)

SPEED = re.compile(r"Stage (\w+): ([\d.]+) s, ([\d.]+) samples/s")
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
T_800 = {1: 1.376, 2: 1.061, 3: 0.978, 4: 0.941, 5: 0.920, 6: 0.906, 7: 0.896, 8: 0.889, 9: 0.883, 10: 0.879}
"""Student's t at 97.5 % and 80 %, by degrees of freedom."""


@dataclass
class Job:
    """A finished job of the sweep."""

    name: str
    setting: tuple[str, ...]
    seed: int
    correct: dict[str, float]
    """Question -> 1 where the answer was right."""
    scene_of: dict[str, str]
    row: dict[str, Any] = field(default_factory=dict)


def read_job(folder: Path, by: Sequence[str], workplace: Path) -> Job:
    """A job's answers and numbers, from what the run left on disk; results lie below ``workplace``."""
    stages = json.loads((folder / "stage_state.json").read_text())["stages"]
    last, state = list(stages.items())[-1]
    config = yaml.safe_load((folder / last / "config.yaml").read_text())
    results = workplace / state["evaluated"]
    with (results / "predictions.csv").open(encoding="utf-8-sig", newline="") as stream:
        answers = list(csv.DictReader(stream))
    metrics = json.loads((results / "metrics.json").read_text())
    correct = {one["sample_id"]: float(one["correct"] == "true") for one in answers}
    scene_of = {one["sample_id"]: one["image_id"] for one in answers}
    pano = PanoLlava.from_pretrained(folder)
    interval = mean_interval(list(correct.values()), list(scene_of.values()))
    log = "".join(path.read_text() for path in sorted((folder / "logs").glob("*.log")))
    setting = tuple(str(value_at(config, key)) for key in by)
    row = dict(zip(by, setting, strict=True)) | {
        "seed": config["seed"],
        "questions": len(correct),
        "exact_match": f"{interval.value:.4f}",
        "low": f"{interval.low:.4f}",
        "high": f"{interval.high:.4f}",
        "blank": f"{metrics['blank_exact_match']:.4f}" if metrics["blank_exact_match"] is not None else "",
        "image_tokens": pano.image_tokens,
        "resampler_parameters": sum(p.numel() for p in pano.model.vision.resampler.parameters()),
    }
    for stage, seconds, speed in SPEED.findall(log):
        row |= {f"{stage}_seconds": seconds, f"{stage}_samples_per_s": speed}
    for name, one in stages.items():
        row[f"{name.split('/')[0]}_validation_loss"] = f"{one['validation_loss']:.4f}"
    return Job(folder.name, setting, config["seed"], correct, scene_of, row)


def finished(sweep: Path) -> list[Path]:
    """Folders of a sweep's jobs that have been evaluated."""
    folders = []
    for path in sorted(sweep.glob("*/stage_state.json")):
        if "evaluated" in list(json.loads(path.read_text())["stages"].values())[-1]:
            folders.append(path.parent)
        else:
            logger.warning("%s is not finished and is left out.", path.parent)
    return folders


def value_at(config: dict[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def table(jobs: Sequence[Job], by: Sequence[str]) -> str:
    """Markdown: scores of each setting over its seeds, and every two settings compared."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.setting, []).append(job)
    head = [key.removeprefix("model.").removesuffix(".type") for key in by]
    head += ["seeds", "exact match, %", "interval by scene", "per seed, %", "image tokens", "parameters"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for setting, members in groups.items():
        questions, scores = mean_scores(members)
        interval = mean_interval(scores, [members[0].scene_of[one] for one in questions])
        own = sorted(100 * statistics.fmean(job.correct.values()) for job in members)
        cells = [
            *setting,
            len(members),
            f"{100 * interval.value:.1f}",
            f"{100 * interval.low:.1f} to {100 * interval.high:.1f}",
            ", ".join(f"{score:.1f}" for score in own),
            members[0].row["image_tokens"],
            f"{members[0].row['resampler_parameters']:,}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", *comparisons(groups)]
    return "\n".join(lines) + "\n"


def comparisons(groups: dict[tuple[str, ...], list[Job]]) -> list[str]:
    """Markdown lines: differences with both their sources of chance, the scenes and the seeds."""
    lines = [
        "| second less first | points | interval by scene | p by scene | interval by seed | least visible by seed |",
        "|---|---|---|---|---|---|",
    ]
    for first, second in itertools.combinations(groups, 2):
        (questions, a), (others, b) = mean_scores(groups[first]), mean_scores(groups[second])
        if questions != others:
            raise SystemExit(f"{first} and {second} were asked different questions: give both the same test set.")
        scene_of = groups[first][0].scene_of
        found = compare(a, b, [scene_of[one] for one in questions])
        half, least = seed_spread(groups[first], groups[second])
        middle, low, high = (100 * x for x in (found.difference.value, found.difference.low, found.difference.high))
        lines.append(
            f"| {' '.join(second)} − {' '.join(first)} | {middle:+.1f} | {low:+.1f} to {high:+.1f} "
            f"| {found.p_value:.4f} | {middle - half:+.1f} to {middle + half:+.1f} | {least:.1f} |"
        )
    return lines


def mean_scores(jobs: Sequence[Job]) -> tuple[list[str], list[float]]:
    """The questions in one order, and how often each was answered rightly over the seeds."""
    questions = sorted(jobs[0].correct)
    return questions, [statistics.fmean(job.correct[one] for job in jobs) for one in questions]


def seed_spread(first: Sequence[Job], second: Sequence[Job]) -> tuple[float, float]:
    """Half of the 95 % interval of a difference over seeds, and the smallest that four of five such studies would see.

    Student's t for two groups of one variance, in points; infinite with a single seed each.
    """
    scores = [[100 * statistics.fmean(job.correct.values()) for job in jobs] for jobs in (first, second)]
    freedom = sum(len(group) - 1 for group in scores)
    if freedom == 0:
        return math.inf, math.inf
    squares = sum((score - statistics.fmean(group)) ** 2 for group in scores for score in group)
    error = math.sqrt(squares / freedom * sum(1 / len(group) for group in scores))
    place = min(freedom, max(T_975))
    return T_975[place] * error, (T_975[place] + T_800[place]) * error


def main() -> None:
    """Collect a sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweeps", nargs="+", type=Path, help="folders that hold a job each below them")
    parser.add_argument("--by", nargs="+", required=True, help="config keys that tell the settings apart")
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--workplace", type=Path, default=Path(), help="folder in which the sweep was started")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folders = [folder for sweep in options.sweeps for folder in finished(sweep)]
    jobs = sorted(
        (read_job(path, options.by, options.workplace) for path in folders), key=lambda job: (job.setting, job.seed)
    )
    configs = options.into / "configs"
    configs.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        last = list(json.loads((folder / "stage_state.json").read_text())["stages"])[-1]
        shutil.copy(folder / last / "config.yaml", configs / f"{folder.name}.yaml")
    names = list(dict.fromkeys(name for job in jobs for name in job.row))
    with (options.into / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["job", *names], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"job": job.name} | job.row for job in jobs)
    text = table(jobs, options.by)
    (options.into / "table.md").write_text(text, encoding="utf-8")
    logger.info(text)


if __name__ == "__main__":
    main()
