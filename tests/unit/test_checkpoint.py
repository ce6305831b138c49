"""Checkpoints: whole or absent, never unpickled, found by best, last, newest."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from panollava import checkpoint as files


def write(folder: Path, value: float = 1.0, **state: object) -> Path:
    files.write_checkpoint(folder, {files.TRAINED: {"a": torch.full((2,), value)}}, {"stage": "vision", **state})
    return folder


def test_round_trip(tmp_path: Path) -> None:
    target = write(tmp_path / "x.ckpt", 3.0, epoch=2)
    assert torch.equal(files.read_tensors(target / files.TRAINED)["a"], torch.full((2,), 3.0))
    assert files.read_state(target) == {"format_version": 1, "stage": "vision", "epoch": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


def test_replacing_leaves_one_whole_folder(tmp_path: Path) -> None:
    write(tmp_path / "x.ckpt", 1.0)
    write(tmp_path / "x.ckpt", 2.0)
    assert files.read_tensors(tmp_path / "x.ckpt" / files.TRAINED)["a"][0] == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_failing_write_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.ckpt", 1.0)

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "x.ckpt", 2.0)
    assert files.read_tensors(tmp_path / "x.ckpt" / files.TRAINED)["a"][0] == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


def test_links_are_relative_and_survive_a_move(tmp_path: Path) -> None:
    run = tmp_path / "run"
    files.point(run_link := (write(run / "a.ckpt").parent / files.BEST), run / "a.ckpt")
    assert files.follow(run_link) == run / "a.ckpt"
    moved = run.rename(tmp_path / "moved")
    assert files.find_checkpoint(moved) == moved / "a.ckpt"


def test_without_symlinks_a_pointer_file_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise OSError("a privilege is not held")

    monkeypatch.setattr(Path, "symlink_to", refused)
    write(tmp_path / "a.ckpt")
    files.point(tmp_path / files.LAST, tmp_path / "a.ckpt")
    assert (tmp_path / files.LAST).is_file()
    assert files.find_checkpoint(tmp_path) == tmp_path / "a.ckpt"


def test_choice_is_best_then_last_then_newest(tmp_path: Path) -> None:
    for age, name in enumerate(("newest.ckpt", "middle.ckpt", "oldest.ckpt")):
        write(tmp_path / name)
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    assert files.find_checkpoint(tmp_path).name == "newest.ckpt"
    files.point(tmp_path / files.LAST, tmp_path / "middle.ckpt")
    assert files.find_checkpoint(tmp_path).name == "middle.ckpt"
    files.point(tmp_path / files.BEST, tmp_path / "oldest.ckpt")
    assert files.find_checkpoint(tmp_path).name == "oldest.ckpt"
    assert files.find_checkpoint(tmp_path / "middle.ckpt").name == "middle.ckpt"


def test_a_dangling_best_falls_back(tmp_path: Path) -> None:
    write(tmp_path / "a.ckpt")
    files.point(tmp_path / files.BEST, tmp_path / "gone.ckpt")
    assert files.find_checkpoint(tmp_path).name == "a.ckpt"


def test_nothing_there_says_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"notes\.txt"):
        files.find_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"\xff" * 64, json.dumps({}).encode()])
def test_what_is_not_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / files.TRAINED).write_bytes(content)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        files.read_tensors(tmp_path / files.TRAINED)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "exploded",))

    (tmp_path / files.TRAINED).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="safetensors"):
        files.read_tensors(tmp_path / files.TRAINED)
    assert not (tmp_path / "exploded").exists()


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere.ckpt")
    run = tmp_path / "run"
    run.mkdir()
    (run / files.BEST).symlink_to("../elsewhere.ckpt")
    with pytest.raises(ValueError, match="outside its folder"):
        files.find_checkpoint(run)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt" / files.STATE).write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match="99"):
        files.read_state(tmp_path / "a.ckpt")
