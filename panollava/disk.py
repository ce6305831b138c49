"""Failures of the disk in words: what was not written, why, and what to do; and taking away what was made in vain."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCKED = (errno.EROFS, errno.EACCES, errno.EPERM)


class DiskError(OSError):
    """Something could not be written; the message says why and what to do."""


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns a failure to write ``target`` into one sentence with the way out.

    Raises:
        DiskError: the block failed to write.
    """
    try:
        yield
    except DiskError:
        raise
    except (OSError, SafetensorError) as error:
        code = _code(error)
        reason = os.strerror(code) if code else str(error)
        raise DiskError(
            f"{target} could not be written ({reason}). What was saved before is whole. {_way_out(code)}"
        ) from error


def check_writable(folder: Path, key: str) -> None:
    """Whether something could be written into a folder that may not be there yet; nothing is made.

    Raises:
        DiskError: the folder, or the one it would be made in, is read-only; the message names the key that says where
            it is.
    """
    place = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        raise DiskError(
            f"{key}={folder} cannot be written: {place} is read-only, or not this user's. Make it writable, or choose "
            f"another place with {key}=<folder>."
        )


def missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that are not there yet, the innermost first."""
    return [each for each in (folder, *folder.parents) if not each.exists()]


def take_away(files: Iterable[Path], folders: Sequence[Path]) -> None:
    """Removes files, and folders where they are empty then; what cannot be removed stays."""
    for path in (*sorted(files, reverse=True), *folders):  # what lies in a folder before the folder
        with suppress(OSError):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def _code(error: Exception) -> int | None:
    """The system's number of a failure; safetensors tells it in its text alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\bcode: (\d+)", str(error)) or re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _way_out(code: int | None) -> str:
    again = "start the same command again: it goes on from what is whole"
    if code in _FULL:
        return f"Free some space there, or move the folder to another disk and name that place, and {again}."
    if code in _LOCKED:
        return "Make the folder writable for this user, or choose another one (output_dir= of a training)."
    return f"See that the disk is well, or move the folder to another one and name that place, and {again}."
