"""A process of its own for a job that runs beside others: what ends it from outside ends nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import current_process, get_context, parent_process
from threading import Thread

IS_POSSIBLE = sys.platform == "linux"
"""Elsewhere a process that has imported as much as torch cannot be forked safely, or not at all. Here it can, as long
as it has done no more than import: no threads, no connections, no GPU."""

INTERRUPTED = 130


def run_apart(work: Callable[[], None]) -> int:
    """Does something in a forked process, which ends with this one at the latest.

    Args:
        work: what to do.

    Returns:
        Its exit status: 0, ``INTERRUPTED`` after a KeyboardInterrupt, minus the number of the signal that ended it.
    """
    # The name goes along: it says which worker of the launcher this is.
    process = get_context("fork").Process(target=_bound, args=(work,), name=current_process().name)
    process.start()
    while process.exitcode is None:
        with contextlib.suppress(KeyboardInterrupt):  # the other process has got it too, and ends in order
            process.join()
    return process.exitcode


def how_it_ended(status: int) -> str:
    """An exit status other than 0 in words."""
    if status > 0:
        return f"Its process ended with status {status}."
    name = signal.Signals(-status).name
    if name != "SIGKILL":
        return f"Its process was ended by {name}."
    return (
        "Its process was ended by SIGKILL, as the system does where memory runs out: lower hydra.launcher.n_jobs or "
        "the batch size."
    )


def _bound(work: Callable[[], None]) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        work()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)
