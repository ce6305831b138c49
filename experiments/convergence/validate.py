"""Checks the verdict "still learning" on jobs that were trained twice, with a budget and with twice the budget.

``python experiments/convergence/validate.py runs/once:runs/twice`` pairs the jobs of each two sweep folders that have
the same seed and the same values of the swept keys, whatever their folders are called. It writes ``rows.csv`` beside
this file, and prints which share of the jobs that gained at least ``GAINED`` points was flagged at the first budget,
and which share of those that gained less than ``STOOD``. Without arguments it reads ``rows.csv`` again. In both cases
the verdicts are those of today's constants of ``panollava.training.learning``.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from panollava.logs import counted
from panollava.run.sweep_report import Job, read_job
from panollava.sweep_folder import read_jobs
from panollava.training.learning import Learning, decide, judge_run, remaining

GAINED, STOOD = 5.0, 1.0
"""Points of exact match."""
ROWS = Path(__file__).parent / "rows.csv"
logger = logging.getLogger(__name__)


@dataclass
class StageMeasures:
    """What the verdict on a stage is made of; a missing number is None."""

    loss: float
    remaining_low: float | None
    image_gain: float | None

    def learning(self) -> Learning:
        """The verdict of today's constants."""
        return Learning(*decide(self.loss, self.remaining_low, self.image_gain))


@dataclass
class Row:
    """A job at both budgets; scores in percent of exact match."""

    sweep: str
    job: str
    setting: str
    seed: str
    once: float
    twice: float
    stages: Mapping[str, StageMeasures]

    @property
    def gain(self) -> float:
        """Points."""
        return self.twice - self.once

    @property
    def learning(self) -> Learning:
        """The verdict on the job at the first budget."""
        return judge_run({name: (one.loss, one.learning()) for name, one in self.stages.items()})

    @classmethod
    def of_jobs(cls, sweep: str, swept: Mapping[str, str], once: Job, twice: Job) -> Self:
        """Of a job's folders at both budgets."""
        setting = ", ".join(f"{key}={value}" for key, value in swept.items() if key != "seed")
        first, second = (100 * float(job.metrics["exact_match"]) for job in (once, twice))
        stages = {}
        for name, curve in once.curves.items():
            fall, gain = remaining(curve), once.stages[name]["learning"]["image_gain"]
            loss = once.stages[name]["validation_loss"]
            stages[name] = StageMeasures(loss, None if fall is None else fall.low, gain)
        return cls(sweep, once.name, setting, str(once.config["seed"]), first, second, stages)

    def cells(self) -> dict[str, object]:
        """A line of ``rows.csv``."""
        own = {key: getattr(self, key) for key in ("sweep", "job", "setting", "seed", "once", "twice", "gain")}
        measures = {f"{stage} {key}": value for stage, one in self.stages.items() for key, value in asdict(one).items()}
        return {**own, **measures, "still learning": self.learning.verdict, "why": self.learning.why}

    @classmethod
    def of_cells(cls, cells: Mapping[str, str]) -> Self:
        """Of a line of ``rows.csv``."""
        names = list(dict.fromkeys(key.split()[0] for key in cells if key.endswith(" loss")))
        numbers = {
            name: [
                float(cells[key]) if (key := f"{name} {one.name}") and cells[key] else None
                for one in fields(StageMeasures)
            ]
            for name in names
        }
        stages = {name: StageMeasures(loss, *rest) for name, (loss, *rest) in numbers.items() if loss is not None}
        once, twice = float(cells["once"]), float(cells["twice"])
        return cls(cells["sweep"], cells["job"], cells["setting"], cells["seed"], once, twice, stages)


def read_pair(once: Path, twice: Path) -> list[Row]:
    """The jobs that both sweeps have finished and evaluated, and that recorded whether they were still learning."""
    others = {key: job for key, _, job in _evaluated(twice)}
    rows, alone = [], 0
    for key, swept, job in _evaluated(once):
        if key not in others:
            alone += 1
        elif not job.curves:
            logger.warning("%s of %s recorded no learning curve and is left out.", job.name, once)
        else:
            rows.append(Row.of_jobs(once.name, swept, job, others[key]))
    if alone:
        logger.warning("%s left out: %s has no job of the same setting and seed.", counted(alone, "job"), twice)
    return rows


def _evaluated(sweep: Path) -> list[tuple[tuple[str, ...], Mapping[str, str], Job]]:
    """The jobs of a sweep that have answers: what they have in common with those of another budget, and what was swept.

    A sweep of one seed does not name it in its folders, so the seed is that of the config.
    """
    found = []
    for record in read_jobs(sweep):
        job = read_job(sweep / record.name)
        if job is None or not job.metrics:
            logger.warning("%s of %s is not evaluated and is left out.", record.name, sweep)
            continue
        setting = sorted(f"{key}={value}" for key, value in record.swept.items() if key != "seed")
        found.append(((*setting, f"seed={job.config['seed']}"), record.swept, job))
    return found


def summary(rows: Iterable[Row]) -> str:
    """Sensitivity and false positives, with the jobs that are wrong on either side."""
    rows = list(rows)
    gained, stood = [row for row in rows if row.gain >= GAINED], [row for row in rows if row.gain < STOOD]
    found = [row for row in gained if row.learning.verdict == "yes"]
    false = [row for row in stood if row.learning.verdict == "yes"]
    lines = [
        f"{len(rows)} jobs.",
        f"Of {len(gained)} that gained {GAINED:g} points or more, {len(found)} were flagged ({_share(found, gained)}).",
        f"Of {len(stood)} that gained less than {STOOD:g}, {len(false)} were flagged ({_share(false, stood)}).",
    ]
    wrong = [row for row in gained if row not in found] + false
    lines += [f"- {row.sweep}/{row.job}: {row.once:.1f} to {row.twice:.1f}: {row.learning.why}" for row in wrong]
    return "\n".join(lines)


def _share(part: list[Row], whole: list[Row]) -> str:
    return f"{100 * len(part) / len(whole):.0f} %" if whole else "none"


def main() -> None:
    """Reads sweeps or rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="*", help="<sweep at the budget>:<sweep at twice the budget>")
    pairs = [[Path(one) for one in pair.split(":")] for pair in parser.parse_args().pairs]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if pairs:
        lines = [row.cells() for once, twice in pairs for row in read_pair(once, twice)]
        with ROWS.open("w", encoding="utf-8", newline="") as stream:
            names = dict.fromkeys(name for line in lines for name in line)
            writer = csv.DictWriter(stream, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    with ROWS.open(encoding="utf-8", newline="") as stream:
        logger.info("%s", summary(Row.of_cells(cells) for cells in csv.DictReader(stream)))


if __name__ == "__main__":
    main()
