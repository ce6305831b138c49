"""A disk that is really full ends a run with one message, costs nothing that was saved, and is gone on from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cut import in_child
from small_runs import QUICK, backbones, run_train

from panollava import train
from panollava.checkpoint import BEST, follow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of eight megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if not sys.platform.startswith("linux") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("left", [0, 600_000])
def test_a_full_disk(small_disk: Path, backbone: Callable[[str], Path], tmp_path: Path, left: int) -> None:
    asked = [*backbones(backbone), *QUICK, "stage=resampler", "evaluation.enabled=false", "experiment_name=x"]
    asked += ["tracking=none", f"output_dir={small_disk / 'runs'}"]
    said = tmp_path / "said.txt"

    def start(*more: str) -> int:
        def work() -> None:
            os.chdir(tmp_path)
            if more:
                sys.argv = ["train", *asked, *more]
                train.main()
            else:
                run_train(*asked)

        return in_child(work, quiet=said)

    assert start() == 0, said.read_text()[-2000:]
    (folder,) = (small_disk / "runs/x/resampler").iterdir()
    best = follow(folder / BEST)
    assert best is not None
    before = {path.name: path.read_bytes() for path in best.iterdir()}
    (small_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - left))
    said.unlink()
    assert start("stage.resampler.epochs=2") == 1
    message = said.read_text()
    assert message.count("could not be written (No space left on device)") == 1
    assert "Free some space" in message
    assert "the same command again" in message
    assert "Traceback" not in message
    assert "Logging error" not in message
    assert follow(folder / BEST) == best
    assert {path.name: path.read_bytes() for path in best.iterdir()} == before
    (small_disk / "filler").unlink()
    assert start("stage.resampler.epochs=2") == 0, said.read_text()[-2000:]
    assert "resumes from" in said.read_text()
