"""Processes of one run, forked from this one: what torchrun starts, without the seconds that imports take."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

GRACE_S = 10.0
"""Between the two signals; torchrun waits for thirty seconds."""


@dataclass
class Ended:
    """How a process went.

    Attributes:
        code: exit status, minus the signal that ended it.
        result: what its work returned, None where it failed.
        errors: what it wrote to standard error.
    """

    code: int | None
    result: Any
    errors: str


def run_ranks(work: Callable[[], Any], folder: Path, count: int = 2, timeout_s: float = 120.0) -> list[Ended]:
    """Calls ``work`` in so many processes with the variables that torchrun sets, and waits for their end.

    As under torchrun, a failure of one is followed by SIGTERM for the others, and that, later, by SIGKILL.

    Args:
        work: what each of them does.
        folder: gets their output.
        count: number of processes.
        timeout_s: after which they are ended, and the test fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("fork")
    group = [context.Process(target=_rank, args=(work, folder, rank, count, store.port)) for rank in range(count)]
    for process in group:
        process.start()
    until, told = time.monotonic() + timeout_s, False
    try:
        while any(process.exitcode is None for process in group):
            assert time.monotonic() < until, "\n".join(_errors(folder, count))
            if any(process.exitcode for process in group) and not told:
                until, told = min(until, time.monotonic() + GRACE_S), True
                for process in group:
                    process.terminate()
            time.sleep(0.02)
    finally:
        for process in group:
            process.kill()
            process.join()
    results = [folder / f"result{rank}" for rank in range(count)]
    return [
        Ended(process.exitcode, pickle.loads(path.read_bytes()) if path.is_file() else None, errors)
        for process, path, errors in zip(group, results, _errors(folder, count), strict=True)
    ]


def succeed(work: Callable[[], Any], folder: Path, count: int = 2) -> list[Any]:
    """Results of ``run_ranks``, all of which must have gone well."""
    ended = run_ranks(work, folder, count)
    assert [one.code for one in ended] == [0] * count, "\n".join(one.errors for one in ended)
    return [one.result for one in ended]


def _rank(work: Callable[[], Any], folder: Path, rank: int, count: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    # sys.stderr may be pytest's; what a process says must not get lost when it is killed.
    sys.stderr = open(folder / f"errors{rank}", "w", buffering=1, encoding="utf-8")  # noqa: SIM115
    code = 1
    try:
        result = work()
        (folder / f"result{rank}").write_bytes(pickle.dumps(result))
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # nothing of the parent's, such as its temporary folders, is this process's to clean up


def _errors(folder: Path, count: int) -> list[str]:
    return [(folder / f"errors{rank}").read_text("utf-8") for rank in range(count)]
