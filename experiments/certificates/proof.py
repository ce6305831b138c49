"""Proves the certificates: readers with planted faults against ``expected.yaml``, and models that answer at random.

``python -m experiments.certificates.proof`` writes ``faults.csv`` (a line a reader and certificate) and ``nulls.csv``
(a line a random model) beside this file, and says what was found. It takes about two minutes on one core.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from experiments.certificates.planted import EXPECTED, Reader, World, random_scores
from panollava.disk import csv_text, write_file
from panollava.evaluation.certificate_report import Certificate, fired, judge, judge_scores
from panollava.evaluation.certificates import Plan, ask
from panollava.evaluation.statistics import LEVEL

HERE = Path(__file__).parent
SCENES, NULLS, SWAPS = 100, 1000, 2000
ACCURACIES = (0.2, 0.5, 0.8, 0.95)
"""Of the random models, one after the other."""
logger = logging.getLogger(__name__)


def expectation(fault: str, certificate: str) -> str:
    """``must``, ``may`` or ``must not``."""
    return next((word for word in ("must", "may") if certificate in EXPECTED[fault][word]), "must not")


def surprises(fault: str, found: Sequence[Certificate]) -> list[str]:
    """Certificates that fire and must not, or do not fire and must."""
    fires = fired(found)
    wrong = {"must": lambda name: name not in fires, "must not": lambda name: name in fires, "may": lambda _: False}
    return [one.name for one in found if wrong[expectation(fault, one.name)](one.name)]


def check_faults(world: World, plan: Plan, swaps: int = SWAPS) -> dict[str, list[Certificate]]:
    """The certificates of each reader."""
    return {fault: judge(plan, ask(plan, Reader(world, fault)), swaps=swaps) for fault in EXPECTED}


def null_range(count: int) -> tuple[float, float]:
    """Where the flagged share of ``count`` random models lies in 95 % of all cases if it is 5 % in truth.

    The normal approximation of a binomial share: of 1,000 models 3.65 to 6.35 %.
    """
    half = 1.96 * math.sqrt(LEVEL * (1 - LEVEL) / count)
    return LEVEL - half, LEVEL + half


def null_rows(plan: Plan, count: int, swaps: int = SWAPS) -> list[list[object]]:
    """Seed, accuracy and smallest adjusted p-value of random models, and whether a certificate fires."""
    rows: list[list[object]] = []
    for seed in range(count):
        accuracy = ACCURACIES[seed % len(ACCURACIES)]
        found = judge_scores(plan, random_scores(plan, accuracy, seed), swaps=swaps)
        values = [one.found.adjusted_p for one in found if one.found is not None]
        lowest = min((one for one in values if one is not None), default=1.0)
        rows.append([seed, accuracy, round(lowest, 6), int(bool(fired(found)))])
    return rows


def main() -> None:
    """Runs the proof and writes its rows."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--nulls", type=int, default=NULLS)
    options = parser.parse_args()
    world = World(options.scenes)
    plan = world.plan()
    rows: list[list[object]] = [
        ["reader", "certificate", "expected", "verdict", "questions", "before", "after", "difference", "low", "high"]
    ]
    for fault, found in check_faults(world, plan).items():
        for one in found:
            record = one.record()
            numbers = [record[key] for key in ("questions", "before", "after", "difference", "low", "high")]
            shown = [round(value, 4) if isinstance(value, float) else value for value in numbers]
            rows.append([fault, one.name, expectation(fault, one.name), one.verdict, *shown])
        logger.info("%s: fires %s; surprises: %s", fault, fired(found), surprises(fault, found) or "none")
    write_file(HERE / "faults.csv", csv_text(rows))
    nulls = null_rows(plan, options.nulls)
    write_file(HERE / "nulls.csv", csv_text([["seed", "accuracy", "lowest adjusted p", "flagged"], *nulls]))
    flagged = sum(int(str(row[-1])) for row in nulls)
    low, high = null_range(len(nulls))
    logger.info(
        "%d of %d random models are flagged, %.1f %%; %.1f to %.1f %% are expected.",
        flagged, len(nulls), 100 * flagged / len(nulls), 100 * low, 100 * high,
    )  # fmt: skip


if __name__ == "__main__":
    main()
