"""How long a job of a sweep takes before its first optimiser step is done, with the features already on disk.

``python experiments/benchmarks/sweep_start.py [--jobs 4]`` works in a temporary folder. The first sweep fills the
store; then the same jobs run under other seeds, one after the other in one process, and two at once in new processes.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

logger = logging.getLogger(__name__)

QUICK = ["data.train_scenes=64", "data.val_scenes=16", "data.test_scenes=1", "trainer.max_steps=1"]
QUICK += ["trainer.log_every_steps=1", "evaluation.enabled=false"]
LINE = re.compile(r"^(\S+ \S+) . vision epoch 0 step 1:", re.MULTILINE)


def sweep(folder: Path, name: str, seeds: range, *launcher: str) -> float:
    """Runs jobs of all three stages, a step each, and returns when the command began."""
    chosen = ",".join(map(str, seeds))
    command = [sys.executable, "-m", "panollava.train", "-m", f"seed={chosen}", f"experiment_name={name}"]
    began = time.time()
    subprocess.run([*command, *QUICK, *launcher], cwd=folder, check=True, capture_output=True)
    return began


def first_step(job: Path) -> float:
    """When a job's first step was done, as its log says."""
    (log,) = (job / "logs").glob("full_pipeline_*.log")
    found = LINE.search(log.read_text(encoding="utf-8"))
    assert found is not None, log
    return datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def main() -> None:
    """Times both launchers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=4)
    count = parser.parse_args().jobs
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sweep(folder, "filled", range(1))
        began = sweep(folder, "warm", range(1, 1 + count))
        jobs = [folder / "runs" / "warm" / f"seed-{seed}" for seed in range(1, 1 + count)]
        cold = first_step(jobs[0]) - began
        # A job begins when the one before it has written its last record.
        warm = [first_step(job) - (before / "job.json").stat().st_mtime for before, job in itertools.pairwise(jobs)]
        began = sweep(folder, "cold", range(100, 102), "hydra/launcher=parallel")
        parallel = [first_step(folder / "runs" / "cold" / f"seed-{seed}") - began for seed in (100, 101)]
    logger.info("one after the other, first job, from the command: %.2f s", cold)
    listed = ", ".join(f"{each:.2f}" for each in warm)
    logger.info("one after the other, later jobs: median %.2f s (%s)", statistics.median(warm), listed)
    logger.info("two at once in new processes, from the command: %.2f s and %.2f s", *parallel)


if __name__ == "__main__":
    main()
