"""One process or many: what torchrun says, and what the processes of a run ask each other."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from panollava.logs import LOG


@contextlib.contextmanager
def heeded(world_size: int = 1) -> Iterator[list[int]]:
    """Collects SIGINT (Ctrl-C) and SIGTERM until the step in progress is whole; a second one ends the process at once.

    torchrun hands on either to all processes, and ends those that are left with SIGTERM when one has failed; what
    they do about it, down to the last line of the log, must not be cut short then.

    Args:
        world_size: number of processes of the run.

    Yields:
        The signals so far.
    """
    received: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        if received and world_size == 1:
            raise KeyboardInterrupt
        if not received:
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            again = " Press again to stop at once." if world_size == 1 and number == signal.SIGINT else ""
            LOG.warning("%s: finishing this step, or this validation, then saving.%s", name, again)
        received.append(number)

    try:
        previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield received
        return
    try:
        yield received
    except BaseException:
        if world_size > 1:
            previous[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Terminated(KeyboardInterrupt):
    """SIGTERM ended what was going on."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Lets SIGTERM end the block as Ctrl-C does, so that it is left in order; after any error nothing hurries it."""

    def end(_number: int, _frame: FrameType | None) -> None:
        unhurried()
        raise Terminated

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except BaseException:
        unhurried()
        raise
    signal.signal(signal.SIGTERM, previous)


def unhurried() -> None:
    """Ignores SIGTERM from now on: the process is about to end, and says why first."""
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


PATIENCE_S = 3.0
"""How long a process that lost another waits for that one's last words."""

_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|timed? ?out|broken pipe|socket|process group|rank \d", re.IGNORECASE
)
"""What the messages of collectives have in common when another process does not answer."""

_KEPT = "What was saved is kept: the same command goes on from there."


class ProcessLost(ConnectionError):
    """Another process of the run ended, or did not answer in time."""


@dataclass(frozen=True)
class Processes:
    """Place of this process among those of the run, and what they ask each other.

    Every method must be called by all processes, in the same order. Numbers and texts travel between CPUs, whatever
    device the model is on.

    Attributes:
        rank: 0 is the only one that writes and logs.
        world_size: number of processes.
        local_rank: place on this machine, which chooses the GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    _group: dist.ProcessGroup | None = field(default=None, repr=False, compare=False)
    _store: dist.Store | None = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and logs."""
        return self.rank == 0

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """Adds named numbers across processes, which all give the same names."""
        if self.world_size == 1 or not values:
            return dict(values)
        names = sorted(values)
        tensor = torch.tensor([values[name] for name in names], dtype=torch.float64)
        dist.all_reduce(tensor, group=self._group)
        return dict(zip(names, tensor.tolist(), strict=True))

    def max(self, value: float) -> float:
        """The largest of all processes' numbers."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group)
        return float(tensor)

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return self.max(float(flag)) > 0

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, by rank; they are on the CPU and of one shape and type."""
        if self.world_size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous(), group=self._group)
        return parts

    def texts(self, text: str) -> list[str]:
        """The texts of all processes, by rank."""
        if self.world_size == 1:
            return [text]
        data = torch.frombuffer(bytearray(text.encode()) or bytearray(1), dtype=torch.uint8)
        lengths = [int(length) for length in self.gather(torch.tensor(len(text.encode())))]
        padded = functional.pad(data[: lengths[self.rank]], (0, max(1, *lengths) - lengths[self.rank]))
        parts = self.gather(padded)
        return [bytes(part[:n].tolist()).decode() for part, n in zip(parts, lengths, strict=True)]

    def barrier(self) -> None:
        """Waits for all processes."""
        self.max(0.0)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Turns the many ways in which a collective fails when another process is gone into ``ProcessLost``."""
        try:
            yield
        except RuntimeError as error:
            if self.world_size == 1 or not _LOST.search(str(error)):
                raise
            unhurried()
            what = "did not answer in time" if "imed out" in str(error) else "ended"
            silence = (
                f"Another of the {self.world_size} processes {what} without a word, as when it is killed or the "
                f"machine has no memory left. {_KEPT}"
            )
            raise ProcessLost(_last_words(self, PATIENCE_S) or silence) from error
        except Terminated as error:
            ended = "The launcher ended this process, as it does when another one fails or the job is cancelled."
            raise ProcessLost(_last_words(self) or f"{ended} {_KEPT}") from error


@contextmanager
def processes(*, device: str = "auto", timeout_s: float = 1800.0) -> Iterator[Processes]:
    """Joins the group torchrun started, if it started one, and leaves it at the end.

    A process that fails leaves its message for the others. What several have to say is said once: by the one whose
    error it is, or by the first.

    Args:
        device: ``trainer.device``.
        timeout_s: longest wait for another process.

    Raises:
        ValueError: more processes than GPUs, or a variable of torchrun is missing or wrong.
        ConnectionError: the processes do not find each other.
        ProcessLost: another process ended or did not answer.
    """
    world_size = _number("WORLD_SIZE", range(1, 2**31)) if "WORLD_SIZE" in os.environ else 1
    if world_size == 1:
        yield Processes()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(f"WORLD_SIZE={world_size}, but {', '.join(missing)} is not set. Start with torchrun.")
    _number("RANK", range(world_size))
    _number("MASTER_PORT", range(2**16))
    procs = _join(device, timedelta(seconds=timeout_s))
    try:
        with terminable(), procs.together():
            yield procs
    except Exception as error:
        if not _is_mine_to_tell(procs, error):
            raise SystemExit(1) from error
        raise
    dist.destroy_process_group()  # after an error others may be gone, and the end of the process does it


def _join(device: str, timeout: timedelta) -> Processes:
    local_rank = _number("LOCAL_RANK", range(2**31))
    if device.startswith("cuda:"):
        raise ValueError(
            f"trainer.device={device} names one GPU, and each process takes one of its own: use trainer.device=cuda."
        )
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu and local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"Process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}. Start no more "
            "processes than GPUs (--nproc-per-node), or use trainer.device=cpu."
        )
    if device == "mps":
        raise ValueError("trainer.device=mps trains in one process. Leave torchrun out, or use trainer.device=cpu.")
    if on_gpu:
        torch.cuda.set_device(local_rank)
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        backend = "nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        group = dist.new_group(backend="gloo", timeout=timeout) if on_gpu else dist.group.WORLD
    except RuntimeError as error:
        raise ConnectionError(_why_alone(str(error), timeout)) from error
    assert isinstance(group, dist.ProcessGroup)
    return Processes(rank, world_size, local_rank, group, dist.PrefixStore("panollava", store))


def _number(name: str, allowed: range) -> int:
    """A variable of torchrun."""
    text = os.environ[name]
    if not (text.isdecimal() and int(text) in allowed):
        raise ValueError(
            f"{name}={text!r} in the environment: {allowed.start} to {allowed.stop - 1} is allowed. Use torchrun."
        )
    return int(text)


def _why_alone(error: str, timeout: timedelta) -> str:
    """What keeps the processes from finding each other, in words."""
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    count, rank = os.environ["WORLD_SIZE"], os.environ["RANK"]
    if "EADDRINUSE" in error:
        return (
            f"Port {os.environ['MASTER_PORT']} is in use by another program, so the {count} processes cannot meet "
            "there. Give torchrun another one, --master-port=<number>, or --standalone, which finds a free one."
        )
    if "imed out" in error:
        return (
            f"Process {rank} of {count} has waited {timeout.total_seconds():.0f} s at {place}, and not all of the "
            "others came. Start every process with the same MASTER_ADDR and MASTER_PORT (torchrun does), and see why "
            "the others ended. trainer.process_timeout_s is how long to wait."
        )
    return (
        f"Process {rank} of {count} could not join the others at {place} ({' '.join(error.split())[:300]}). See that "
        "every machine reaches that address, and start again with torchrun."
    )


def _last_words(procs: Processes, wait_s: float = 0.0) -> str | None:
    """What another process left as its reason to end."""
    until = time.monotonic() + wait_s
    while True:
        for rank in range(procs.world_size):
            if rank != procs.rank and (text := _read(procs, f"failed/{rank}")) is not None:
                return f"Process {rank} stopped the run: {text}"
        if time.monotonic() >= until:
            return None
        time.sleep(0.1)


def _is_mine_to_tell(procs: Processes, error: Exception) -> bool:
    """Leaves this process's reason to end for the others; whether it is the one to say it aloud.

    It is not where it only heard of another's, or another says the very same.
    """
    text = f"{type(error).__name__}: {error}"
    heard = isinstance(error, ProcessLost)
    if heard and not procs.is_main and _last_words(procs):
        return False
    assert procs._store is not None
    try:
        if not heard:
            procs._store.set(f"failed/{procs.rank}", text)
        return bool(procs._store.add(f"told/{sha256(text.encode()).hexdigest()}", 1) == 1)
    except RuntimeError:  # the process that kept the store is gone
        return True


def _read(procs: Processes, key: str) -> str | None:
    assert procs._store is not None
    try:
        return procs._store.get(key).decode() if procs._store.check([key]) else None
    except RuntimeError:  # the process that kept the store is gone
        return None
