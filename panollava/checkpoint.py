"""Checkpoints: folders of safetensors and JSON that appear whole or not at all.

A checkpoint is a folder ``*.ckpt`` with ``trained.safetensors`` (only what differs from the named backbones),
``state.json`` and, for resuming, ``optimizer.safetensors`` and ``random.safetensors``. Nothing is ever pickled.
There is no ``config.json`` on purpose: transformers would open the folder and fill what is missing at random.
"""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from panollava.disk import (
    TEMPORARY,
    check_own,
    flush,
    link,
    read_versioned,
    rename,
    replace_file,
    temporary_folder,
    writing,
)

FORMAT_VERSION = 1
TRAINED = "trained.safetensors"
STATE = "state.json"
BEST, LAST = "best.ckpt", "last.ckpt"
WEIGHT_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_ASIDE = ".old-"  # prefix of the names of folders that are being replaced; see `tidy`


def write_checkpoint(target: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Writes a checkpoint folder atomically; an existing one is replaced once the new one is complete.

    ``tensors`` maps file names (``trained.safetensors``, ``optimizer.safetensors``, …) to named tensors; ``state`` is
    the document for ``state.json``, to which the format version is added.
    """

    def fill(folder: Path) -> None:
        for name, content in tensors.items():
            save_file(_on_cpu(content), folder / name)
        (folder / STATE).write_text(json.dumps({"format_version": FORMAT_VERSION, **state}, indent=2), encoding="utf-8")

    replace_folder(target, fill)


def replace_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Fills a temporary sibling of ``target`` and renames it into place; after a DiskError the old one is as it was."""
    with temporary_folder(target) as temporary:
        aside = None
        try:
            fill(temporary)
            for path in (*temporary.rglob("*"), temporary):
                flush(path)
            if target.exists():
                aside = target.with_name(f"{_ASIDE}{target.name}-{os.getpid()}")
                shutil.rmtree(aside, ignore_errors=True)
                rename(target, aside)
            rename(temporary, target)
            flush(target.parent)
        except BaseException:
            if aside is not None and not target.exists():
                rename(aside, target)
            raise
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Cleans up after a killed process: restores a folder that nothing has replaced, removes temporary files."""
    for path in folder.glob(f"{_ASIDE}*"):
        target = path.with_name(path.name.removeprefix(_ASIDE).rpartition("-")[0])
        _remove(path) if target.exists() else rename(path, target)
    for path in folder.glob(f"{TEMPORARY}*"):
        _remove(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes one safetensors file atomically; raises a DiskError if it could not be written."""
    replace_file(path, lambda temporary: save_file(_on_cpu(tensors), temporary))


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU; nothing is ever unpickled.

    A link out of its folder, and what is not safetensors (a pickle renamed, truncated, empty), raise a ValueError.
    """
    check_own(path)
    try:
        return load_file(path)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({str(error)[:200]}). It may be cut short or of another "
            "format; only safetensors are read. Choose another checkpoint of the run, or train it again."
        ) from error


def check_weights(tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raises a ValueError for a tensor that cannot be a weight: not floating-point, or with NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.dtype not in WEIGHT_TYPES:
            raise ValueError(f"{source}: {name} has type {tensor.dtype}; weights are floating-point.")
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{source}: {name} holds NaN or infinite numbers, so the model cannot answer. Choose another "
                "checkpoint of the run, or train it again with a lower learning rate."
            )


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint folder; raises as ``read_tensors`` and ``check_weights``."""
    path = checkpoint / TRAINED
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. A checkpoint folder holds {TRAINED} and {STATE}.")
    tensors = read_tensors(path)
    check_weights(tensors, path)
    return tensors


STANDS_ON = "stands_on"
"""Entry of a checkpoint's state: the checkpoint that has the weights it lacks."""
BASE = "base.ckpt"
"""Name of a copy of that checkpoint beside those that stand on it: the other stage removes its own in time."""


def stands_on(base: Path, root: Path) -> dict[str, str]:
    """The entry that names a checkpoint `base`, by its place below the experiment's folder `root` or its whole path."""
    place = base.resolve()
    named = place.relative_to(root.resolve()) if place.is_relative_to(root.resolve()) else place
    return {"checkpoint": named.as_posix(), "digest": weights_digest(base)}


def keep_base(base: Path, folder: Path) -> None:
    """Keeps the weights of a checkpoint as ``base.ckpt`` of a folder: as hard links where the disk has them."""

    def fill(target: Path) -> None:
        for name in (TRAINED, STATE):
            link(base / name, target / name)

    if base.resolve() != (folder / BASE).resolve():
        replace_folder(folder / BASE, fill)


def weights_digest(checkpoint: Path) -> str:
    """Digest of the weights of a checkpoint."""
    with (checkpoint / TRAINED).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def base_of(checkpoint: Path) -> Path | None:
    """The checkpoint that one stands on; None where it has all weights itself.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it has other weights than it had.
    """
    entry = read_state(checkpoint).get(STANDS_ON)
    if entry is None:
        return None
    named = Path(entry["checkpoint"])
    root = checkpoint.resolve().parent.parent.parent
    places = [checkpoint.resolve().parent / BASE, named if named.is_absolute() else root / named]
    held = [place for place in places if (place / TRAINED).is_file()]
    if not held:
        raise FileNotFoundError(
            f"{checkpoint} stands on the weights of {places[-1]}, which is not there. Restore it, copy it to "
            f"{places[0]}, or train the stage again."
        )
    for place in held:
        if weights_digest(place) == entry["digest"]:
            return place
    raise ValueError(
        f"{checkpoint} stands on the weights of {held[-1]}, which have changed since. Restore them, or train the stage "
        "again (overwrite=true)."
    )


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The ``state.json`` of a checkpoint folder; raises a ValueError if it is not one of this format version."""
    path = checkpoint / STATE
    if not path.is_file():
        raise FileNotFoundError(f"{checkpoint} is no checkpoint: it has no {STATE}.")
    state = read_versioned(path, FORMAT_VERSION, "Choose another checkpoint of the run.")
    if not isinstance(state.get("stage"), str):
        raise ValueError(f"{path} names no stage, so it is not a checkpoint's. Choose another one of the run.")
    return state


def point(link: Path, target: Path) -> None:
    """Lets ``link`` name its sibling ``target``, atomically: a relative symlink, or a pointer file without links."""
    with writing(link):
        temporary = link.with_name(f"{TEMPORARY}{link.name}-{os.getpid()}")
        temporary.unlink(missing_ok=True)
        try:
            if os.name == "nt":
                raise OSError("Windows does not replace a link to a folder atomically")
            temporary.symlink_to(target.name, target_is_directory=True)
        except OSError:
            temporary.write_text(target.name, encoding="utf-8")
            flush(temporary)
        rename(temporary, link)
        flush(link.parent)


def follow(link: Path) -> Path | None:
    """The folder that ``best.ckpt`` or ``last.ckpt`` names, or None; a ValueError if it is not beside the link."""
    if link.is_symlink():
        name = os.readlink(link)
    elif link.is_file() and link.stat().st_size < 1024:
        name = link.read_text(encoding="utf-8", errors="replace").strip()
    else:
        return link if link.is_dir() else None
    target = link.with_name(name) if Path(name).name == name and name not in ("", "..") else None
    if target is None or target.is_symlink():
        raise ValueError(f"{link} points outside its folder ({name!r}). A checkpoint link names a sibling folder.")
    if target.is_dir():
        return target
    # A process that was killed while it replaced the folder has left it here.
    return next(link.parent.glob(f"{_ASIDE}{glob.escape(name)}-*"), None)


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a stage's folder, without the one that they stand on."""
    found = (path for path in folder.glob("*.ckpt") if not path.is_symlink() and path.name != BASE)
    return [path for path in found if (path / STATE).is_file()]


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint to use of a stage's folder: best, else last, else the newest; a checkpoint itself as it is.

    Raises a FileNotFoundError that lists what the folder holds if there is none.
    """
    if folder.is_file():  # a pointer file, where links are not allowed
        folder = follow(folder) or folder
    if (folder / STATE).is_file():
        return folder
    for name in (BEST, LAST):
        if (target := follow(folder / name)) is not None:
            return target
    if others := checkpoints(folder):
        return max(others, key=lambda path: path.stat().st_mtime)
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) if folder.is_dir() else "it does not exist"
    raise FileNotFoundError(
        f"No checkpoint in {folder} ({held or 'it is empty'}). Name a stage's run folder, such as "
        "runs/<experiment>/finetune/<crop>_<resampler>, or train one first."
    )


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
