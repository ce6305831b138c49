"""The loop, cut or refused at any operation on its files: what was saved stays, and what goes on ends the same."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.faults import Cut, broken, in_child, kill, no_space
from support.runs import assert_same_bits, checkpoint_tensors
from support.toy_training import Toy, steps

from panollava.checkpoint import BEST, LAST, follow, read_state, read_weights
from panollava.run_folder import STAGES, Experiment
from panollava.training.checkpointer import Progress

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at its files through /proc")

EVERYTHING = os.environ.get("PANOLLAVA_EVERY_CUT") == "1"
SAMPLE = 4
"""Operations to strike at in an ordinary test run; PANOLLAVA_EVERY_CUT=1 takes all of them."""


def train(root: Path, epochs: int = 2) -> None:
    """A stage as the pipeline runs it: owned, recorded, resumed from where it stands."""
    torch.manual_seed(7)
    with Experiment(root / "x", "crop_mlp") as experiment:
        folder = experiment.stage_folder("toy")
        toy = Toy(folder)
        resume = follow(folder / LAST) or follow(folder / BEST)
        progress = None if resume is None else toy.checkpointer.restore(resume)
        if resume is not None:
            toy.checkpointer.remove_unlinked()
        experiment.record("toy", status="running")
        toy.fit(steps(3), progress, epochs=epochs, save_every_steps=2)
        experiment.record("toy", status="finished", epochs=epochs)


def operations(root: Path) -> list[str]:
    """What a whole run does to its files."""
    told = root.with_suffix(".json")

    def work() -> None:
        cut = Cut(root)
        cut.install()
        train(root)
        told.write_text(json.dumps(cut.seen))

    assert in_child(work) == 0
    return list(json.loads(told.read_text()))


def state_of(checkpoint: Path) -> dict[str, object]:
    """A checkpoint's state; of its progress the seconds and memory that pieces of a run took are not compared."""
    state = read_state(checkpoint)
    return {**state, "progress": Progress(**state["progress"])}


def assert_same(root: Path, whole: Path) -> None:
    """Two runs left the same: names, tensors, states, and nothing else."""
    folders = [path / "x" / "toy" / "crop_mlp" for path in (root, whole)]
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1]
    for link in (BEST, LAST):
        one, other = (follow(folder / link) for folder in folders)
        assert one is not None
        assert other is not None
        assert one.name == other.name
        assert_same_bits(checkpoint_tensors(one), checkpoint_tensors(other))
        assert state_of(one) == state_of(other)
    assert len({(folder / "model_final.safetensors").read_bytes() for folder in folders}) == 1
    assert sorted(path.name for path in (root / "x").iterdir()) == [".lock", STAGES, "toy"]
    state = json.loads((root / "x" / STAGES).read_text())["stages"]["toy/crop_mlp"]
    assert (state["status"], state["epochs"]) == ("finished", 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run that nobody touched, and the operations it took."""
    root = tmp_path_factory.mktemp("whole")
    return root, operations(root)


def chosen(count: int, seed: int) -> list[int]:
    """Numbers of the operations to strike at."""
    return list(range(1, count + 1)) if EVERYTHING else sorted(random.Random(seed).sample(range(1, count + 1), SAMPLE))


def struck(root: Path, at: int, strike: Callable[[], None], *, once: bool = True) -> int:
    """Exit status of a run that is struck at an operation."""

    def work() -> None:
        Cut(root, at, strike, once=once).install()
        train(root)

    return in_child(work, quiet=root.with_suffix(".log"))


def test_a_run_flushes_what_it_renames(whole: tuple[Path, list[str]]) -> None:
    """Without it a power cut may leave a name without its content."""
    _, seen = whole
    assert len(seen) > 60
    flushed = {each.removeprefix("flush ") for each in seen if each.startswith("flush")}
    renamed = [each.removeprefix("os.rename ") for each in seen if each.startswith("os.rename")]
    unflushed = {name for name in renamed if name not in flushed and "ckpt-" not in name.replace("last.", "")}
    assert all("best.ckpt" in name or "last.ckpt" in name for name in unflushed), unflushed


def test_a_run_killed_at_any_operation_ends_the_same(whole: tuple[Path, list[str]], tmp_path: Path) -> None:
    reference, seen = whole
    for at in chosen(len(seen), seed=1):
        root = tmp_path / f"cut{at}"
        root.mkdir()
        assert struck(root, at, kill) == -9, seen[at - 1]
        assert in_child(lambda root=root: train(root)) == 0, seen[at - 1]
        assert_same(root, reference)


@pytest.mark.parametrize(("strike", "once"), [(no_space, False), (broken, True)])
def test_a_refused_operation_costs_nothing_that_was_saved(
    whole: tuple[Path, list[str]], tmp_path: Path, strike: Callable[[], None], once: bool
) -> None:
    reference, seen = whole
    for at in chosen(len(seen), seed=2 + once):
        root = tmp_path / f"cut{at}"
        root.mkdir()
        before = best_weights(root, at, seen)
        status = struck(root, at, strike, once=once)
        assert status in (0, 1), seen[at - 1]  # 0: what was refused was only the removal of what is not needed
        after = follow(root / "x" / "toy" / "crop_mlp" / BEST)
        if before is not None:
            assert after is not None, seen[at - 1]
            assert read_state(after)["progress"]["global_step"] >= before
            assert all(torch.isfinite(tensor).all() for tensor in read_weights(after).values())
        assert in_child(lambda root=root: train(root)) == 0, seen[at - 1]
        assert_same(root, reference)


def best_weights(root: Path, at: int, seen: list[str]) -> int | None:
    """Step of the best checkpoint that there is before an operation, or None."""
    flips = [number for number, each in enumerate(seen, 1) if each.startswith("os.rename") and "best.ckpt" in each]
    done = [number for number in flips if number < at]
    return 3 * len(done) if done else None
