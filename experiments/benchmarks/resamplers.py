"""Time and memory of every resampler at the sizes of real encoders, forward and backward, in one run.

python experiments/benchmarks/resamplers.py [--rounds 7] [--threads 2 1] [--device cuda] [--output resamplers.json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from panollava.component import component_names
from panollava.crop.cameras import camera_tensor
from panollava.crop.strategies import AnyresE2pCrop
from panollava.model.components import component_class, keeps_width

logger = logging.getLogger(__name__)

GRID, FEATURE_WIDTH, TOKEN_WIDTH = (16, 16), 1152, 768
"""Of SigLIP so400m on views of 224 or 256 pixels, and the latent width of every bundle with real backbones."""

CROP = AnyresE2pCrop()
WAYS: dict[str, dict[str, Any]] = {
    **{name: {} for name in component_names("model.resampler", "Resampler")},
    "bimamba scan=ring": {"scan": "ring"},
}
"""Every resampler as its signature has it, which are the defaults for real encoders, and a variant of one."""

Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="how often each is taken, in turn with the others")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({os.cpu_count() or 1, 1}, reverse=True))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)  # passed to the new processes
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if options.memory_of:
        sys.stdout.write(f"{_peak(options.memory_of, options.device):.1f}")
        return
    threads = options.threads if options.device == "cpu" else [None]  # the processor's do not matter to an accelerator
    results = {"machine": _machine(options.device), "precision": _precision(options.device), "resamplers": _facts()}
    memory = {name: _peak_of_fresh_process(name, options.device) for name in WAYS}
    for count in threads:
        if count is not None:
            torch.set_num_threads(count)
        times = _interleaved({name: _step(name, options.device) for name in WAYS}, options.rounds, options.device)
        for name, milliseconds in times.items():
            results["resamplers"][name].setdefault("milliseconds", {})[str(count or options.device)] = milliseconds
    for name, megabytes in memory.items():
        results["resamplers"][name]["peak_megabytes"] = megabytes
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    logger.info("%s\nWritten to %s.", _table(results), options.output)


def _built(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    component = component_class("resampler", name.partition(" ")[0])
    width = FEATURE_WIDTH if keeps_width(component) else TOKEN_WIDTH
    return component(input_width=FEATURE_WIDTH, output_width=width, **WAYS[name])


def _facts() -> dict[str, dict[str, Any]]:
    """What is known without running."""
    facts = {}
    for name in WAYS:
        with torch.device("meta"):
            resampler: Any = _built(name)
        parameters = sum(parameter.numel() for parameter in resampler.parameters())
        facts[name] = {"tokens": resampler.token_count(GRID), "parameters": parameters}
    return facts


def _step(name: str, device: str) -> Step:
    """Forward and backward over the views of one panorama, as in training behind a frozen encoder.

    So the features need no gradient, and what has no weights has no backward.
    """
    resampler = _built(name).to(device)
    cameras = camera_tensor(CROP.cameras())[None].to(device)
    mask = torch.ones(cameras.shape[:2], dtype=torch.bool, device=device)
    features = torch.randn(*mask.shape, GRID[0] * GRID[1], FEATURE_WIDTH).to(device)

    def step() -> None:
        resampler.zero_grad(set_to_none=True)
        with nullcontext() if device == "cpu" else torch.autocast(device, dtype=torch.bfloat16):
            tokens = resampler(features, grid=GRID, view_mask=mask, cameras=cameras)
        if tokens.requires_grad:
            tokens.backward(torch.ones_like(tokens))

    return step


def _interleaved(steps: dict[str, Step], rounds: int, device: str) -> dict[str, float]:
    """Median milliseconds of all rounds but a first one, by name."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            taken[name].append((time.perf_counter() - start) * 1000)
    return {name: round(statistics.median(times[1:]), 2) for name, times in taken.items()}


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _peak_of_fresh_process(name: str, device: str) -> float:
    command = [sys.executable, __file__, "--memory-of", name, "--device", device]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _peak(name: str, device: str) -> float:
    """Megabytes that the first step of this process adds to weights and features: activations and gradients.

    On a processor that is the growth of the resident memory to its highest mark, which Linux lets us put back to the
    present before the step; the mark holds the library's own scratch memory too.
    """
    step = _step(name, device)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # puts VmHWM back
    before = status("VmRSS")
    step()
    return (status("VmHWM") - before) / 2**10


def status(key: str) -> float:
    """Kilobytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), flags=re.M)
    assert found is not None
    return float(found[1])


def _table(results: dict[str, Any]) -> str:
    rows = results["resamplers"]
    settings = list(next(iter(rows.values()))["milliseconds"])
    titles = [f"ms, {setting} thread{'s' * (setting != '1')}" if setting.isdigit() else "ms" for setting in settings]
    head = ["resampler", "tokens a view", "parameters, M", *titles, "peak, MB"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["milliseconds"][settings[0]]):
        times = [f"{row['milliseconds'][setting]:.1f}" for setting in settings]
        cells = [name, str(row["tokens"]), f"{row['parameters'] / 1e6:.1f}", *times, f"{row['peak_megabytes']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return f"{results['precision']}\n\n" + "\n".join(lines)


def _precision(device: str) -> str:
    return "float32" if device == "cpu" else "bfloat16 (autocast), weights float32"


def _machine(device: str) -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "accelerator": None if device == "cpu" else torch.cuda.get_device_name(),
        "versions": {"torch": version("torch")},
    }


if __name__ == "__main__":
    main()
