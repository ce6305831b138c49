"""Ctrl-C and the signals of launchers and schedulers: the step in progress is finished and saved."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

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
