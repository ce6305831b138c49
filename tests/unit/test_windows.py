"""What Windows does differently, simulated: no links, files that are in use, names with backslashes, case."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from support.toy_training import Toy, steps

from panollava import checkpoint, disk, fetch
from panollava.crop.crop import Crop
from panollava.data.csv import spelling
from panollava.data.fetch import Fetched
from panollava.run.sources import open_source

RESERVED = re.compile(r'[<>:"|?*\x00-\x1f]|[ .]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
"""What a name of a file may not have there."""


class Windows(SimpleNamespace):
    """The module ``os`` as Windows has it, for one module of the package."""

    name = "nt"

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Windows:
    system = Windows()
    for module in (checkpoint, disk):
        monkeypatch.setattr(module, "os", system)
    monkeypatch.setattr(disk, "WAIT_S", 0.001)
    return system


def test_a_run_with_pointer_files_is_restored(tmp_path: Path, windows: Windows) -> None:
    folder = tmp_path / "run"
    first = Toy(folder)
    first.fit(steps(3), epochs=2)
    for name in (checkpoint.BEST, checkpoint.LAST):
        assert (folder / name).is_file()
        assert not (folder / name).is_symlink()
    moved = folder.rename(tmp_path / "moved")
    again = Toy(moved)
    assert again.checkpointer.restore(checkpoint.find_checkpoint(moved / checkpoint.LAST)).epoch == 2
    assert torch.equal(again.weight(), first.weight())
    assert sum(path.is_dir() for path in moved.glob("*.ckpt")) == 2  # older ones are removed
    assert checkpoint.find_checkpoint(moved).parent == moved


def test_names_of_checkpoints_are_possible_there(tmp_path: Path, windows: Windows) -> None:
    Toy(tmp_path, keep_best=9).fit(steps(3), epochs=3, save_every_steps=2)
    names = [path.name for path in tmp_path.rglob("*")]
    assert names
    assert [name for name in names if RESERVED.search(name)] == []
    assert len({name.lower() for name in names}) == len(set(names))


def in_use(rename: Callable[[Any, Any], None], tries: list[object]) -> Callable[[Any, Any], None]:
    """A function of ``os`` that fails three times; ``tries`` gets its targets."""

    def busy(source: Any, target: Any) -> None:
        tries.append(target)
        if len(tries) < 4:
            raise PermissionError(13, "The process cannot access the file because it is being used by another process")
        rename(source, target)

    return busy


def test_a_file_that_is_in_use_is_replaced_a_moment_later(tmp_path: Path, windows: Windows) -> None:
    tries: list[object] = []
    windows.replace = in_use(os.replace, tries)
    disk.write_json(tmp_path / "state.json", {"a": 1})
    assert disk.read_document(tmp_path / "state.json") == {"a": 1}
    assert len(tries) == 4
    tries.clear()
    Toy(tmp_path / "run").fit(steps(3), epochs=1)
    assert checkpoint.follow(tmp_path / "run" / checkpoint.BEST) is not None


def test_a_folder_that_is_in_use_is_renamed_a_moment_later(tmp_path: Path, windows: Windows) -> None:
    tries: list[object] = []
    windows.rename = in_use(os.rename, tries)
    (tmp_path / "new").mkdir()
    (tmp_path / "a").mkdir()
    assert disk.rename_free(tmp_path / "new", tmp_path / "a") == tmp_path / "a_2"
    assert len(tries) == 4
    assert (tmp_path / "a_2").is_dir()


def test_a_file_that_stays_in_use_is_named(tmp_path: Path, windows: Windows) -> None:
    def busy(source: object, target: object) -> None:
        raise PermissionError(13, "in use")

    windows.replace = busy
    with pytest.raises(disk.DiskError, match=r"state\.json could not be written"):
        disk.write_json(tmp_path / "state.json", {})
    assert list(tmp_path.iterdir()) == []


def test_elsewhere_nothing_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def refused(source: object, target: object) -> None:
        tries.append(target)
        raise PermissionError(13, "refused")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(disk.DiskError):
        disk.write_file(tmp_path / "a.txt", "a")
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("written", "name"),
    [(r"rooms\a.jpg", "rooms/a.jpg"), (r".\rooms\..\a.jpg", "a.jpg"), ("rooms//a.jpg", "rooms/a.jpg")],
)
def test_pictures_are_named_with_backslashes_too(written: str, name: str) -> None:
    assert spelling(written) == name == PureWindowsPath(name).as_posix()


def test_pictures_on_another_drive_than_the_fetched_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``relpath`` and ``commonpath`` raise there; the data file has their whole paths, and training can read it."""
    drives = tmp_path / "c", tmp_path / "d"
    for drive, name in zip(drives, ("far.png", "near.png"), strict=True):
        drive.mkdir()
        cv2.imwrite(str(drive / name), np.zeros((64, 128, 3), np.uint8))
    table = drives[1] / "train.csv"
    table.write_text("url,query,annotation\nhttps://h/far.png,a,b\nnear.png,a,b\n")

    def refuse(*paths: Any) -> None:
        if len({drive for drive in drives for path in paths if os.path.abspath(path).startswith(str(drive))}) > 1:
            raise ValueError("path is on mount 'D:', start on mount 'C:'")

    def relpath(path: Any, start: Any) -> str:
        refuse(path, start)
        return os.path.relpath(path, start)

    def commonpath(paths: list[str]) -> str:
        refuse(*paths)
        return os.path.commonpath(paths)

    path = SimpleNamespace(abspath=os.path.abspath, relpath=relpath, commonpath=commonpath)
    monkeypatch.setattr(fetch, "os", Windows(path=path))
    monkeypatch.chdir(tmp_path)
    data: dict[str, Any] = {"type": "files", "name": "csv", "train_csv": "d/train.csv"}
    opened = fetch._opened(data, "train")
    assert opened is not None
    fetched = Fetched({"https://h/far.png": drives[0] / "far.png"})
    keys = fetch._written({"train": opened}, fetched, drives[0], data)
    assert keys == f"data.train_csv={drives[0] / 'train.csv'} data.dir={drives[1]}"
    written = {**data, "train_csv": str(drives[0] / "train.csv"), "dir": str(drives[1])}
    source = open_source(written, "train", Crop.from_spec({"type": "resize"}, view_size=(8, 8)))
    assert [source.picture(at) for at in range(2)] == [drives[0] / "far.png", drives[1] / "near.png"]


def test_a_lock_is_held_by_one_process_and_outlives_none(tmp_path: Path) -> None:
    """The file stays, as Windows cannot remove an open one; what counts is who holds it."""
    with FileLock(tmp_path / ".lock").acquire(timeout=0), pytest.raises(Timeout):
        FileLock(tmp_path / ".lock").acquire(timeout=0)
    assert FileLock(tmp_path / ".lock").acquire(timeout=0)
