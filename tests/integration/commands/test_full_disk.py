"""A disk that is really full ends a run with one message, costs nothing that was saved, and is gone on from."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.faults import in_child
from support.runs import QUICK, backbones, command, predictions, run_train

from panollava import eval as evaluation
from panollava import train
from panollava.checkpoint import BEST, follow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of eight megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("size=8m", place)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def mount(options: str, place: Path) -> None:
    """Mounts a file system in memory, or changes the one that is there."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if not sys.platform.startswith("linux") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")


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
    assert "run the same command to resume" in message
    assert "Traceback" not in message
    assert "Logging error" not in message
    assert follow(folder / BEST) == best
    assert {path.name: path.read_bytes() for path in best.iterdir()} == before
    (small_disk / "filler").unlink()
    assert start("stage.resampler.epochs=2") == 0, said.read_text()[-2000:]
    assert "resumes from" in said.read_text()


PLACES = ("output_dir", "evaluation.results_dir", "tracking.uri")


@pytest.mark.parametrize("key", PLACES)
def test_a_place_that_is_read_only_is_told_of_before_training(
    small_disk: Path,
    backbone: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    mount("remount,ro", small_disk)
    asked = [*backbones(backbone), *QUICK, "stage=resampler", "experiment_name=x"]
    place = f"sqlite:///{small_disk}/mlflow.db" if key == "tracking.uri" else str(small_disk / "deep" / "er")
    asked += [f"{key}={place}", *(["tracking=none"] if key != "tracking.uri" else [])]
    assert command(monkeypatch, train, *asked) == 1
    said = capsys.readouterr().err
    assert re.search(
        rf"^(DiskError|OSError): .*{re.escape(str(small_disk))}.*(read-only|Read-only|readonly)", said, re.M
    )
    assert f"{key}=" in said
    assert "Traceback" not in said
    assert "validation loss" not in said
    assert not list(tmp_path.glob("runs/**/*.ckpt"))


def test_a_run_on_a_read_only_disk_is_evaluated_and_not_trained_on(
    small_disk: Path,
    recorded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(recorded / "runs", small_disk / "runs", symlinks=True)
    mount("remount,ro", small_disk)
    asked = [f"checkpoint={small_disk / 'runs/recorded'}", "tracking=none", "num_workers=0", "device=cpu"]
    assert command(monkeypatch, evaluation, *asked, "max_samples=2", "blank=false") == 0
    assert len(predictions("recorded")) == 2
    capsys.readouterr()
    assert command(monkeypatch, evaluation, *asked, f"results_dir={small_disk}", "max_samples=2", "blank=false") == 1
    said = capsys.readouterr().err
    assert "could not be written (Read-only file system)" in said
    assert "Traceback" not in said
