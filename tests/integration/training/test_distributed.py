"""What the processes of a run ask each other, and what is said when one of them is gone."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import Ended, run_ranks, succeed

from panollava.store.identity import SETTLED_NS, FileIdentity
from panollava.training.distributed import DistributedContext, init_distributed


def asked() -> dict[str, Any]:
    """Everything that can be asked, by each process with values of its own."""
    with init_distributed() as procs:
        rank = procs.rank
        text = ["", "ärger 파노라마 \n", "x"][rank]
        answers = {
            "place": (rank, procs.world_size, procs.local_rank, procs.is_main),
            "sum": procs.sum({"b": 10.0**rank, "a": 0.5, "nan": float("nan") if rank else 1.0}),
            "max": procs.max(-1.5 * rank - 1),
            "any": [procs.any(rank == 1), procs.any(False), procs.any(True)],
            "gather": torch.stack(procs.gather(torch.tensor([rank, 7], dtype=torch.uint8))).tolist(),
            "texts": procs.texts(text),
            "nothing": procs.texts(""),
        }
        procs.barrier()
        return answers


def test_every_process_gets_the_same_answers(tmp_path: Path) -> None:
    answers = succeed(asked, tmp_path, count=3)
    assert [one.pop("place") for one in answers] == [(0, 3, 0, True), (1, 3, 1, False), (2, 3, 2, False)]
    for one in answers:
        assert one["sum"].pop("nan") != one["sum"].get("nan")  # not a number
        assert one == {
            "sum": {"a": 1.5, "b": 111.0},
            "max": -1.0,
            "any": [True, False, True],
            "gather": [[0, 7], [1, 7], [2, 7]],
            "texts": ["", "ärger 파노라마 \n", "x"],
            "nothing": ["", "", ""],
        }


def test_a_process_by_itself_answers_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with init_distributed() as procs:
        assert procs == DistributedContext()
        assert procs.sum({"a": 2.0}) == {"a": 2.0}
        assert (procs.max(3.0), procs.any(True), procs.any(False)) == (3.0, True, False)
        assert procs.texts("x") == ["x"]
        procs.barrier()


SLOW_S = 0.25
"""To read a file of a slow disk, which reads one at a time."""


def identified(folder: Path) -> tuple[int, list[str]]:
    """How many files this process reads of a slow disk, and the digests that the first one has then."""
    read, disk, reading = FileIdentity._read, threading.Lock(), []

    def slowly(self: FileIdentity, path: str) -> tuple[list[int], str]:
        with disk:
            time.sleep(SLOW_S)
            reading.append(path)
        return read(self, path)

    FileIdentity._read = slowly  # type: ignore[method-assign]  # a process of the test's own
    files, known = sorted(folder.glob("*.png")), FileIdentity(None)
    with init_distributed(timeout_s=len(files) * SLOW_S * 0.75) as procs:
        known.identify_together(files, procs.rank, procs.world_size, procs.texts)
        digests = list(known.identify_all(files).values()) if procs.is_main else []
        procs.barrier()
        return len(reading), digests


def test_pictures_of_a_slow_disk_are_read_while_no_process_waits(tmp_path: Path) -> None:
    contents = [str(number).encode() for number in range(12)]
    for number, content in enumerate(contents):
        path = tmp_path / f"{number:02d}.png"
        path.write_bytes(content)
        os.utime(path, (1e9, 1e9))
    time.sleep(SETTLED_NS / 1e9)
    first, second = succeed(partial(identified, tmp_path), tmp_path / "ranks")
    assert (first[0], second[0]) == (6, 6)
    assert first[1] == [hashlib.sha256(content).hexdigest() for content in contents]


def test_processes_that_do_not_find_each_other_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> str:
        with pytest.raises((ConnectionError, ValueError)) as refused, init_distributed(device="cpu", timeout_s=1):
            pass
        return str(refused.value)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        place = {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in place.items():
            monkeypatch.setenv(name, str(value))
        assert re.match(f"Port {port} is in use .*--master-port", said())
    assert re.match(f"Process 0 of 2 has waited 1 s at 127.0.0.1:{port}, .*trainer.process_timeout_s", said())
    monkeypatch.setenv("RANK", "1")
    assert re.match("Process 1 of 2 has waited 1 s", said())
    monkeypatch.setenv("RANK", "2")
    assert re.match("RANK='2' in the environment: 0 to 1 is allowed", said())
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert re.match("WORLD_SIZE='two' in the environment", said())


def test_variables_that_do_not_belong_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match=r"WORLD_SIZE=2, but LOCAL_RANK.*torchrun"), init_distributed():
        pass
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with (
        pytest.raises(ValueError, match=r"device=cuda:1 names one GPU.*device=cuda\."),
        init_distributed(device="cuda:1"),
    ):
        pass
    with pytest.raises(ValueError, match=r"trainer\.device=mps.*one process"), init_distributed(device="mps"):
        pass


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stuck() -> None:
    time.sleep(60)


def broken() -> None:
    raise ValueError("scene 3 is damaged")


def exhausted() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def disturbed(rank: int, what: Callable[[], None], everyone: bool = False) -> Callable[[], None]:
    """Work that something happens to in one process, or in all, while the others wait for it."""

    def work() -> None:
        with init_distributed(timeout_s=2.0) as procs:
            procs.barrier()
            if everyone or procs.rank == rank:
                what()
            procs.sum({"a": 1.0})

    return work


def told(ended: list[Ended]) -> list[str]:
    """Last line of what each process said."""
    return [one.errors.strip().rpartition("\n")[2] for one in ended]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_others_with_a_message(tmp_path: Path, rank: int) -> None:
    ended = run_ranks(disturbed(rank, killed), tmp_path)
    assert [one.code for one in ended] == ([-9, 1] if rank == 0 else [1, -9])
    # Whichever comes first: the broken connection, or the launcher's SIGTERM.
    assert re.search(
        r"ProcessLost: (Another of the 2 processes ended without an error message|The launcher ended)",
        told(ended)[1 - rank],
    )


def test_a_process_that_does_not_answer_ends_the_run_in_time(tmp_path: Path) -> None:
    ended = run_ranks(disturbed(0, stuck), tmp_path)
    assert [one.code for one in ended] == [1, 1]
    assert "ProcessLost: Another of the 2 processes did not answer in time" in told(ended)[1]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("how", "words"), [(broken, "ValueError: scene 3 is damaged"), (exhausted, "out of memory")])
def test_an_error_is_told_by_the_process_that_has_it_and_by_the_first(
    tmp_path: Path, rank: int, how: Callable[[], None], words: str
) -> None:
    ended = run_ranks(disturbed(rank, how), tmp_path)
    assert [one.code for one in ended] == [1, 1]
    assert words in told(ended)[rank]
    if rank == 0:
        assert told(ended)[1] == ""
    else:
        assert f"ProcessLost: Process 1 stopped the run: {how_text(how)}" in told(ended)[0]


def test_an_error_that_all_have_is_told_once(tmp_path: Path) -> None:
    ended = run_ranks(disturbed(0, broken, everyone=True), tmp_path, count=3)
    assert [one.code for one in ended] == [1, 1, 1]
    assert sorted(told(ended)) == ["", "", "ValueError: scene 3 is damaged"]


def how_text(how: Callable[[], None]) -> str:
    """Start of the message."""
    return "ValueError: scene" if how is broken else "OutOfMemoryError: CUDA"
