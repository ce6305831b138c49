"""One job of a sweep: it runs in a process of its own where needed, and its outcome is recorded."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import current_process, get_context, parent_process
from pathlib import Path
from threading import Thread

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from panollava.logs import label_console
from panollava.sweep_folder import JobRecord, JobStatus, read_job, read_start, write_job

CAN_FORK = sys.platform == "linux"
"""Elsewhere a process that has imported torch cannot be forked safely, or not at all. On Linux it can, as long as it
has only imported: no threads, no connections, no GPU."""

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

MENDABLE = (ValueError, OSError)
"""Failures whose message is enough; others come with a traceback."""

Load = Callable[[], None]
Function = Callable[[DictConfig], float | None]
"""A command; what it returns is the score by which a sweeper chooses its next jobs, None where there is none."""


def run_job(function: Function, cfg: DictConfig, load: Load | None = None) -> float | None:
    """Runs a job and records its outcome. Failures are logged; the sweep continues.

    ``load`` imports what every job needs; a worker that runs several jobs does so once. Returns the job's score, None
    where it failed or has none.
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
    name_cluster_job(f"{sweep.name}/{name}")
    if "basic_launcher" not in HydraConfig.get().launcher._target_:
        label_console(name)  # several jobs at once
    _record(sweep, name, "running")
    work = partial(_recorded, function, cfg, sweep, name)
    if not CAN_FORK or not _in_pool():
        work()
        return _score(sweep / name)
    # All workers of a pool end when one is killed: a job's subprocess can be killed alone. A process in which a library
    # queried CUDA's runtime for GPUs, as some do on import, cannot be forked for one; NVML is another way to query.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if load is not None:
        load()
    status = run_in_subprocess(work)
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status:
        _record(sweep, name, "failed", describe_exit(status))
        sys.stderr.write(f"\nJob {name} failed. {describe_exit(status)}\n")
    return _score(sweep / name)


def _score(folder: Path) -> float | None:
    """The score that a job has recorded: it may have run in another process."""
    record = read_job(folder)
    return None if record is None or record.status != "finished" else record.score


def _recorded(function: Function, cfg: DictConfig, sweep: Path, name: str) -> None:
    try:
        score = function(cfg)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        _record(sweep, name, "failed", message)
        is_clear = isinstance(error, MENDABLE) and os.environ.get("HYDRA_FULL_ERROR") != "1"
        sys.stderr.write(f"\nJob {name}" + (f" failed. {message}\n" if is_clear else f":\n{traceback.format_exc()}\n"))
    except (KeyboardInterrupt, SystemExit) as error:
        # SystemExit is submitit's once the job is back in the queue, or ours for an error that another process reports.
        reported = error.__cause__ if isinstance(error, SystemExit) else None
        _record(sweep, name, "failed" if reported else "interrupted", f"{reported}" if reported else "")
        raise
    else:
        _record(sweep, name, "finished", score=score)


def _record(sweep: Path, name: str, status: JobStatus, error: str = "", score: float | None = None) -> None:
    start = read_start(sweep)
    if os.environ.get("RANK", "0") == "0" and start is not None:
        write_job(sweep, JobRecord(name, start.id, status, swept_values(), error, score))


def _join_cluster() -> None:
    """Sets torchrun's variables where submitit started several processes for this job."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def name_cluster_job(name: str) -> None:
    """Names this SLURM job, which its array named like all others; ``squeue`` then shows the values of each job."""
    job = os.environ.get("SLURM_JOB_ID")
    is_launched = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"  # else it is the job in which the sweep was started
    if job is None or not is_launched or os.environ.get("SLURM_PROCID", "0") != "0":
        return
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # the name is for people alone
        subprocess.run(["scontrol", "update", f"JobId={job}", f"Name={name}"], capture_output=True, timeout=10)


def cluster_job() -> tuple[str, bool]:
    """Id of the SLURM job that this process is part of, empty outside of one, and whether SLURM has requeued it.

    Source: sbatch(1), ``SLURM_RESTART_COUNT``.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    return job, bool(job) and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def this_start() -> tuple[str, bool]:
    """Id of this start of a run, and whether an earlier process may have begun it: a job can be started again."""
    start = read_start(Path(HydraConfig.get().sweep.dir)) if in_sweep() else None
    return cluster_job() if start is None else (start.id, True)


def in_sweep() -> bool:
    """Whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def swept_values() -> dict[str, str]:
    """The job's values of the keys that its sweep varies, by short name; empty outside of a sweep."""
    if not in_sweep():
        return {}
    hydra = HydraConfig.get()
    constant = set(hydra.job.config.override_dirname.exclude_keys)
    pairs = [override.lstrip("+~").partition("=") for override in hydra.overrides.task]
    return {key.removeprefix("model/"): value for key, _, value in pairs if key not in constant}


def gpu_beside_others(claims: contextlib.ExitStack) -> int:
    """Index of this process's GPU: the jobs that launchers run at once take this machine's GPUs in turn.

    A job claims the lowest slot that is free on any GPU, also beside other sweeps of this user, until ``claims`` is
    closed or its process ends. The numbers of a launcher's workers do not tell: a worker that ends leaves its successor
    a higher one.
    """
    import torch

    gpus = torch.cuda.device_count()
    if gpus < 2 or not _in_pool() or not in_sweep():
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[:gpus]
    names = [name.strip() for name in visible] if len(visible) == gpus else [str(at) for at in range(gpus)]
    # Jobs of a cluster have GPUs of their own, which may have the same numbers.
    user = f"panollava-{os.getuid() if hasattr(os, 'getuid') else 'slots'}"
    folder = Path(tempfile.gettempdir()) / user / f"gpus-{cluster_job()[0]}"
    return _claim_slot([folder / name for name in names], claims)


def _claim_slot(folders: Sequence[Path], claims: contextlib.ExitStack) -> int:
    """Place of the first folder that has a free slot: a lock that the system releases when its process ends.

    Each has one free slot before one has a second.
    """
    number = 0
    while True:
        for place, folder in enumerate(folders):
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(Timeout):
                claims.enter_context(FileLock(folder / f"{number}.lock").acquire(timeout=0))
                return place
        number += 1


def _in_pool() -> bool:
    """Whether this process is a worker of a launcher's pool.

    Source: joblib's loky names its workers ``LokyProcess-<number>``.
    """
    return re.fullmatch(r"LokyProcess-(\d+)(?::\d+)?", current_process().name) is not None


def run_in_subprocess(work: Callable[[], None]) -> int:
    """Calls a function in a forked process, which is killed if this one ends.

    Returns:
        Its exit status: 0, ``INTERRUPTED`` after a KeyboardInterrupt, minus the number of the signal that ended it.
    """
    # With the name of this process, which identifies the launcher's worker.
    process = get_context("fork").Process(target=_run_bound, args=(work,), name=current_process().name)
    process.start()
    while process.exitcode is None:
        with contextlib.suppress(KeyboardInterrupt):  # the other process has got it too, and ends in order
            process.join()
    return process.exitcode


def _run_bound(work: Callable[[], None]) -> None:
    def end_with_parent() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGKILL)

    Thread(target=end_with_parent, daemon=True).start()
    try:
        work()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def describe_exit(status: int) -> str:
    """An exit status other than 0 in words."""
    if status > 0:
        return f"Its process ended with status {status}."
    name = signal.Signals(-status).name
    why = ", as the system does where memory runs out: lower hydra.launcher.n_jobs or the batch size"
    return f"Its process was ended by {name}{why if name == 'SIGKILL' else ''}."
