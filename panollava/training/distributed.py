"""The processes that torchrun started for a run: their group, collectives, signals, and errors of lost processes."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from panollava.logs import LOG

PATIENCE_S = 3.0
"""How long a process that lost another waits for that one's error message."""

_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|timed? ?out|broken pipe|socket|process group|rank \d", re.IGNORECASE
)
"""Found in the messages of collectives when another process does not answer."""

_RESUME = "Saved checkpoints are kept: run the same command to resume."


class ProcessLost(ConnectionError):
    """Another process of the run ended, or did not answer in time."""


class Terminated(KeyboardInterrupt):
    """SIGTERM ended the block."""


@dataclass(frozen=True)
class DistributedContext:
    """The rank of this process and the collectives of the run; all processes must call them in the same order.

    Collectives of numbers and texts run on the CPU, for a model on any device. One process needs no group.

    Attributes:
        rank: 0 is the main process, the only one that writes and logs.
        world_size: number of processes.
        local_rank: rank on this machine, which chooses the GPU.
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
        """Sums named numbers over processes; all must have the same names."""
        names = sorted(values)
        if self.world_size == 1 or not names:
            return dict(values)
        return dict(zip(names, self._all_reduce([values[name] for name in names], dist.ReduceOp.SUM), strict=True))

    def max(self, value: float) -> float:
        """The largest number of all processes."""
        return value if self.world_size == 1 else self._all_reduce([value], dist.ReduceOp.MAX)[0]

    def _all_reduce(self, values: list[float], op: dist.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=op, group=self._group)
        return tensor.tolist()

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process."""
        return self.max(float(flag)) > 0

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, by rank; they must be on the CPU and have one shape and type."""
        if self.world_size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous(), group=self._group)
        return parts

    def texts(self, text: str) -> list[str]:
        """The texts of all processes, by rank."""
        if self.world_size == 1:
            return [text]
        parts: list[str] = [""] * self.world_size
        dist.all_gather_object(parts, text, group=self._group)
        return parts

    def barrier(self) -> None:
        """Waits for all processes."""
        self.max(0.0)

    @contextmanager
    def detect_lost(self) -> Iterator[None]:
        """Raises ``ProcessLost`` in place of the various errors of collectives when another process is gone."""
        try:
            yield
        except RuntimeError as error:
            if self.world_size == 1 or not _LOST.search(str(error)):
                raise
            ignore_sigterm()
            what = "did not answer in time" if "imed out" in str(error) else "ended"
            silent = (
                f"Another of the {self.world_size} processes {what} without an error message, as when it is killed or "
                f"the machine has no memory left. {_RESUME}"
            )
            raise ProcessLost(_failure_of_another(self, PATIENCE_S) or silent) from error
        except Terminated as error:
            ended = "The launcher ended this process, as it does when another one fails or the job is cancelled."
            raise ProcessLost(_failure_of_another(self) or f"{ended} {_RESUME}") from error


@contextmanager
def init_distributed(*, device: str = "auto", timeout_s: float = 1800.0) -> Iterator[DistributedContext]:
    """Joins the process group if torchrun started one, and leaves it at the end.

    A process that fails publishes its error message. Each message is reported once: by the process that has the
    error, or by the main process for one that is lost.

    Args:
        device: ``trainer.device``.
        timeout_s: longest wait for another process.

    Raises:
        ValueError: more processes than GPUs, or a variable of torchrun is missing or wrong.
        ConnectionError: the processes do not find each other.
        ProcessLost: another process ended or did not answer.
    """
    world_size = _env_int("WORLD_SIZE", range(1, 2**31)) if "WORLD_SIZE" in os.environ else 1
    if world_size == 1:
        yield DistributedContext()
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(f"WORLD_SIZE={world_size}, but {', '.join(missing)} is not set. Start with torchrun.")
    _env_int("RANK", range(world_size))
    _env_int("MASTER_PORT", range(2**16))
    procs = _join(device, timedelta(seconds=timeout_s))
    try:
        with _sigterm_raises(), procs.detect_lost():
            yield procs
    except Exception as error:
        if not _should_report(procs, error):
            raise SystemExit(1) from error
        raise
    dist.destroy_process_group()  # not after an error: others may be gone, and the end of the process does it


@contextmanager
def catch_signals(world_size: int = 1) -> Iterator[list[int]]:
    """Collects SIGINT (Ctrl-C) and SIGTERM, so that a step can end; in a single process a second one raises.

    torchrun forwards both to all processes, and sends SIGTERM to the rest when one has failed. After an error in one
    of several processes SIGTERM is therefore ignored, so that saving and logging can finish.

    submitit's signal before a job's time limit is collected as well. Its handler puts the job back in the queue and
    raises SystemExit; it is called at the end of the block, when all is saved, unless an error ends the block.

    Yields:
        The signals so far.
    """
    received: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        if received and number not in queues and (world_size == 1 or queues.keys() & set(received)):
            raise KeyboardInterrupt  # in a job of SLURM, SIGTERM is sent at its limit, and SIGKILL soon after
        if not received:
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            again = " Press again to stop at once." if world_size == 1 and number == signal.SIGINT else ""
            LOG.warning("%s: finishing this step, or this batch of the validation, then saving.%s", name, again)
        received.append(number)

    queues = _submitit_signal()
    try:
        previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM, *queues)}
    except ValueError:  # not the main thread: the caller handles signals
        yield received
        return
    try:
        yield received
    except BaseException as error:
        if world_size > 1:
            previous[signal.SIGTERM] = signal.SIG_IGN
        if not isinstance(error, KeyboardInterrupt):
            queues = {}
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for number in queues.keys() & set(received):
            queues[number](number, None)


def _submitit_signal() -> dict[int, Callable[[int, FrameType | None], object]]:
    """The number and the handler of submitit's signal, where it started this process.

    Source: ``submitit/core/job_environment.py``.
    """
    name = f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"
    if "SUBMITIT_EXECUTOR" not in os.environ or not hasattr(signal, name):
        return {}
    number = getattr(signal, name)
    handler = signal.getsignal(number)
    return {number: handler} if callable(handler) else {}


def ignore_sigterm() -> None:
    """Ignores SIGTERM from now on, so that a process that is about to end can report why."""
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Makes SIGTERM raise ``Terminated``, so that the block is left in order; after any error it is ignored."""

    def end(_number: int, _frame: FrameType | None) -> None:
        ignore_sigterm()
        raise Terminated

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except BaseException:
        ignore_sigterm()
        raise
    signal.signal(signal.SIGTERM, previous)


def _env_int(name: str, allowed: range) -> int:
    text = os.environ[name]
    if not (text.isdecimal() and int(text) in allowed):
        raise ValueError(
            f"{name}={text!r} in the environment: {allowed.start} to {allowed.stop - 1} is allowed. Use torchrun."
        )
    return int(text)


def _join(device: str, timeout: timedelta) -> DistributedContext:
    local_rank = _env_int("LOCAL_RANK", range(2**31))
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
        raise ConnectionError(_join_error(str(error), timeout)) from error
    assert isinstance(group, dist.ProcessGroup)
    return DistributedContext(rank, world_size, local_rank, group, dist.PrefixStore("panollava", store))


def _join_error(error: str, timeout: timedelta) -> str:
    host, port, count, rank = (os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"))
    if "EADDRINUSE" in error:
        return (
            f"Port {port} is in use by another program, so the {count} processes cannot meet there. Give torchrun "
            "another one, --master-port=<number>, or --standalone, which finds a free one."
        )
    if "imed out" in error:
        return (
            f"Process {rank} of {count} has waited {timeout.total_seconds():.0f} s at {host}:{port}, and not all "
            "others came. Start every process with the same MASTER_ADDR and MASTER_PORT (torchrun does), and check "
            "why the others ended. trainer.process_timeout_s is how long to wait."
        )
    return (
        f"Process {rank} of {count} could not join the others at {host}:{port} ({' '.join(error.split())[:300]}). "
        "Check that every machine reaches that address, and start again with torchrun."
    )


def _failure_of_another(procs: DistributedContext, wait_s: float = 0.0) -> str | None:
    """The error message that another process published."""
    assert procs._store is not None
    until = time.monotonic() + wait_s
    while True:
        for rank in range(procs.world_size):
            key = f"failed/{rank}"
            with suppress(RuntimeError):  # the process that hosts the store is gone
                if rank != procs.rank and procs._store.check([key]):
                    return f"Process {rank} stopped the run: {procs._store.get(key).decode()}"
        if time.monotonic() >= until:
            return None
        time.sleep(0.1)


def _should_report(procs: DistributedContext, error: Exception) -> bool:
    """Publishes this process's error message for the others, and returns whether to report it here.

    It is not reported if it is only about another process that reports its own, or if another process reports the
    very same text.
    """
    is_lost = isinstance(error, ProcessLost)
    if is_lost and not procs.is_main and _failure_of_another(procs):
        return False
    assert procs._store is not None
    text = f"{type(error).__name__}: {error}"
    try:
        if not is_lost:
            procs._store.set(f"failed/{procs.rank}", text)
        return bool(procs._store.add(f"reported/{sha256(text.encode()).hexdigest()}", 1) == 1)
    except RuntimeError:  # the process that hosts the store is gone
        return True
