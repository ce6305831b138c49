"""One job of a sweep, in whatever process the launcher runs it: its record, its failure, its place in a group."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing import current_process, get_context, parent_process
from pathlib import Path
from threading import Thread

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from panollava.logs import label_console
from panollava.sweep_folder import JobRecord, JobStatus, read_job, read_start, write_job

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


MENDABLE = (ValueError, OSError)
"""Failures whose message says enough; others come with a traceback."""


Load = Callable[[], None]


def run_job(function: Callable[[DictConfig], None], cfg: DictConfig, load: Load | None = None) -> None:
    """Runs a job and records how it went; a failure is told, kept and passed over, for the sake of the other jobs.

    Args:
        function: the application.
        cfg: the job's config.
        load: imports what it needs; several jobs that one process hands on to others then need no more time for that.
    """
    _join_cluster()
    sweep = Path(HydraConfig.get().sweep.dir)
    name = Path(HydraConfig.get().runtime.output_dir).relative_to(sweep.resolve()).as_posix()
    start, before = read_start(sweep), read_job(sweep / name)
    if start is not None and before is not None and before.start == start.id and before.swept != swept_values():
        raise ValueError(
            f"{sweep / name} is the folder of two jobs of this sweep ({before.swept} and {swept_values()}). Leave "
            "hydra.sweep.subdir and hydra.job.config.override_dirname as they are."
        )
    if not is_alone():
        label_console(name)
    _record(sweep, name, "running")
    work = partial(_recorded, function, cfg, sweep, name)
    if not IS_POSSIBLE or _pool_process() is None:
        work()
        return
    # A process that has as much as asked CUDA's runtime for GPUs, as libraries do on import, cannot be forked for one.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if load is not None:
        load()
    status = run_apart(work)
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status:
        _record(sweep, name, "failed", how_it_ended(status))
        sys.stderr.write(f"\nJob {name} failed. {how_it_ended(status)}\n")


def _recorded(function: Callable[[DictConfig], None], cfg: DictConfig, sweep: Path, name: str) -> None:
    try:
        function(cfg)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        _record(sweep, name, "failed", message)
        is_clear = isinstance(error, MENDABLE) and os.environ.get("HYDRA_FULL_ERROR") != "1"
        sys.stderr.write(
            f"\nJob {name} failed. {message}\n" if is_clear else f"\nJob {name}:\n{traceback.format_exc()}\n"
        )
    except KeyboardInterrupt:
        _record(sweep, name, "interrupted")
        raise
    else:
        _record(sweep, name, "finished")


def swept_values() -> dict[str, str]:
    """The job's values of the keys that its sweep varies, by short name; empty outside of a sweep."""
    if not in_sweep():
        return {}
    hydra = HydraConfig.get()
    constant = set(hydra.job.config.override_dirname.exclude_keys)
    pairs = [override.lstrip("+~").partition("=") for override in hydra.overrides.task]
    return {key.removeprefix("model/"): value for key, _, value in pairs if key not in constant}


def in_sweep() -> bool:
    """Whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def is_alone() -> bool:
    """Whether no other job of the sweep runs beside this one."""
    return not in_sweep() or "basic_launcher" in HydraConfig.get().launcher._target_


def _pool_process() -> re.Match[str] | None:
    """Number of this process where it is one of a launcher's pool, all of which end when one is ended from outside.

    Source: joblib's loky names its workers ``LokyProcess-<number>``, from 1.
    """
    from multiprocessing import current_process

    return re.fullmatch(r"LokyProcess-(\d+)(?::\d+)?", current_process().name)


def gpu_beside_others() -> int:
    """The GPU for this process where a launcher runs several jobs on this machine: each worker has one, by turns."""
    import torch

    found = _pool_process()
    return (int(found[1]) - 1) % max(1, torch.cuda.device_count()) if found and in_sweep() else 0


def _record(sweep: Path, name: str, status: JobStatus, error: str = "") -> None:
    start = read_start(sweep)
    if os.environ.get("RANK", "0") == "0" and start is not None:
        write_job(sweep, JobRecord(name, start.id, status, swept_values(), error))


def _join_cluster() -> None:
    """Tells torch of the other processes of this job where submitit started several, as torchrun would."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
