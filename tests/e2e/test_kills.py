"""Runs that are killed: at any operation on their files, at any moment, by Ctrl-C; what goes on ends the same."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cut import Cut, in_child, start_child
from omegaconf import DictConfig
from safetensors.torch import load_file
from small_runs import CLOCKED, QUICK, assert_same_bits, backbones, checkpoint_tensors, config, predictions

from panollava import train
from panollava.checkpoint import BEST, LAST, follow, read_state
from panollava.tracking.store import open_client

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and looks at files through /proc")

EVERYTHING = os.environ.get("PANOLLAVA_EVERY_CUT") == "1"
"""Strike at every operation and at ten moments; else at a few."""
STAGES = ("vision", "finetune")
VARYING = {"tracking_run", "started", "finished", "updated", "seconds", "evaluated", "error"}
"""Of the states: times, and ids that MLflow draws."""


class Runs:
    """Runs of one command line, each in a folder of its own, in forked processes."""

    def __init__(self, root: Path, cfg: DictConfig, database: Path) -> None:
        self.root, self.cfg, self.database = root, cfg, database

    def new(self, name: str) -> Path:
        """An empty working directory with an empty MLflow store."""
        folder = self.root / name
        folder.mkdir()
        shutil.copyfile(self.database, folder / "mlflow.db")
        return folder

    def work(self, folder: Path, cut: Cut | None = None, told: Path | None = None) -> Callable[[], None]:
        """``panollava.train`` in a folder."""

        def run() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(folder)
            if cut is not None:
                cut.install()
            try:
                train.main.__wrapped__(self.cfg)  # type: ignore[attr-defined]
            except KeyboardInterrupt:
                sys.exit(130)
            if cut is not None and told is not None:
                told.write_text(json.dumps(cut.seen))

        return run

    def run(self, folder: Path, cut: Cut | None = None, told: Path | None = None) -> int:
        """Its exit status."""
        return in_child(self.work(folder, cut, told), quiet=folder / "said.txt")

    def finish(self, folder: Path) -> None:
        """Starts it again, to the end."""
        assert self.run(folder) == 0, (folder / "said.txt").read_text()[-3000:]


def make(tmp_path_factory: pytest.TempPathFactory, backbone: Callable[[str], Path], *more: str) -> Runs:
    """Two stages, six and three steps, with saves in mid-epoch, an adapter, MLflow and an evaluation."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  once, before the processes fork
    from sqlalchemy.orm import configure_mappers

    import panollava.pipeline.finish
    import panollava.pipeline.keep_model
    import panollava.pipeline.stage  # noqa: F401

    configure_mappers()
    root = tmp_path_factory.mktemp("kills")
    quick = [*QUICK, "stage.run=[vision,finetune]", "stage.vision.epochs=2", "trainer.save_every_steps=2"]
    quick += ["lora.dropout=0.3", "evaluation.blank=false", "evaluation.max_samples=2", "experiment_name=x"]
    database = root / "empty.db"
    assert in_child(lambda: void(open_client(f"sqlite:///{database}")), quiet=root / "said.txt") == 0
    return Runs(root, config(*backbones(backbone), *quick, *more), database)


def void(_value: Any) -> None:
    """Nothing."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, backbone: Callable[[str], Path]) -> Runs:
    """Runs without workers, so that one process does everything."""
    return make(tmp_path_factory, backbone)


@pytest.fixture(scope="module")
def whole(runs: Runs) -> tuple[Path, list[str]]:
    """The run that nobody touched, and what it did to its files."""
    folder = runs.new("whole")
    told = runs.root / "whole.json"
    assert runs.run(folder, Cut(folder / "runs"), told) == 0, (folder / "said.txt").read_text()[-3000:]
    return folder, json.loads(told.read_text())


def history(folder: Path) -> dict[tuple[str, int], float | str]:
    """MLflow's metrics: (key, step) -> value, of the one run that has any; numbers of the clock without their value."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        rows = database.execute("select run_uuid, key, step, value from metrics").fetchall()
    assert len({run for run, *_ in rows}) == 1
    points = [(key, step) for _, key, step, _ in rows]
    assert len(points) == len(set(points)), "a point was logged twice"
    return {(key, step): "clock" if any(w in key for w in CLOCKED) else value for _, key, step, value in rows}


def states(folder: Path) -> dict[str, dict[str, Any]]:
    """Stage states without what differs from run to run."""
    document = json.loads((folder / "runs/x/stage_state.json").read_text())["stages"]
    varying = VARYING | set(CLOCKED) | {"peak_memory_gb"}
    return {name: {k: v for k, v in entry.items() if k not in varying} for name, entry in document.items()}


def names(folder: Path) -> list[str]:
    """Everything below the run's folder but logs, of which every start leaves one."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".log")


def assert_same(folder: Path, whole: Path) -> None:
    """Weights, optimiser, random state, records and MLflow history equal to the bit; nothing left over."""
    assert names(folder / "runs") == names(whole / "runs")
    for name in STAGES:
        one, other = (next((each / "runs/x" / name).iterdir()) for each in (folder, whole))
        for link in (BEST, LAST):
            found = [follow(each / link) for each in (one, other)]
            assert found[0] is not None
            assert found[1] is not None
            assert found[0].name == found[1].name
            assert_same_bits(checkpoint_tensors(found[0]), checkpoint_tensors(found[1]))
            told = [{k: v for k, v in read_state(each).items() if k not in VARYING} for each in found if each]
            assert told[0] == told[1]
        assert (one / "model_final.safetensors").read_bytes() == (other / "model_final.safetensors").read_bytes()
        metadata = [json.loads((each / "checkpoint_metadata.json").read_text()) for each in (one, other)]
        assert metadata[0] == metadata[1]
        settings = [(each / "config.yaml").read_text().splitlines() for each in (one, other)]
        assert [line for line in settings[0] if "num_workers" not in line] == [
            line for line in settings[1] if "num_workers" not in line
        ]
    adapters = [load_file(next(each.glob("runs/x/finetune/*/lora_weights/*.safetensors"))) for each in (folder, whole)]
    assert_same_bits(adapters[0], adapters[1])
    assert states(folder) == states(whole)
    assert history(folder) == history(whole)
    here = Path.cwd()
    try:
        answers = [(os.chdir(each), predictions("x"))[1] for each in (folder, whole)]
    finally:
        os.chdir(here)
    assert answers[0] == answers[1]


def test_killed_at_an_operation(runs: Runs, whole: tuple[Path, list[str]]) -> None:
    reference, seen = whole
    assert len(seen) > 200
    for at in (random.Random(5).randint(1, len(seen) - 1), len(seen)):
        folder = runs.new(f"cut{at}")
        assert runs.run(folder, Cut(folder / "runs", at)) == -signal.SIGKILL, seen[at - 1]
        runs.finish(folder)
        assert_same(folder, reference)


@pytest.mark.skipif(not EVERYTHING, reason="takes half an hour: PANOLLAVA_EVERY_CUT=1")
def test_killed_at_every_operation(runs: Runs, whole: tuple[Path, list[str]]) -> None:
    """One run whose folder is copied before each operation, as a kill there would leave it, and a start from each."""
    watched, copies = runs.new("watched"), runs.root / "copies"
    told, digests = runs.root / "copies.json", dict[str, int]()

    def copy() -> None:
        number = len(cut.seen)
        digest = hashlib.sha256()
        for path in sorted(watched.rglob("*")):
            if path.suffix not in (".log", ".txt", ".lock"):
                digest.update(str(path).encode() + (path.read_bytes() if path.is_file() else b""))
        if digests.setdefault(digest.hexdigest(), number) == number:
            shutil.copytree(watched, copies / str(number), symlinks=True)

    def work() -> None:
        runs.work(watched, cut)()
        told.write_text(json.dumps([cut.seen, sorted(digests.values())]))

    cut = Cut(watched / "runs", 1, copy, once=False)
    assert in_child(work, quiet=watched / "said.txt") == 0
    assert_same(watched, whole[0])
    seen, numbers = json.loads(told.read_text())
    with (runs.root / "progress.txt").open("a", buffering=1) as progress:
        progress.write(f"{len(seen)} operations, {len(numbers)} different states of the disk\n")
        for number in numbers:
            folder = copies / str(number)
            runs.finish(folder)
            assert_same(folder, whole[0])
            shutil.rmtree(folder)
            progress.write(f"{number} {seen[number - 1]}\n")


def with_workers(runs: Runs) -> Runs:
    """The same runs, whose pictures are cut by two more processes."""
    cfg = runs.cfg.copy()
    cfg.trainer.num_workers = 2
    return Runs(runs.root, cfg, runs.database)


def test_killed_at_a_moment(runs: Runs, whole: tuple[Path, list[str]]) -> None:
    """Whatever it does then, and started again at once, while the dead process's workers may still be there."""
    reference, _ = whole
    busy, draw = with_workers(runs), random.Random(6)
    took = (reference / "runs/x/stage_state.json").stat().st_mtime - (runs.root / "empty.db").stat().st_mtime
    for number in range(10 if EVERYTHING else 1):
        folder = busy.new(f"moment{number}")
        pid = start_child(busy.work(folder), quiet=folder / "said.txt")
        time.sleep(draw.uniform(0.0, 1.0) * took)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        busy.finish(folder)
        assert_same(folder, reference)


def interrupted(runs: Runs, folder: Path, where: str, at: int, times: int = 1) -> str:
    """What a run says that gets Ctrl-C, with all its processes, where a function is called for the ``at``-th time."""
    module, _, name = where.rpartition(".")
    before = (folder / "said.txt").stat().st_size if (folder / "said.txt").exists() else 0

    def work() -> None:
        os.setsid()
        place = import_module(module)
        original, calls = getattr(place, name), [0]

        def call(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == at:
                for _ in range(times):
                    os.killpg(0, signal.SIGINT)
                    time.sleep(0.05)
            return original(*arguments, **options)

        setattr(place, name, call)
        runs.work(folder)()

    assert in_child(work, quiet=folder / "said.txt") == 130
    said = (folder / "said.txt").read_text()[before:]
    assert "Traceback" not in said
    assert "exited unexpectedly" not in said
    return said


def test_ctrl_c_anywhere(runs: Runs, whole: tuple[Path, list[str]]) -> None:
    """In validation, twice in a save, between stages, in the evaluation: it ends with 130 and goes on the same."""
    folder, busy = runs.new("interrupted"), with_workers(runs)
    said = interrupted(busy, folder, "panollava.training.loop.validate", 1)
    assert said.count("Ctrl-C: finishing") == 1
    assert "Stage vision is saved at step 3; the same command goes on." in said
    assert {entry["status"] for entry in states(folder).values()} == {"interrupted"}
    said = interrupted(busy, folder, "panollava.checkpoint.save_file", 2, times=2)
    assert "resumes from" in said
    assert "is saved at" not in said
    assert {entry["status"] for entry in states(folder).values()} == {"interrupted"}
    interrupted(busy, folder, "panollava.pipeline.stage.run_stage", 2)
    assert [entry["status"] for entry in states(folder).values()] == ["finished"]
    interrupted(busy, folder, "panollava.pipeline.evaluate.evaluate", 1)
    assert [entry["status"] for entry in states(folder).values()] == ["finished", "finished"]
    busy.finish(folder)
    assert re.search(r"Test split, 2 questions", (folder / "said.txt").read_text())
    assert_same(folder, whole[0])
