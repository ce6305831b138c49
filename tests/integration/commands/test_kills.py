"""Runs that are killed: at any operation on their files, at any moment, by Ctrl-C; what goes on ends the same."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support.faults import Cut, in_child, start_child
from support.interrupted import EVERYTHING, Runs, assert_same, make, states

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and looks at files through /proc")
CHANGED = ("runs", "results")
"""Folders whose operations are struck at."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, backbone: Callable[[str], Path]) -> Runs:
    """Runs without workers, so that one process does everything."""
    return make(tmp_path_factory, backbone)


@pytest.fixture(scope="module")
def whole(runs: Runs) -> tuple[Path, list[str]]:
    """The run that nobody touched, and what it did to its files."""
    return runs.untouched(CHANGED)


def around_the_record(seen: list[str]) -> list[int]:
    """Where an evaluation's result is on disk and about to be noted in the run's state, and where it has been noted."""
    written = next(n for n, each in enumerate(seen, 1) if each.startswith("os.rename") and "/.writing_" in each)
    after = list(enumerate(seen, 1))[written:]
    marks = ("stage_state.json", "os.remove /results/eval_results/x/.unfinished")
    return [next(n for n, each in after if mark in each) for mark in marks]


def test_killed_at_an_operation(runs: Runs, whole: tuple[Path, list[str]]) -> None:
    reference, seen = whole
    assert len(seen) > 200
    for at in around_the_record(seen):
        folder = runs.new(f"cut{at}")
        assert runs.run(folder, Cut(folder, at, among=CHANGED)) == -signal.SIGKILL, seen[at - 1]
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

    cut = Cut(watched, 1, copy, once=False, among=CHANGED)
    assert in_child(work, quiet=watched / "said.txt") == 0
    assert_same(watched, whole[0])
    seen, numbers = json.loads(told.read_text())
    with (runs.root / "progress.txt").open("a", buffering=1) as progress:
        progress.write(f"{len(seen)} operations, {len(numbers)} different states of the disk\n")
        for number in numbers:
            shutil.rmtree(watched)
            (copies / str(number)).rename(watched)  # records name the folder that they are about
            runs.finish(watched)
            assert_same(watched, whole[0])
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
    assert "Stage vision is saved at step 3; run the same command to resume." in said
    assert {entry["status"] for entry in states(folder).values()} == {"interrupted"}
    said = interrupted(busy, folder, "panollava.checkpoint.save_file", 2, times=2)
    assert "resumes from" in said
    assert "is saved at" not in said
    assert {entry["status"] for entry in states(folder).values()} == {"interrupted"}
    interrupted(busy, folder, "panollava.run.stage.run_stage", 2)
    assert [entry["status"] for entry in states(folder).values()] == ["finished"]
    interrupted(busy, folder, "panollava.run.evaluate.evaluate", 1)
    assert [entry["status"] for entry in states(folder).values()] == ["finished", "finished"]
    busy.finish(folder)
    assert re.search(r"Test split, 2 questions", (folder / "said.txt").read_text())
    assert_same(folder, whole[0])
