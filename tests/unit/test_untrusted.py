"""Files that are not what they say are refused with a sentence, before anything in them is used."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from panollava.checkpoint import FORMAT_VERSION, STATE, TRAINED, follow, read_state, read_tensors, read_weights, tidy
from panollava.disk import MAX_DOCUMENT_BYTES, read_document
from panollava.run_folder import METADATA, Experiment, read_metadata


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with a header of one's own."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


GOOD = save({"a": torch.ones(4)})
NO_TENSORS = {
    "empty": b"",
    "pickle": pickle.dumps({"a": 1}),
    "cut": GOOD[:-3],
    "cut-header": GOOD[:12],
    "header-longer-than-the-file": safetensors({}, length=1 << 40),
    "header-of-all-memory": struct.pack("<Q", (1 << 64) - 1) + b"{}",
    "data-beyond-the-end": safetensors(tensor([1 << 30], [0, 1 << 32])),
    "shape-unlike-its-data": safetensors(tensor([1 << 20], [0, 4]), b"\0" * 4),
    "offsets-turned-round": safetensors(tensor([1], [4, 0]), b"\0" * 4),
    "unknown-type": safetensors(tensor([1], [0, 4], "PICKLE"), b"\0" * 4),
    "no-object": safetensors([1, 2]),
}


@pytest.mark.parametrize("kind", NO_TENSORS)
def test_what_is_no_safetensors(tmp_path: Path, kind: str) -> None:
    (tmp_path / TRAINED).write_bytes(NO_TENSORS[kind])
    with pytest.raises(ValueError, match=r"trained\.safetensors is not a readable safetensors file"):
        read_weights(tmp_path)


def test_a_file_of_torch_save(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / TRAINED)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (torch.tensor([1.0, float("nan")]), "NaN or infinite"),
        (torch.tensor([float("inf")]), "NaN or infinite"),
        (torch.tensor([1, 2]), "int64"),
        (torch.tensor([True]), "bool"),
    ],
)
def test_what_can_be_no_weights(tmp_path: Path, values: torch.Tensor, said: str) -> None:
    (tmp_path / TRAINED).write_bytes(save({"fine": torch.ones(1), "a": values}))
    with pytest.raises(ValueError, match=rf"trained\.safetensors: a .*{said}"):
        read_weights(tmp_path)


NO_DOCUMENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not JSON"),
    "pickle": (pickle.dumps({"stage": "vision"}), "not JSON"),
    "not-utf-8": (b"\xff\xfe{}", "not JSON"),
    "nested": (b"[" * 200_000, "not JSON"),
    "digits": (b'{"a": ' + b"9" * 10_000 + b"}", "not JSON"),
    "list": (b"[1]", "not a JSON object but a list"),
    "large": (b" " * (MAX_DOCUMENT_BYTES + 1), "is not read"),
}


@pytest.mark.parametrize("kind", NO_DOCUMENTS)
@pytest.mark.parametrize("file", [STATE, METADATA, "stage_state.json"])
def test_what_is_no_document(tmp_path: Path, file: str, kind: str) -> None:
    content, said = NO_DOCUMENTS[kind]
    (tmp_path / file).write_bytes(content)
    read: dict[str, Callable[[], object]] = {
        STATE: lambda: read_state(tmp_path),
        METADATA: lambda: read_metadata(tmp_path),
        "stage_state.json": Experiment(tmp_path, "crop_mlp").states,
    }
    with pytest.raises(ValueError, match=said) as refused:
        read[file]()
    assert str(tmp_path / file) in str(refused.value)


@pytest.mark.parametrize("version", [None, 0, FORMAT_VERSION + 1, str(FORMAT_VERSION)])
def test_documents_of_another_time(tmp_path: Path, version: object) -> None:
    for file in (STATE, METADATA, "stage_state.json"):
        (tmp_path / file).write_text(json.dumps({"format_version": version, "stages": {}, "stage": "vision"}))
    for read in (read_state, read_metadata, lambda folder: Experiment(folder, "crop_mlp").states()):
        with pytest.raises(ValueError, match=rf"{version!r}.*reads (format )?{FORMAT_VERSION}"):
            read(tmp_path)


def test_documents_that_say_too_little(tmp_path: Path) -> None:
    (tmp_path / STATE).write_text(json.dumps({"format_version": FORMAT_VERSION, "stage": ["vision"]}))
    with pytest.raises(ValueError, match="names no stage"):
        read_state(tmp_path)
    (tmp_path / METADATA).write_text(json.dumps({"format_version": FORMAT_VERSION, "stage": "vision", "model": 1}))
    with pytest.raises(ValueError, match="lacks experiment_name, model, crop"):
        read_metadata(tmp_path)
    (tmp_path / "stage_state.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "stages": {"a/b": 1}}))
    with pytest.raises(ValueError, match=r"has no valid entry for a/b.*Remove the file"):
        Experiment(tmp_path, "crop_mlp").states()


def test_links_out_of_a_folder(tmp_path: Path) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    for folder in (outside / "b.ckpt", run / "a.ckpt"):
        folder.mkdir(parents=True)
    (outside / "weights").write_bytes(GOOD)
    (outside / "state").write_text("{}")
    (run / "a.ckpt" / TRAINED).symlink_to(outside / "weights")
    (run / "a.ckpt" / STATE).symlink_to("../../outside/state")
    for read in (lambda: read_tensors(run / "a.ckpt" / TRAINED), lambda: read_document(run / "a.ckpt" / STATE)):
        with pytest.raises(ValueError, match="outside its folder, and is not followed"):
            read()
    (run / "b.ckpt").symlink_to(outside / "b.ckpt")
    for name in ("../outside/b.ckpt", str(outside / "b.ckpt"), "..", "b.ckpt"):
        (run / "best.ckpt").symlink_to(name)
        (run / "last.ckpt").write_text(name)
        for link in ("best.ckpt", "last.ckpt"):
            with pytest.raises(ValueError, match="outside its folder"):
                follow(run / link)
        (run / "best.ckpt").unlink()


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / TRAINED)
    os.mkfifo(tmp_path / STATE)
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_state(tmp_path)


def test_tidying_puts_back_what_was_put_aside(tmp_path: Path) -> None:
    for name in (".old-a.ckpt-12", ".old-b.ckpt-12", "b.ckpt", ".tmp-c.ckpt-x1", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "told").write_text(name)
    (tmp_path / ".tmp-best.ckpt-12").symlink_to("a.ckpt")
    (tmp_path / "last.ckpt").symlink_to("a.ckpt")
    assert follow(tmp_path / "last.ckpt") == tmp_path / ".old-a.ckpt-12"  # for who only reads
    tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "b.ckpt", "last.ckpt", "mine"]
    assert (tmp_path / "a.ckpt" / "told").read_text() == ".old-a.ckpt-12"
    assert (tmp_path / "b.ckpt" / "told").read_text() == "b.ckpt"
    assert follow(tmp_path / "last.ckpt") == tmp_path / "a.ckpt"
