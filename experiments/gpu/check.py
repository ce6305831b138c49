"""Checks the package on a GPU: numbers against fp32, kernels, processes, resuming, memory, and speed. No download.

python experiments/gpu/check.py [--device cuda] [--size real] [--parts precision mamba …] [--out gpu_check]
    [--minutes 9] [--again]
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # neither the package nor this folder need be installed
    sys.path.insert(0, str(ROOT))

from experiments.gpu.rows import BAD, FAILED, NO_TIME, Check, Row, document, results, table  # noqa: E402

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A part of the check, which runs in a process of its own.

    Attributes:
        source: ``module:function`` of this folder; the function takes a ``Setting`` and gives checks.
        seconds: it takes at most on a GPU, as far as is known; less time than that, and it does not begin.
        environment: variables of its process.
    """

    source: str
    seconds: int
    environment: tuple[tuple[str, str], ...] = ()


PARTS = {
    "precision": Part("numerics:precision", 50),
    "mamba": Part("numerics:mamba", 30),
    "prefix": Part("numerics:prefix", 45),
    "parallel": Part("training:parallel", 30),
    "resume": Part("training:resume", 40, (("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),)),
    "memory": Part("training:memory", 40),
    "views": Part("speed:views", 25),
    "stage_1": Part("speed:stage_1", 30),
    "stages_0.5b": Part("speed:stages_half_b", 50),
    "stages_7b": Part("speed:stages_7b", 90),
    "llava": Part("speed:llava", 50),
    "compile": Part("training:compile", 60),
}
"""In the order in which they run; together they take less than nine minutes."""

HARDWARE = "hardware"
SMALL_SECONDS = 10
"""Of a part with ``--size small``."""


def main() -> None:
    """Runs the parts, and writes their JSON and the table; exits with 1 if a row is wrong or failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--size", choices=("real", "small"), help="small by default on a CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder of the JSON files and the table")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all parts together")
    parser.add_argument("--again", action="store_true", help="also run parts that the folder has already")
    parser.add_argument("--part", choices=[*PARTS, HARDWARE], help=argparse.SUPPRESS)  # passed to the new processes
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part == HARDWARE:
        _describe(options)
    elif options.part:
        _run_part(options)
    else:
        sys.exit(_run_all(options))


def _run_all(options: argparse.Namespace) -> int:
    end = time.monotonic() + 60 * options.minutes
    done = subprocess.run(_command(HARDWARE, options), check=False)
    if done.returncode:
        return done.returncode
    hardware = json.loads(_file(options.out, HARDWARE).read_text("utf-8"))
    options.device, options.size = hardware.pop("device"), hardware["size"]
    for name in options.parts:
        if not options.again and _is_done(_file(options.out, name), hardware):
            logger.info("%s: in %s already.", name, options.out)
            continue
        found = _in_new_process(name, options, end - time.monotonic())
        _write(_file(options.out, name), {**found, "hardware": hardware})
        for row in found["rows"]:
            logger.info("%s: %s: %s %s", name, row["what"], row["state"], row["note"])
    paths = [path for name in PARTS if (path := _file(options.out, name)).is_file()]
    parts = [json.loads(path.read_text("utf-8")) for path in paths]
    text = table(hardware, [part for part in parts if part["hardware"] == hardware])
    (options.out / "table.md").write_text(text, "utf-8")
    logger.info("\n%s\nWritten to %s.", text, options.out)
    asked = [part for part in parts if part["part"] in options.parts]
    return int(any(row["state"] in BAD for part in asked for row in part["rows"]))


def _is_done(path: Path, hardware: dict[str, Any]) -> bool:
    """Whether a part has been run to its end on this machine."""
    if not path.is_file():
        return False
    found = json.loads(path.read_text("utf-8"))
    return bool(found["complete"] and found.get("hardware") == hardware)


def _in_new_process(name: str, options: argparse.Namespace, left: float) -> dict[str, Any]:
    """Runs a part, whose process writes its rows as they come, and gives them; how it ended is the last row."""
    path, part = _file(options.out, name), PARTS[name]
    path.unlink(missing_ok=True)
    needed = part.seconds if options.size == "real" else SMALL_SECONDS
    if left < needed:
        return document(
            name, [Row(name, NO_TIME, f"takes up to {needed} s, {left:.0f} s were left")], seconds=0, is_complete=False
        )
    environment = {**os.environ, **dict(part.environment), "CUDA_VISIBLE_DEVICES": _first_gpu()}
    note, state = "", FAILED
    log = options.out / f"{name}.log"
    with log.open("w", encoding="utf-8") as stream:
        try:
            done = subprocess.run(
                _command(name, options), env=environment, timeout=left, check=False, stderr=stream, stdout=stream
            )
        except subprocess.TimeoutExpired:
            note, state = f"stopped after {left:.0f} s", NO_TIME
        else:
            if done.returncode:
                note = f"its process ended with {done.returncode}: {_last_line(log)}"
    found: dict[str, Any] = document(name, [], seconds=0, is_complete=False)
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
    if note:
        found["rows"] += document(name, [Row(name, state, note)], seconds=0, is_complete=False)["rows"]
        found["complete"] = False
    return found


def _first_gpu() -> str:
    """The GPU that all parts use: the Trainer of transformers would take every one that it sees."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


def _command(name: str, options: argparse.Namespace) -> list[str]:
    command = [sys.executable, __file__, "--part", name, "--device", options.device, "--out", str(options.out)]
    return command + (["--size", options.size] if options.size else [])


def _describe(options: argparse.Namespace) -> None:
    stood_in = _stand_ins()
    import torch

    from experiments.gpu.hardware import described

    kind = options.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no CUDA GPU here. Use --device cpu.")
    device = torch.device("cuda:0" if kind == "cuda" else "cpu")
    size = options.size or ("real" if kind == "cuda" else "small")
    _write(_file(options.out, HARDWARE), {"device": kind, **described(device, size, stood_in)})


def _stand_ins() -> list[str]:
    from experiments.gpu import stand_ins

    return stand_ins.install()


def _run_part(options: argparse.Namespace) -> None:
    """Runs one part in this process."""
    _stand_ins()
    from experiments.gpu.models import REAL, SMALL, Setting, tidy

    start, found, path = time.monotonic(), [], _file(options.out, options.part)
    kind = {"cuda": "cuda:0", "cpu": "cpu"}[options.device]
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting.of(kind, {"real": REAL, "small": SMALL}[options.size], Path(folder))
        for row in results(options.part, _checks(options.part, setting), tidy):
            found.append(row)
            _write(path, document(options.part, found, seconds=time.monotonic() - start, is_complete=False))
    _write(path, document(options.part, found, seconds=time.monotonic() - start, is_complete=True))


def _checks(name: str, setting: Any) -> Iterator[Check]:
    """A part's checks; its module is imported inside, so that an error of the import is a row as well."""
    module, _, function = PARTS[name].source.partition(":")
    make: Callable[[Any], Sequence[Check]] = getattr(importlib.import_module(f"experiments.gpu.{module}"), function)
    yield from make(setting)


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _write(path: Path, content: dict[str, Any]) -> None:
    """Through another file, so that a process that is killed leaves whole JSON."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
