"""IoU of boxes on the sphere: the exact one beside the two planar approximations, in one run.

python experiments/benchmarks/boxes.py [--rounds 9] [--pairs 100000] [--output boxes.json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from panollava.crop.boxes import fov_iou, iou, sph_iou

logger = logging.getLogger(__name__)

OURS, PLANE = "exact", "Sph-IoU"
WAYS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {OURS: iou, PLANE: sph_iou, "FoV-IoU": fov_iou}
LATITUDES = {"below 30 degrees": (0.0, 30.0), "30 to 60 degrees": (30.0, 60.0), "above 60 degrees": (60.0, 90.0)}
"""Ranges of the first box's pitch, either sign, for which errors are reported."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="how often each way is taken, in turn with the others")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    first, second = overlapping_pairs(options.pairs)
    speed = _speed(first, second, options.rounds)
    errors = _errors(first, second)
    lines = ["| IoU | pairs a second | to exact | mean error | largest |", "|---|---:|---:|---:|---:|"]
    for name in WAYS:
        gaps = errors.get(name, {}).get("all", {"mean": 0.0, "largest": 0.0})
        ratio = speed[name] / speed[OURS]
        lines.append(f"| {name} | {speed[name]:,.0f} | {ratio:.1f} | {gaps['mean']:.3f} | {gaps['largest']:.3f} |")
    logger.info("%s", "\n".join(lines))
    logger.info("Exact takes %.1f times as long as %s.", speed[PLANE] / speed[OURS], PLANE)
    results = {"machine": _machine(), "pairs": options.pairs, "pairs_per_cpu_second": speed, "errors": errors}
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    logger.info("Written to %s.", options.output)


def overlapping_pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes ``(N, 5)`` spread evenly over the sphere, and a second box that overlaps each of them."""
    rng = np.random.default_rng(0)
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    while sum(len(pair[0]) for pair in kept) < count:
        pitch = np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
        first = np.stack([rng.uniform(-180, 180, count), pitch, *rng.uniform(5, 90, (2, count)), np.zeros(count)], 1)
        apart = rng.uniform(-0.4, 0.4, (2, count)) * first[:, 2:4].T
        second = first + np.stack([apart[0] / np.cos(np.radians(pitch)).clip(0.1), apart[1], *np.zeros((3, count))], 1)
        second[:, 1], second[:, 2:4] = second[:, 1].clip(-90, 90), first[:, 2:4] * rng.uniform(0.7, 1.4, (count, 2))
        overlaps = iou(first, second) > 0
        kept.append((first[overlaps], second[overlaps]))
    first, second = (np.concatenate(boxes)[:count] for boxes in zip(*kept, strict=True))
    return first, second


def _speed(first: np.ndarray, second: np.ndarray, rounds: int) -> dict[str, float]:
    """Pairs per second of CPU time, which other work on the machine does not count in, medians."""
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds + 1):
        for name, way in WAYS.items():
            start = time.process_time()
            way(first, second)
            taken[name].append(time.process_time() - start)
    return {name: round(len(first) / statistics.median(times[1:])) for name, times in taken.items()}


def _errors(first: np.ndarray, second: np.ndarray) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and largest distance of each approximation from the exact value, for all pairs and by latitude."""
    exact, latitude = iou(first, second), np.abs(first[:, 1])
    ranges = {"all": np.ones(len(first), bool)}
    ranges |= {name: (latitude >= low) & (latitude < high) for name, (low, high) in LATITUDES.items()}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, way in WAYS.items():
        gaps = np.abs(way(first, second) - exact)
        if name != OURS:
            found[name] = {
                where: {"mean": round(float(gaps[which].mean()), 4), "largest": round(float(gaps[which].max()), 4)}
                for where, which in ranges.items()
            }
    return found


def _machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {"numpy": version("numpy")},
    }


if __name__ == "__main__":
    main()
