"""Samples a second of two processes on two cores beside one process on one core, with the same steps.

python experiments/benchmarks/processes.py [--rounds 3] [--stage finetune]

The built-in world and its miniature backbones; one process takes 16 panoramas per step, two take 8 each. Rounds
alternate, so that other jobs of the machine slow all of them equally, and each result has the machine's load beside it.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from panollava.logs import say

STEP = 16
WAYS = ("one", "ddp", "fsdp")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stage", default="finetune", choices=("vision", "resampler", "finetune"))
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        sys.exit("Two cores are needed.")
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(options.rounds):
        for way in WAYS:
            load = os.getloadavg()[0]
            rates[way].append(rate(way, options.stage, cores))
            say(f"round {turn + 1}, {way}: {rates[way][-1]:.1f} samples/s (load {load:.1f} before)")
    base = statistics.median(rates["one"])
    for way in WAYS:
        median = statistics.median(rates[way])
        say(f"{way}: {median:.1f} samples/s, {median / base:.2f} times one process")


def rate(way: str, stage: str, cores: list[int]) -> float:
    """Samples a second of one training, by its own log; the first epoch cuts the views, the others have them.

    Args:
        way: one of ``WAYS``.
        stage: which is trained.
        cores: two that may be used; a single process gets the first.
    """
    processes = 1 if way == "one" else 2
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if processes == 2 else []
    asked = [f"stage={stage}", "data.train_scenes=160", "data.val_scenes=4", f"stage.{stage}.epochs=3"]
    asked += [f"stage.{stage}.batch_size={STEP // processes}", "evaluation.enabled=false", "tracking=none"]
    asked += ["trainer.device=cpu", f"trainer.parallel={'ddp' if way == 'one' else way}", "experiment_name=x"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "panollava.train", *asked],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
            preexec_fn=lambda: os.sched_setaffinity(0, cores[:processes]),
            capture_output=True,
            text=True,
        )
    found = re.search(rf"Stage {stage}: [\d.]+ s, ([\d.]+) samples/s", done.stderr)
    if done.returncode or found is None:
        sys.exit(done.stderr)
    return float(found[1])


if __name__ == "__main__":
    main()
