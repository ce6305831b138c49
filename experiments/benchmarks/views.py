"""Speed and quality of cutting views from JPEG panoramas, compared with other methods, in one run.

python experiments/benchmarks/views.py [--pictures FOLDER] [--rounds 7] [--threads 2 1] [--output views.json]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import ways
from picture import write_picture

from panollava.crop.image_file import parse_header

logger = logging.getLogger(__name__)

OURS, FLOOR = "panollava", "decoding alone, at our scale"
PILLOW, PILLOW_OPENCV = "Pillow + py360convert (SciPy)", "Pillow + py360convert (OpenCV)"
EQUILIB, REMAP = "OpenCV + pyequilib", "OpenCV + cached maps, 1 sample"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--pictures", type=Path, help="a folder of JPEG panoramas; the generated one is always measured"
    )
    parser.add_argument("--rounds", type=int, default=7, help="how often each way is taken, in turn with the others")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({os.cpu_count() or 1, 1}, reverse=True))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        generated = Path(folder) / "generated.jpg"
        write_picture(generated)
        paths = [generated, *(sorted(options.pictures.glob("*.jpg")) if options.pictures else [])]
        results = {"machine": _machine(), "pictures": [_measured(path, options) for path in paths]}
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    logger.info("Written to %s.", options.output)


def _measured(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one picture."""
    with path.open("rb") as file:
        header = parse_header(file)
    assert header is not None
    panorama = ways.CROP.read(path)
    divisor = round(header.width / panorama.shape[1])
    facts = {"picture": path.name, "size": [header.height, header.width], "kilobytes": path.stat().st_size // 1024}
    logger.info("\n## %s: %d x %d, %d kB\n", path.name, header.width, header.height, facts["kilobytes"])
    scipy, opencv = (ways.load_py360convert(with_opencv) for with_opencv in (False, True))
    from_file: dict[str, Callable[[], object]] = {
        OURS: partial(ways.ours, path),
        PILLOW: partial(ways.pillow_py360convert(scipy), path),
        PILLOW_OPENCV: partial(ways.pillow_py360convert(opencv), path),
        EQUILIB: partial(ways.opencv_equilib, path),
        REMAP: partial(ways.opencv_remap, path),
        FLOOR: partial(ways.decode_alone, path, divisor),
    }
    sampling: dict[str, Callable[[], object]] = {
        OURS: partial(ways.our_tiles, panorama),
        "cached maps, 1 sample": partial(ways.remap_tiles, panorama),
        "pyequilib, 1 sample": partial(ways.equilib_tiles, panorama),
        "pyequilib on tensors, 1 sample": partial(ways.equilib_torch_tiles, panorama),
        "pyequilib, 2 x 2 samples": partial(ways.equilib_tiles_of_means, panorama),
    }
    timings = []
    for threads in options.threads:
        cv2.setNumThreads(threads)
        torch.set_num_threads(threads)
        for title, todo in (("from the file to 9 views", from_file), ("8 tiles from the decoded array", sampling)):
            times = _interleaved(todo, options.rounds)
            timings.append({"what": title, "threads": threads, "milliseconds": times})
            logger.info("%s", _time_table(f"{title}, {threads} threads", times))
    quality = _quality(path, opencv)
    logger.info("%s", _quality_table(quality))
    return {**facts, "decoded": list(panorama.shape[:2]), "timings": timings, "psnr": quality}


def _interleaved(todo: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the first call, which may build maps, and the median of those after it, by name."""
    taken: dict[str, list[float]] = {name: [] for name in todo}
    for _ in range(rounds + 1):
        for name, action in todo.items():
            start = time.perf_counter()
            action()
            taken[name].append((time.perf_counter() - start) * 1000)
    return {
        name: {"first": round(times[0], 2), "median": round(statistics.median(times[1:]), 2)}
        for name, times in taken.items()
    }


def _quality(path: Path, py360convert: Any) -> dict[str, list[float]]:
    """PSNR in dB of each view, the whole panorama first, by name."""
    truth = ways.reference(path)
    cut = {
        OURS: ways.ours(path),
        "py360convert at 672, shrunk by bicubic": ways.pillow_py360convert(py360convert)(path),
        "py360convert at 672, shrunk by mean": ways.pillow_py360convert(py360convert, ways.by_mean)(path),
        EQUILIB: ways.opencv_equilib(path),
        REMAP: ways.opencv_remap(path),
    }
    return {
        name: [
            round(_psnr(view[ways.CONTENT] if index == 0 else view, truth[index]), 2)
            for index, view in enumerate(views)
        ]
        for name, views in cut.items()
    }


def _psnr(view: np.ndarray, truth: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((view - truth) ** 2)))


def _time_table(title: str, times: Mapping[str, Mapping[str, float]]) -> str:
    own = times[OURS]["median"]
    lines = [f"| {title} | ms | to ours | first call, ms |", "|---|---|---|---|"]
    for name, time_ in times.items():
        lines.append(f"| {name} | {time_['median']:.1f} | {time_['median'] / own:.2f} | {time_['first']:.0f} |")
    return "\n".join(lines) + "\n"


def _quality_table(quality: Mapping[str, list[float]]) -> str:
    lines = ["| PSNR, dB | whole | tiles: mean | lowest | ours above it, lowest |", "|---|---|---|---|---|"]
    for name, values in quality.items():
        margin = min(own - other for own, other in zip(quality[OURS][1:], values[1:], strict=True))
        lines.append(
            f"| {name} | {values[0]:.1f} | {statistics.mean(values[1:]):.1f} | {min(values[1:]):.1f} | {margin:+.1f} |"
        )
    return "\n".join(lines) + "\n"


def _machine() -> dict[str, Any]:
    names = ("opencv-python", "simplejpeg", "pillow", "py360convert", "pyequilib", "torch", "scipy", "numpy")
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in names},
    }


if __name__ == "__main__":
    main()
