"""Speed of reading data sets: the check of large files, and the loader compared with decoding alone.

python experiments/benchmarks/data.py [--rows 100000] [--pictures 3000] [--panoramas 12] [--workers 0 2] [--rounds 3]
    [--output data.json]
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from picture import write_picture
from torch.utils.data import DataLoader, Dataset

from panollava.crop.crop import Crop
from panollava.data.dataset import PanoDataset
from panollava.data.files import FilesSource
from panollava.data.loader import Collate, StageLoader

logger = logging.getLogger(__name__)

CROP = {"type": "anyres_e2p", "fov_deg": 90.0, "overlap": 0.5}
"""Nine views, as in training."""
SIDE = 224
REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
WORDS = ("wide", "street", "tall", "houses", "parked", "cars", "people", "walking", "trees", "river", "blue", "sky")
LAUNCHER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run([sys.executable, *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
seconds = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_CHILDREN)
found = dict(seconds=seconds, cpu_seconds=used.ru_utime + used.ru_stime, peak_mb=used.ru_maxrss / 1024)
sys.stdout.write(json.dumps(found))
"""
"""Starts a command from a small process: the peak of one that this process starts would begin with this one's size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000, help="of the data files that are checked")
    parser.add_argument("--pictures", type=int, default=3000, help="that they name, of 2048 x 1024 pixels")
    parser.add_argument("--panoramas", type=int, default=12, help="of 6000 x 3000 pixels, that the loader reads")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="processes of the loader")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is taken, in turn with the others")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    results: dict[str, Any] = {"machine": _machine()}
    with tempfile.TemporaryDirectory(prefix="panollava-data-") as folder:
        results["check"] = _checks(Path(folder), options)
        results["loader"] = _loaders(Path(folder), options)
    options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    logger.info("Figures: %s", options.output)


def _checks(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds and peak memory of whole commands, each in a process of its own."""
    _write_set(folder, options.rows, options.pictures)
    ask = ["-m", "panollava.check", "splits=[train]"]
    ways = {
        "rows and ends of files alone": [str(Path(__file__).with_name("data_floor.py")), str(folder / "train.csv")],
        "csv": [*ask, "texts=0", "data=csv", f"data.train_csv={folder / 'train.csv'}"],
        "jsonl": [*ask, "texts=0", "data=json", f"data.train_json={folder / 'train.jsonl'}"],
        "json": [*ask, "texts=0", "data=json", f"data.train_json={folder / 'train.json'}"],
        "csv, with 20,000 texts": [*ask, "data=csv", f"data.train_csv={folder / 'train.csv'}"],
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, command in ways.items():
            found[name].append(_measured(command, folder))
    result = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()
    }
    for name, figures in result.items():
        logger.info("%-30s %s", name, "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    return result


def _write_set(folder: Path, rows: int, pictures: int) -> None:
    """A CSV, a JSON and a JSON Lines file of the same entries, and their pictures, which differ in a comment."""
    smooth = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (1024, 2048, 3), dtype=np.uint8), (0, 0), 1.5)
    data = bytes(cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, 60])[1])
    (folder / "images").mkdir()
    for number in range(pictures):
        comment = f"{number:08d}".encode()
        (folder / f"images/{number}.jpg").write_bytes(data[:2] + b"\xff\xfe\0\x0a" + comment + data[2:])
    draw = np.random.default_rng(1)
    images = [f"images/{number}.jpg" for number in draw.integers(pictures, size=rows)]
    answers = [" ".join(words) for words in draw.choice(WORDS, (rows, 20))]
    entries = [(images[row], f"What is at {row % 360} degrees?", answers[row]) for row in range(rows)]
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("url", "query", "annotation"))
        writer.writerows(entries)
    objects = [
        {"image_path": image, "conversations": [{"human": query, "assistant": answer}]}
        for image, query, answer in entries
    ]
    (folder / "train.json").write_text(json.dumps(objects, indent=1), encoding="utf-8")
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, objects)), encoding="utf-8")


def _measured(command: list[str], folder: Path) -> dict[str, float]:
    """Seconds, processor seconds and peak memory (MiB, Linux) of a Python command; raises if it fails."""
    launcher = [sys.executable, "-c", LAUNCHER, *command]
    done = subprocess.run(launcher, cwd=folder, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(done.stdout))


class _DecodingAlone(Dataset[int]):
    """Reads and decodes a panorama at the loader's scale, and hands back its height alone."""

    def __init__(self, paths: list[Path], divisor: int) -> None:
        self.paths = paths
        self.divisor = divisor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> int:
        data = np.frombuffer(self.paths[index].read_bytes(), dtype=np.uint8)
        return int(cv2.imdecode(data, REDUCED[self.divisor]).shape[0])


def _loaders(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Panoramas a second, from the files to batches of views, and of the decoding alone in as many processes."""
    paths = [folder / f"panorama-{number}.jpg" for number in range(options.panoramas)]
    write_picture(paths[0])
    for path in paths[1:]:
        path.write_bytes(paths[0].read_bytes())
    table = folder / "panoramas.csv"
    table.write_text("url,query,annotation\n" + "".join(f"{path.name},q,a\n" for path in paths), encoding="utf-8")
    crop = Crop.from_spec(CROP, view_size=(SIDE, SIDE))
    source = FilesSource(path=str(table), reader=crop.read, check=crop.check)
    divisor = round(3000 / source.panorama(0).shape[0])
    ways: dict[str, Callable[[], object]] = {}
    for workers in options.workers:
        loader = StageLoader(
            PanoDataset(source, crop), PanoDataset(source, crop), Collate(), batch_size=4, num_workers=workers
        )
        ways[f"loader, {workers} workers"] = partial(_drained, lambda loader=loader: loader.windows(0))
        alone = DataLoader(
            _DecodingAlone(paths, divisor),
            batch_size=4,
            num_workers=workers,
            worker_init_fn=_one_thread,
            persistent_workers=workers > 0,
        )
        ways[f"decoding alone, {workers} workers"] = partial(_drained, lambda alone=alone: iter(alone))
    _one_thread(0)
    seconds = _interleaved(ways, options.rounds)
    result = {}
    for workers in options.workers:
        ours, floor = seconds[f"loader, {workers} workers"], seconds[f"decoding alone, {workers} workers"]
        # On a busy machine wall time depends on other jobs, so CPU time of this process is reported too.
        clock = "cpu_seconds" if workers == 0 else "seconds"
        result[f"{workers} workers"] = {
            "panoramas_a_second": len(paths) / ours["seconds"],
            "decoded_alone_a_second": len(paths) / floor["seconds"],
            f"{clock}_to_decoding_alone": ours[clock] / floor[clock],
        }
    for name, figures in result.items():
        logger.info("%-30s %s", name, "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    return result


def _drained(start: Callable[[], Iterator[object]]) -> None:
    for _ in start():
        pass


def _one_thread(worker: int) -> None:  # noqa: ARG001
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _interleaved(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of all and of this process; a first round, in which workers start, is not counted."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start, used = time.perf_counter(), time.process_time()
            way()
            if turn:
                times[name].append((time.perf_counter() - start, time.process_time() - used))
    return {
        name: {
            "seconds": statistics.median(taken for taken, _ in found),
            "cpu_seconds": statistics.median(taken for _, taken in found),
        }
        for name, found in times.items()
    }


def _machine() -> dict[str, Any]:
    packages = ("opencv-python", "torch", "numpy")
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        **{package: version(package) for package in packages},
    }


if __name__ == "__main__":
    main()
