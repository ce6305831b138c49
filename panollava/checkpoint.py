"""Checkpoints: folders of safetensors and JSON that appear whole or not at all.

A checkpoint is a folder ``*.ckpt`` with ``trained.safetensors`` (only what differs from the named backbones),
``state.json`` and, for resuming, ``optimizer.safetensors`` and ``random.safetensors``. Nothing is ever pickled.
There is no ``config.json`` on purpose: transformers would open the folder and fill what is missing at random.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT_VERSION = 1
TRAINED = "trained.safetensors"
STATE = "state.json"
BEST, LAST = "best.ckpt", "last.ckpt"


def write_checkpoint(
    target: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> None:
    """Writes a checkpoint folder atomically.

    Args:
        target: the folder; one that exists is replaced only once the new one is complete.
        tensors: file name (``trained.safetensors``, ``optimizer.safetensors``, …) -> named tensors.
        state: JSON document for ``state.json``; the format version is added.
    """

    def fill(folder: Path) -> None:
        for name, content in tensors.items():
            save_file({key: value.detach().cpu().contiguous() for key, value in content.items()}, folder / name)
            _flush(folder / name)
        (folder / STATE).write_text(json.dumps({"format_version": FORMAT_VERSION, **state}, indent=2), encoding="utf-8")
        _flush(folder / STATE)

    replace_folder(target, fill)


def replace_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Fills a temporary sibling of ``target`` and renames it into place; the old one goes last."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{target.name}-", dir=target.parent))
    try:
        fill(temporary)
        temporary.chmod(0o755)
        aside = None
        if target.exists():
            aside = target.with_name(f".old-{target.name}-{os.getpid()}")
            shutil.rmtree(aside, ignore_errors=True)
            target.rename(aside)
        temporary.rename(target)
        _flush(target.parent)
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a small file atomically: readers see the old content or the new, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".tmp-{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
        _flush(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_json(path: Path, document: Any) -> None:
    """``write_file`` for a JSON document, indented for people."""
    write_file(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes one safetensors file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, temporary)
    _flush(temporary)
    os.replace(temporary, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not safetensors (a pickle renamed, cut short, empty); it is never unpickled.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. A checkpoint folder holds {TRAINED} and {STATE}.")
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}). It may be cut short or of another format; "
            "only safetensors are read. Choose another checkpoint of the run, or train it again."
        ) from error


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The ``state.json`` of a checkpoint folder.

    Raises:
        ValueError: not a checkpoint of this format version, with the way out.
    """
    path = checkpoint / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{checkpoint} is no checkpoint: it has no {STATE}.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Choose another checkpoint of the run.") from error
    if not isinstance(state, dict) or state.get("format_version") != FORMAT_VERSION:
        found = state.get("format_version") if isinstance(state, dict) else None
        raise ValueError(f"{path} has format version {found!r}; this panollava reads {FORMAT_VERSION}.")
    return state


def fingerprint(checkpoint: Path) -> str:
    """A short digest of the weights in a checkpoint: the same for the same weights, wherever they lie."""
    digest = hashlib.sha256()
    with (checkpoint / TRAINED).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def point(link: Path, target: Path) -> None:
    """Makes ``link`` (``best.ckpt``, ``last.ckpt``) name its sibling ``target``, atomically.

    A relative symlink, or a small pointer file where the system does not allow links.
    """
    temporary = link.with_name(f".tmp-{link.name}-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        if os.name == "nt":
            raise OSError("Windows does not replace a link to a folder in one go")
        temporary.symlink_to(target.name, target_is_directory=True)
    except OSError:
        temporary.write_text(target.name, encoding="utf-8")
    os.replace(temporary, link)


def follow(link: Path) -> Path | None:
    """The checkpoint folder that ``best.ckpt`` or ``last.ckpt`` names, or None where it names none."""
    if link.is_symlink():
        name = os.readlink(link)
    elif link.is_file() and link.stat().st_size < 1024:
        name = link.read_text(encoding="utf-8").strip()
    else:
        return link if link.is_dir() else None
    if Path(name).name != name:
        raise ValueError(f"{link} points outside its folder ({name!r}). A checkpoint link names a sibling folder.")
    target = link.with_name(name)
    return target if target.is_dir() else None


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint to use of a stage's folder: best, else last, else the newest ``*.ckpt``.

    Args:
        folder: a stage's run folder, or a checkpoint itself.

    Raises:
        FileNotFoundError: there is none; the message lists what the folder holds.
    """
    if folder.is_file():  # a pointer given by itself, where links are not allowed
        folder = follow(folder) or folder
    if (folder / STATE).is_file():
        return folder
    for name in (BEST, LAST):
        if (target := follow(folder / name)) is not None:
            return target
    others = [path for path in folder.glob("*.ckpt") if path.is_dir() and not path.is_symlink()]
    if others:
        return max(others, key=lambda path: path.stat().st_mtime)
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) if folder.is_dir() else "it does not exist"
    raise FileNotFoundError(
        f"No checkpoint in {folder} ({held or 'it is empty'}). Name a stage's run folder, such as "
        "runs/<experiment>/finetune/<crop>_<resampler>, or train one first."
    )


def _flush(path: Path) -> None:
    """Asks the system to put a file, or a folder's entries, on disk; Windows cannot do this for folders."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
