"""What the feature store saves, and that it changes nothing: times, bits, concurrent jobs, killed writers.

python experiments/benchmarks/features.py [--csv data.csv --rows 24]

With ``--csv`` on photographs, else on the built-in world. Everything is measured in one run, one job at a time unless
stated otherwise; ratios are of epochs 2 and later. The second number of a time is CPU seconds, which depend less on
other jobs of the machine.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from panollava.config.command_line import CONF, canonical
from panollava.config.entrypoint import register_resolvers
from panollava.data.dataset import PanoDataset, Sample
from panollava.features import warm
from panollava.model.vision import VisionTower
from panollava.run.build_stage import build_stage
from panollava.run.config_check import checked
from panollava.run.features import open_features
from panollava.run.run import Run, open_run
from panollava.store.catalogue import clear_stores, kept_stores
from panollava.training.distributed import DistributedContext
from panollava.training.loop import OptimiserStep
from panollava.training.options import make_optimizer

STAGES = ("vision", "resampler", "finetune")
EPOCHS = 3


@contextmanager
def opened(*arguments: str) -> Iterator[Run]:
    """A run of a command line."""
    register_resolvers()
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("train", overrides=canonical([*arguments, "tracking=none", "trainer.num_workers=0"]))
    with open_run(checked(cfg), DistributedContext()) as run:
        yield run


class Remembered(PanoDataset):
    """Keeps the views of every panorama in memory: what can be saved without keeping features."""

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        record, name = self.source.record(index, epoch), self.source.image_id(index)
        if name not in self.__dict__.setdefault("kept", {}):
            self.__dict__["kept"][name] = self.crop.views(self.source.panorama(index))
        text = None if self.encode is None else self.encode(record)
        return Sample(record.sample_id, self.__dict__["kept"][name], self.crop.camera_rows, text)


def epochs(run: Run, name: str, *, remember: bool = False) -> tuple[list[tuple[float, float]], list[float]]:
    """Seconds (wall clock, CPU) of each epoch of a stage, and the loss of each step."""
    torch.manual_seed(0)
    stage, options = build_stage(run, name), run.stage_options(name)
    loader = run.batches(name, options)
    if remember:
        dataset = loader._train._loader.dataset.dataset  # type: ignore[attr-defined]
        dataset.__class__ = Remembered
    optimizer = make_optimizer(stage.trained(), run.optim, options.lr)
    step = OptimiserStep(stage, stage, optimizer, run.compute.scaler(), run.compute, run.procs, 1.0)
    stage.train()
    times, losses = [], []
    for epoch in range(EPOCHS):
        wall, cpu = time.perf_counter(), time.process_time()
        losses += [step(window, options.lr)["loss"] for window in loader.windows(epoch)]
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return times, losses


def compare_epochs(arguments: list[str], stages: Sequence[str]) -> None:
    """Each stage: without the store, with views in memory, with an empty store, with a full one."""
    for name in stages:
        found = {}
        ways = {"cut and encoded": "false", "views in memory": "false", "store, empty": "true", "store, full": "true"}
        for way, enabled in ways.items():
            with opened(*arguments, f"store.enabled={enabled}") as run:
                if way == "store, empty":
                    clear_stores(run.store, kept_stores(run.store.dir))
                found[way] = epochs(run, name, remember=way == "views in memory")
        for way, (times, _) in found.items():
            say(f"{name}, {way}: epochs " + ", ".join(f"{wall:.2f} s ({cpu:.2f})" for wall, cpu in times))
        for way in ("cut and encoded", "views in memory"):
            long, short = ([sum(each) for each in zip(*found[w][0][1:], strict=True)] for w in (way, "store, full"))
            wall, cpu = (one / other for one, other in zip(long, short, strict=True))
            say(f"{name}: epochs 2 to {EPOCHS} take {wall:.1f} times as long {way}; {cpu:.1f} times in CPU seconds")
        fresh, read, off = (found[way][1] for way in ("store, empty", "store, full", "cut and encoded"))
        apart = max(abs(a - b) / abs(a) for a, b in zip(fresh, off, strict=True))
        same = fresh == read
        say(f"{name}: {len(fresh)} losses, fresh and read the same bits: {same}; store off within {apart:.1e}")


def compare_jobs(arguments: list[str], count: int = 4) -> None:
    """Processes that train with different resamplers on the same data from an empty store, all at once."""
    with opened(*arguments) as run:
        clear_stores(run.store, kept_stores(run.store.dir))
        distinct = len({run.data.train.picture(i) for i in range(len(run.data.train))})

    def job(number: int) -> int:
        resampler = ("mlp", "qformer", "perceiver", "bimamba")[number % 4]
        calls = counted()
        with opened(*arguments, f"resampler={resampler}", f"experiment_name=job{number}", f"seed={number // 4}") as run:
            epochs(run, "resampler")
        return calls[0]

    calls = forked(job, count)
    say(f"{count} jobs at once: {calls} encoder calls, {sum(calls)} in all; {distinct} distinct panoramas")


def kill_writers(arguments: list[str], kills: int) -> None:
    """Kills processes that fill a store at random moments, lets one finish, and encodes everything again to compare."""
    with opened(*arguments) as run:
        clear_stores(run.store, kept_stores(run.store.dir))
        tower, crop = run.backbones.tower, run.backbones.crop
        features = open_features(run.store, tower, crop)
        assert features is not None
        random.seed(0)
        for _ in range(kills):
            children = [fork(lambda: warm([run.data.train], crop, features, num_workers=0)) for _ in range(2)]
            there = features.store.count()
            while features.store.count() == there < len(run.data.train) - 2:  # until they are at work
                time.sleep(0.001)
            time.sleep(random.uniform(0.0, 0.1))
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        there = features.store.count()
        warm([run.data.train], crop, features, num_workers=0)
        wrong = 0
        for index in range(len(run.data.train)):
            kept = features.store.get(features.store.identify(run.data.train.picture(index)))
            made = features.encode(crop.views(run.data.train.panorama(index)))
            wrong += kept is None or not torch.equal(kept, made)
        count = len(run.data.train)
        say(f"{2 * kills} writers killed, {there} panoramas kept by then; of {count} in the end {wrong} wrong")


def counted() -> list[int]:
    """Number of calls of the encoder in this process from now on."""
    calls, forward = [0], VisionTower.forward

    def count(self: VisionTower, pixels: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return forward(self, pixels)

    VisionTower.forward = count  # type: ignore[method-assign]
    return calls


def fork(work: Callable[[], object]) -> int:
    """A process that does some work and nothing after it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def forked(job: Callable[[int], int], count: int) -> list[int]:
    """Results of jobs in processes of their own, all at once."""
    folder = Path(tempfile.mkdtemp())
    children = [fork(lambda n=number: (folder / str(n)).write_text(str(job(n)))) for number in range(count)]  # type: ignore[misc]
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    return [int((folder / str(number)).read_text()) for number in range(count)]


def say(text: str) -> None:
    """Writes a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Measures all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--parts", nargs="+", default=["epochs", "jobs", "kills"])
    parser.add_argument("--stages", nargs="+", default=STAGES)
    options = parser.parse_args()
    torch.set_num_threads(1)  # forked processes cannot share the threads of this one
    folder = Path(tempfile.mkdtemp())
    os.chdir(folder)
    arguments = [f"data.train_scenes={options.scenes}", "data.val_scenes=4", "data.test_scenes=1"]
    if options.csv is not None:
        with options.csv.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = list(csv.reader(file))
        shown = rows[:: max(1, len(rows) // options.rows)][: options.rows]
        for name in ("train", "val", "test"):
            with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([header, *shown])
        arguments = ["data=csv", f"data.dir={folder}", f"data.image_dir={options.csv.parent.resolve()}"]
    batch = [f"stage.{name}.batch_size=8" for name in STAGES]
    if "epochs" in options.parts:
        compare_epochs([*arguments, *batch], options.stages)
    if "jobs" in options.parts:
        compare_jobs([*arguments, *batch])
    if "kills" in options.parts:
        kill_writers([*arguments, *batch], options.kills)


if __name__ == "__main__":
    main()
