"""What a job of a sweep does before its work."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import current_process
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from panollava.config import job
from panollava.config.job import _claim_slot, gpu_beside_others, name_cluster_job


def test_a_job_of_slurm_is_named_by_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    name_cluster_job("sweep/resampler-mlp_seed-0")  # outside of SLURM
    assert not (tmp_path / "asked").exists()
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    name_cluster_job("sweep/resampler-mlp_seed-0")  # the job in which a sweep was started keeps its name
    assert not (tmp_path / "asked").exists()
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    name_cluster_job("sweep/resampler-mlp_seed-0")
    monkeypatch.setenv("SLURM_PROCID", "1")  # one process of the job names it
    name_cluster_job("sweep/resampler-mlp_seed-1")
    assert (tmp_path / "asked").read_text() == "update JobId=4711 Name=sweep/resampler-mlp_seed-0\n"


def test_a_missing_program_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    name_cluster_job("sweep/resampler-mlp_seed-0")


HOLD = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from panollava.config.job import _claim_slot
held = ExitStack()
print(_claim_slot([Path(one) for one in sys.argv[1:]], held), flush=True)
time.sleep(100)
"""


def test_jobs_that_run_at_once_have_slots_of_their_own(tmp_path: Path) -> None:
    first, second, third = ExitStack(), ExitStack(), ExitStack()
    folders = [tmp_path / str(number) for number in range(4)]
    assert [_claim_slot(folders, one) for one in (first, second)] == [0, 1]
    first.close()  # a job has ended while the other runs
    assert _claim_slot(folders, third) == 0
    with subprocess.Popen([sys.executable, "-c", HOLD, *folders], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "2\n"
        assert _claim_slot(folders, first) == 3
        other.send_signal(signal.SIGKILL)
    assert _claim_slot(folders, first) == 2  # the slot of a process that was killed
    assert [_claim_slot(folders, first) for _ in range(5)] == [0, 1, 2, 3, 0]  # as many jobs on each
    for one in (first, second, third):
        one.close()


def test_a_worker_takes_a_gpu_by_its_slot_and_not_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hydra = SimpleNamespace(mode=RunMode.MULTIRUN, sweep=SimpleNamespace(dir=str(tmp_path / "sweep")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with ExitStack() as jobs:
        assert gpu_beside_others(jobs) == 0  # no worker of a pool
        found = []
        for number in (1, 3, 5):
            monkeypatch.setattr(current_process(), "name", f"LokyProcess-{number}")
            found.append(gpu_beside_others(jobs))
        assert found == [0, 1, 0]
        hydra.sweep.dir = str(tmp_path / "other")  # another sweep on the same machine
        assert [gpu_beside_others(jobs), gpu_beside_others(jobs)] == [1, 0]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")  # of which the first has no job yet
        assert [gpu_beside_others(jobs), gpu_beside_others(jobs)] == [0, 0]


def ends_with(error: BaseException, cause: Exception | None = None) -> Callable[[object], None]:
    def work(_cfg: object) -> None:
        raise error from cause

    return work


@pytest.mark.parametrize(
    ("error", "cause", "recorded"),
    [
        (SystemExit(-1), None, ("interrupted", "")),  # submitit's
        (SystemExit(1), ValueError("no data"), ("failed", "no data")),
        (KeyboardInterrupt(), None, ("interrupted", "")),
    ],
    ids=["requeued", "reported by another process", "Ctrl-C"],
)
def test_a_job_that_ends_by_an_exit_is_recorded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    cause: Exception | None,
    recorded: tuple[str, str],
) -> None:
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(job, "_record", lambda _sweep, _name, *values: found.append(values))
    with pytest.raises(type(error)):
        job._recorded(ends_with(error, cause), OmegaConf.create(), tmp_path, "job")
    assert found == [recorded]
