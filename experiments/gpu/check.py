"""Checks the package on a GPU: numbers against fp32, kernels, processes, resuming, memory, and speed. No download.

python experiments/gpu/check.py [--device cuda] [--size real] [--parts precision mamba …] [--out gpu_check]
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # neither the package nor this folder need be installed
    sys.path.insert(0, str(ROOT))

from experiments.gpu.rows import BAD, FAILED, NO_TIME, Check, Row, results, table  # noqa: E402

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """A part of the check, which runs in a process of its own."""

    module: str  # of this folder
    function: str  # takes a ``Setting`` and gives checks
    seconds: int  # that it has on a GPU; it may also take what earlier parts left


PARTS = {
    "precision": Part("numerics", "precision", 50),
    "mamba": Part("numerics", "mamba", 25),
    "prefix": Part("numerics", "prefix", 40),
    "parallel": Part("training", "parallel", 35),
    "resume": Part("training", "resume", 40),
    "memory": Part("training", "memory", 30),
    "views": Part("speed", "views", 20),
    "stage_1": Part("speed", "stage_1", 35),
    "stages_0.5b": Part("speed", "stages_half_b", 50),
    "stages_7b": Part("speed", "stages_7b", 90),
    "llava": Part("speed", "llava", 50),
    "compile": Part("training", "compile", 60),
}
"""In the order in which they run."""

SECONDS = {"cuda": 540, "cpu": 3600}
"""Of all parts together, on each kind of device; on a GPU nine minutes."""


def main() -> None:
    """Runs the parts that have no JSON yet, and writes the table; exits with 1 if a row is wrong, failed or missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--size", choices=("real", "small"), help="small by default on a CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder of the JSON files and the table")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # what a process of its own runs
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if options.part:
        _run_part(options)
    else:
        sys.exit(_run_all(options))


def _run_all(options: argparse.Namespace) -> int:
    start = time.monotonic()
    hardware = _hardware(options)
    options.out.mkdir(parents=True, exist_ok=True)
    found = {name: _read(_file(options, name), hardware) for name in PARTS if _file(options, name).is_file()}
    waiting = [name for name in PARTS if name in options.parts and name not in found]
    for name in options.parts:
        if name in found:
            logger.info("%s: is in %s.", name, _file(options, name))
    while waiting:
        name = waiting.pop(0)
        left = SECONDS[options.device] - (time.monotonic() - start)
        found[name] = _in_new_process(name, options, left - sum(PARTS[later].seconds for later in waiting))
        content = {"part": name, "hardware": hardware, "rows": [asdict(row) for row in found[name]]}
        temporary = _file(options, name).with_suffix(".tmp")  # a process that is killed leaves no half of a file
        temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        temporary.replace(_file(options, name))
        for row in found[name]:
            logger.info("%s: %s: %s %s", name, row.what, row.state, row.note)
    text = table(hardware, {name: found[name] for name in PARTS if name in found})
    (options.out / "table.md").write_text(text, "utf-8")
    logger.info("\n%s\n%.0f s. Written to %s.", text, time.monotonic() - start, options.out)
    return int(any(row.state in BAD for name in options.parts for row in found[name]))


def _hardware(options: argparse.Namespace) -> dict[str, Any]:
    """What the table begins with; also decides device and size."""
    import torch

    from experiments.gpu.hardware import described

    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: PyTorch sees no CUDA GPU here. Use --device cpu.")
    options.size = options.size or ("real" if options.device == "cuda" else "small")
    return {**described(options.device), "size": options.size}


def _read(path: Path, hardware: dict[str, Any]) -> list[Row]:
    """The rows of a part that has run; ends where it ran elsewhere, as one table is of one machine."""
    content = json.loads(path.read_text("utf-8"))
    other = [f"{key}: {value}" for key, value in content["hardware"].items() if hardware.get(key) != value]
    if other:
        sys.exit(f"{path} was made with another {', another '.join(other)}. Choose an empty folder with --out.")
    return [Row(**row) for row in content["rows"]]


def _in_new_process(name: str, options: argparse.Namespace, seconds: float) -> list[Row]:
    """Runs a part, whose process adds its rows to a file as they come; if it is cut short, the last row says so."""
    rows, log = _rows_file(options, name), options.out / f"{name}.log"
    rows.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],  # Trainer takes all it sees
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic products, with the memory that they have on an H200
    }
    end = []
    with log.open("w", encoding="utf-8") as stream:
        try:
            done = subprocess.run(
                _command(name, options),
                env=environment,
                timeout=max(0.0, seconds),
                check=False,
                stderr=stream,
                stdout=stream,
            )
        except subprocess.TimeoutExpired:
            end = [Row(name, NO_TIME, f"stopped after {seconds:.0f} s")]
        else:
            if done.returncode:
                lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
                last = lines[-1].strip()[:300] if lines else "no message"
                end = [Row(name, FAILED, f"its process ended with {done.returncode}: {last}")]
    found = rows.read_text("utf-8").splitlines() if rows.is_file() else []
    rows.unlink(missing_ok=True)
    return [Row(**json.loads(line)) for line in found] + end


def _command(name: str, options: argparse.Namespace) -> list[str]:
    asked = ["--part", name, "--device", options.device, "--size", options.size, "--out", str(options.out)]
    return [sys.executable, __file__, *asked]


def _run_part(options: argparse.Namespace) -> None:
    """Runs one part in this process."""
    from experiments.gpu import stand_ins

    stand_ins.install()
    from experiments.gpu.measure import tidy
    from experiments.gpu.models import SIZES, Setting

    with tempfile.TemporaryDirectory() as folder, _rows_file(options, options.part).open("w", encoding="utf-8") as rows:
        setting = Setting.of(options.device, SIZES[options.size], Path(folder))
        for row in results(options.part, checks_of(options.part, setting), tidy):
            rows.write(json.dumps(asdict(row)) + "\n")
            rows.flush()


def checks_of(name: str, setting: Any) -> Iterator[Check]:
    """A part's checks; its module is imported inside, so that an error of the import is a row as well."""
    part = PARTS[name]
    yield from getattr(importlib.import_module(f"experiments.gpu.{part.module}"), part.function)(setting)


def _file(options: argparse.Namespace, name: str) -> Path:
    return Path(options.out, f"{name}.json")


def _rows_file(options: argparse.Namespace, name: str) -> Path:
    """Rows of a part that has not ended, one a line."""
    return Path(options.out, f"{name}.rows")


if __name__ == "__main__":
    main()
