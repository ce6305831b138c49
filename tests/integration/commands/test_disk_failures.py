"""A disk that fails at any operation of a whole run: the best so far answers as before, one sentence, and a way on."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.faults import Cut, broken, in_child, no_space
from support.interrupted import EVERYTHING, STAGES, Runs, assert_same, make, names
from support.runs import config

from panollava import eval as evaluation
from panollava.checkpoint import BEST, follow
from panollava.config.entrypoint import _guarded

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and looks at files through /proc")

Strike = Callable[[], None]
FAILURES = {"full": (no_space, False), "broken": (broken, True)}
"""What the disk does, and whether only once."""
CHANGED = ("runs", "results", "cache", "mlruns")
SENTENCE = r"^(?:DiskError|OSError): .* could not be written \((No space left on device|Input/output error)\)\. "
WAY_OUT = "run the same command to resume"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, backbone: Callable[[str], Path]) -> Runs:
    """Runs without workers, so that one process does everything."""
    return make(tmp_path_factory, backbone)


@pytest.fixture(scope="module")
def whole(runs: Runs) -> tuple[Path, list[str]]:
    """The run that nobody touched, and what it did to its files: the store of features and MLflow's among them."""
    return runs.untouched(CHANGED)


class Evaluations:
    """``panollava.eval`` of best checkpoints, each set of files once; equal weights must always answer the same."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_files: dict[str, Any] = {}
        self._by_weights: dict[str, Any] = {}

    def check(self, folder: Path, stage: Path) -> None:
        """Evaluates a stage of a run below ``folder``; the features that are kept there are used."""
        best = follow(stage / BEST)
        assert best is not None
        kept = [
            path
            for path in sorted(stage.rglob("*"))
            if path.is_file() and (best in path.parents or ".ckpt" not in str(path))
        ]
        files = digest(path for path in kept if path.suffix != ".log")
        if files in self._by_files:
            return
        found = self._by_files[files] = self._evaluate(folder, stage.relative_to(folder))
        weights = digest([best / "trained.safetensors"])
        assert self._by_weights.setdefault(weights, found) == found, stage

    def _evaluate(self, folder: Path, stage: Path) -> Any:
        out = self.root / f"evaluated{len(self._by_files)}"
        asked = [f"checkpoint={stage}", "tracking=none", "num_workers=0", "device=cpu", f"results_dir={out}"]
        cfg = config(*asked, "max_samples=2", root="eval")

        def work() -> None:
            os.chdir(folder)
            _guarded(evaluation.main.__wrapped__, None)(cfg)  # type: ignore[attr-defined]

        said = self.root / "evaluated.txt"
        assert in_child(work, quiet=said) == 0, said.read_text()[-3000:]
        (found,) = out.rglob("*.json")
        document = json.loads(found.read_text())
        keep = ("measures", "exact_match", "kinds")
        answers = [path.read_text().splitlines() for path in out.rglob("predictions.csv")]
        return {key: document.get(key) for key in keep}, [[row.rpartition(",")[0] for row in rows] for rows in answers]

    @property
    def count(self) -> tuple[int, int]:
        """How many were evaluated, and of how many different weights."""
        return len(self._by_files), len(self._by_weights)


@pytest.fixture(scope="module")
def evaluations(runs: Runs) -> Evaluations:
    """Those of all failures: they share their answers."""
    return Evaluations(runs.root)


def digest(files: Any) -> str:
    """Of the contents of files, by name."""
    found = hashlib.sha256()
    for path in files:
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def struck(runs: Runs, folder: Path, at: int, strike: Strike, *, once: bool) -> tuple[int, str]:
    """Exit status of a run on a disk that fails, and what it said; its folder as it was before is beside it."""
    before = folder.with_name(f"{folder.name}-before")

    def fail() -> None:
        if not before.exists():
            shutil.copytree(folder, before, symlinks=True)
        strike()

    status = runs.run(folder, Cut(folder, at, fail, once=once, among=CHANGED))
    return status, (folder / "said.txt").read_text()


def survive(
    runs: Runs, whole: tuple[Path, list[str]], evaluations: Evaluations, at: int, failure: str
) -> tuple[int, str]:
    """Fails at one operation, and looks at everything that must hold then; exit status and message of the run."""
    reference, seen = whole
    strike, once = FAILURES[failure]
    folder = runs.new(f"{failure}{at}")
    status, said = struck(runs, folder, at, strike, once=once)
    where = f"{failure} at {seen[at - 1]}:\n{said[-3000:]}"
    before = folder.with_name(f"{folder.name}-before")
    assert "Traceback" not in said, where
    assert "Logging error" not in said, where
    sentences = re.findall(SENTENCE, said, re.MULTILINE)
    if status == 0:  # what was refused is made again each time, or is the removal of what is not needed
        assert sentences == [], where
        assert set(names(reference / "runs")) <= set(names(folder / "runs")), where
    else:
        assert (status, len(sentences)) == (1, 1), where
        assert WAY_OUT in said, where
    for stage in STAGES:
        for place in (before / "runs/x" / stage).glob("*"):
            best, now = (follow(each / BEST) for each in (place, folder / place.relative_to(before)))
            if best is None:
                continue
            assert now is not None, where
            if now.name == best.name:
                assert digest(sorted(now.iterdir())) == digest(sorted(best.iterdir())), where
            evaluations.check(before, place)
            evaluations.check(folder, folder / place.relative_to(before))
    runs.finish(folder)
    assert_same(folder, reference)
    shutil.rmtree(before)
    shutil.rmtree(folder)
    return status, "; ".join(line for line in said.splitlines() if re.match(SENTENCE, line))


def kind(operation: str) -> str:
    """An operation without its stage, and without what is drawn: digests, ids of runs, names of temporary files."""
    operation = re.sub(r"\.tmp-[a-z0-9_]{8}(?=/|$)|(?<=uploading\.)\w+", "N", operation)
    operation = re.sub(r"/\.(tmp|old|writing)([-_].*?)[-_][A-Za-z0-9_]+(?=/|$)", r"/.\1\2", operation)
    operation = re.sub(r"[0-9a-f]{16,64}|/[0-9a-f]{2}(?=/|$)", "N", operation)
    operation = re.sub(r"_(epoch\d+_loss[\d.]+|step\d+)(_step\d+)?(?=\.ckpt)", "_N", operation)
    return re.sub(r"\d{8}_\d{6}", "T", operation).replace("/vision/", "/finetune/")


def each_kind(seen: list[str], failure: str) -> list[int]:
    """The number of an operation of each kind: of a disk that is full any one, of a broken one the last."""
    numbers: dict[str, list[int]] = {}
    for number, each in enumerate(seen, 1):
        numbers.setdefault(kind(each), []).append(number)
    draw = random.Random(failure)
    return sorted(draw.choice(found) if failure == "full" else found[-1] for found in numbers.values())


@pytest.mark.parametrize("failure", FAILURES)
def test_a_disk_that_fails_at_an_operation(
    runs: Runs, whole: tuple[Path, list[str]], evaluations: Evaluations, failure: str
) -> None:
    late = range(len(whole[1]) // 3, len(whole[1]) + 1)  # where there is something to lose
    survive(runs, whole, evaluations, random.Random(failure).choice(late), failure)
    assert evaluations.count[0]


@pytest.mark.skipif(not EVERYTHING, reason="takes half an hour: PANOLLAVA_EVERY_CUT=1")
@pytest.mark.parametrize("failure", FAILURES)
def test_a_disk_that_fails_at_every_operation(
    runs: Runs, whole: tuple[Path, list[str]], evaluations: Evaluations, failure: str
) -> None:
    """One operation of each kind."""
    counted = Counter[int]()
    numbers = each_kind(whole[1], failure)
    with (runs.root / f"progress-{failure}.txt").open("a", buffering=1) as progress:
        progress.write(f"{len(whole[1])} operations, {len(numbers)} kinds\n")
        for at in numbers:
            try:
                status, said = survive(runs, whole, evaluations, at, failure)
            except AssertionError as error:  # the others are looked at all the same
                status, said = -1, f"FAILED {error}"
            counted[status] += 1
            progress.write(f"{at} {whole[1][at - 1]}: {status} {said}\n")
        progress.write(f"exit status: {dict(counted)}; evaluated, different weights: {evaluations.count}\n")
    assert counted[-1] == 0
