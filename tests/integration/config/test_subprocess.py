"""Work in a process of its own: how it ends, and that it ends with the one that asked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from panollava.config.job import CAN_FORK, INTERRUPTED, describe_exit, run_in_subprocess

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="forks")

ORPHAN = """
import os, sys, time
from pathlib import Path
from panollava.config.job import run_in_subprocess
def work():
    Path(sys.argv[1]).write_text(f"{os.getpid()}\\n")
    time.sleep(100)
run_in_subprocess(work)
"""


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("work", "status"),
    [
        (lambda: None, 0),
        (interrupted, INTERRUPTED),
        (lambda: sys.exit(3), 3),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), -signal.SIGKILL),
    ],
    ids=["ends", "is interrupted", "exits", "is killed"],
)
def test_the_status_says_describe_exit(work: Callable[[], None], status: int) -> None:
    assert run_in_subprocess(work) == status


def test_a_status_has_words() -> None:
    assert describe_exit(3) == "Its process ended with status 3."
    assert describe_exit(-signal.SIGSEGV) == "Its process was ended by SIGSEGV."
    assert "SIGKILL, as the system does where memory runs out: lower hydra.launcher.n_jobs" in describe_exit(-9)


def test_it_does_not_outlive_its_parent(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN, str(told)])
    end = time.monotonic() + 60
    while not told.is_file() or not told.read_text().endswith("\n"):
        assert time.monotonic() < end
        time.sleep(0.02)
    child = psutil.Process(int(told.read_text()))
    parent.kill()
    parent.wait()
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the work goes on"
        time.sleep(0.02)
