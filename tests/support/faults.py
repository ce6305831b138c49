"""Ends a process, or fails a write, at a chosen operation on files: what a power cut or a full disk would do."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from panollava import checkpoint

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.chmod", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR


def kill() -> None:
    """As a power cut does, without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


class Cut:
    """Counts the operations that change files below a folder, and strikes at one of them; for a process of its own.

    A write is seen at its opening and at its flush, where half of it may be on the disk; safetensors, which other
    code writes, are seen in the middle too.

    Args:
        folder: what lies elsewhere, and logs, are not counted.
        at: number of the operation to strike before, from 1; 0 only counts.
        strike: what happens there; it may raise what the operation would raise.
        once: whether later operations succeed again.
        among: names in the folder below which operations count; all without any.
    """

    def __init__(
        self,
        folder: Path,
        at: int = 0,
        strike: Callable[[], None] = kill,
        *,
        once: bool = True,
        among: Sequence[str] = (),
    ) -> None:
        self.folder, self.at, self.strike, self.once = str(folder.resolve()), at, strike, once
        self._places = tuple(f"{self.folder}/{name}" for name in among) or (f"{self.folder}/",)
        self.seen: list[str] = []
        self._active = True

    def install(self) -> None:
        """From here on; there is no way back in this process."""
        sys.addaudithook(self._audit)
        fsync = os.fsync

        def counted_fsync(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if self._is_ours(path):
                self._count(f"flush {path}", half=path)
            fsync(descriptor)

        def counted_save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
            content = save(tensors)
            with Path(path).open("wb") as file:
                file.write(content[: len(content) // 2])
                file.flush()
                self._count(f"half of {Path(path).resolve()}")
                file.write(content[len(content) // 2 :])

        os.fsync = counted_fsync
        checkpoint.save_file = counted_save_file

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active or not (event == "open" or event in _CHANGES):
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if event == "open" and not arguments[2] & _WRITING:
            return
        if event == "os.symlink":
            path = arguments[1]
        name = os.path.abspath(os.fsdecode(path))
        if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # a whole tree goes: the name is one in a folder
            name = os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), os.fsdecode(path))
        if event == "os.mkdir" and os.path.isdir(name):
            return
        if self._is_ours(name):
            self._count(f"{event} {name}")

    def _is_ours(self, path: str) -> bool:
        return path.startswith(self._places) and not path.endswith((".log", ".lock"))

    def _count(self, what: str, half: str | None = None) -> None:
        self.seen.append(what.replace(self.folder, ""))
        number = len(self.seen)
        if self.at and (number == self.at or (number > self.at and not self.once)):
            self._active = self.strike is not kill and not self.once
            if half is not None and os.path.isfile(half) and self.strike is kill:
                os.truncate(half, os.path.getsize(half) // 2)
            self.strike()
            self._active = True


def no_space() -> None:
    """The disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def broken() -> None:
    """The disk does not do it."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def in_child(work: Callable[[], None], *, quiet: Path | None = None) -> int:
    """Runs ``work`` in a forked copy of this process, which has everything imported.

    Args:
        work: what to do.
        quiet: file that takes what it writes to the terminal.

    Returns:
        Its exit status; 1 where ``work`` raised, minus the signal where one ended it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = start_child(work, quiet=quiet)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start_child(work: Callable[[], None], *, quiet: Path | None = None) -> int:
    """``in_child`` that does not wait; gives the process's number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        torch.set_num_threads(1)  # threads of the parent are not here
        if quiet is not None:
            with quiet.open("ab") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = os.fdopen(2, "w", closefd=False)
        work()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
