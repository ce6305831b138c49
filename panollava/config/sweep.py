"""A sweep as a whole: Hydra's callback opens it, its launcher is watched, and its end is reported and tracked."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from panollava.config.job import cluster_job
from panollava.config.sweep_arguments import OPTUNA, RECORD, register_resolvers
from panollava.disk import check_writable, missing_folders, take_away
from panollava.logs import counted
from panollava.sweep_folder import JOB, SWEEP, JobRecord, Start, read_jobs, read_start, write_start
from panollava.tracking.location import absolute_uri, experiment_name, is_server
from panollava.tracking.runs import discard_run, end_parent, start_parent
from panollava.tracking.tracker import Status

Report = Callable[[Path], Sequence[Path]]
"""Writes the report of a sweep's folder and returns the files."""
Announce = Callable[[DictConfig], Sequence[str]]
"""What to say of a sweep before its first job, by its config without swept values."""

NO_BARS = "TQDM_DISABLE"

# A launcher's processes import this callback before they compose a job's config, and nothing else of ours.
register_resolvers()


class SweepParent(Callback):
    """Hydra's callback that opens the sweep before any job starts, so that jobs need not race to do so."""

    current: ClassVar[Sweep | None] = None
    announce: ClassVar[Announce | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Locks the sweep's folder and makes the store and the parent run."""
        try:
            SweepParent.current = _open(config)
        except (ValueError, OSError) as error:  # Hydra turns exceptions of a callback into warnings, and continues
            sys.exit(f"\n{type(error).__name__}: {error}")
        if SweepParent.announce is not None:
            sys.stderr.write("".join(f"{line}\n" for line in SweepParent.announce(config)))
        launcher = config.hydra.launcher._target_
        if "basic_launcher" not in launcher:
            os.environ[NO_BARS] = "1"  # the bars of several jobs would overwrite each other
            watch_launcher(launcher, Path(config.hydra.sweep.dir))
        if config.hydra.sweeper._target_ == OPTUNA:
            watch_study()


def _open(config: DictConfig) -> Sweep:
    folder = Path(config.hydra.sweep.dir)
    uri = absolute_uri(config.tracking.uri) if config.tracking.type == "mlflow" and not config.dry_run else None
    check_writable(folder, "output_dir")  # before anything is made
    made = missing_folders(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{folder} is in use by another start of this sweep. Wait for it, stop it, or give this one a name of its "
            "own with experiment_name=<name>."
        ) from None
    before, (job, is_requeued), wait_seconds = read_start(folder), cluster_job(), 0.0
    goes_on = before is not None and is_requeued and before.id.startswith(f"{job}-")
    start = Start(before.id if before is not None and goes_on else f"{job}-{uuid.uuid4().hex}")
    command = "the same command without overwrite=true" if config.overwrite else "the same command"
    if before is not None and (arrays := queued(before.arrays)):
        lock.release()
        raise ValueError(
            f"{folder}: of an earlier start, {_still_queued(arrays)} When it ended, run {command} to finish "
            "the sweep and make the table."
        )
    if uri is not None:
        wait_seconds = config.tracking.wait_seconds
        if "SlurmLauncher" in config.hydra.launcher._target_ and not is_server(uri):
            sys.stderr.write(
                f"\nWarning: tracking.uri={uri} is a file, and jobs on several machines will write to it. On a network "
                "disk SQLite does not lock it reliably, and records may be lost or damaged. Use a server, "
                "tracking.uri=http://host:5000.\n"
            )
        known = before.run_id if before is not None else None
        name = config.tracking.run_name or folder.name
        experiment = experiment_name(config.tracking.experiment)
        start = Start(start.id, uri, start_parent(uri, experiment, name, folder, known))
    write_start(folder, start)
    OmegaConf.save(config, folder / RECORD)  # of Hydra's sweepers the basic one alone does so
    return Sweep(folder, start, lock, made if folder in made else (), not config.dry_run, wait_seconds, command)


@dataclass
class Sweep:
    """A running sweep.

    Attributes:
        start: this start of the sweep.
        lock: prevents a second start of the same sweep.
        made: folders that this start made for it, the innermost first; empty if it was started before.
        is_kept: False for a dry run.
        wait_seconds: how long to wait at the end for a tracking server that does not answer.
        command: the command that resumes it, in words.
    """

    folder: Path
    start: Start
    lock: FileLock
    made: Sequence[Path]
    is_kept: bool
    wait_seconds: float = 0.0
    command: str = "the same command"

    def end(self, report: Report | None, *, is_whole: bool) -> bool:
        """Writes the report, ends the parent run and prints how the jobs ended.

        Args:
            report: makes the report of a sweep that is kept.
            is_whole: False if the sweep was stopped before its last job.

        Returns:
            Whether all jobs are finished.
        """
        jobs = [job for job in read_jobs(self.folder) if job.start == self.start.id]
        is_done = is_whole and all(job.status == "finished" for job in jobs)
        arrays = [] if is_whole else queued((read_start(self.folder) or self.start).arrays)
        is_stopped = bool(arrays) or any(job.status == "interrupted" for job in jobs)
        files: Sequence[Path] = ()
        try:
            if report is not None and self.is_kept and any(job.status == "finished" for job in jobs):
                files = report(self.folder)
        finally:
            if self.made and not is_done and not arrays and self._is_empty():
                take_away(self.folder.rglob("*"), self.made)
                if self.start.uri and self.start.run_id:
                    with suppress(OSError):
                        discard_run(self.start.uri, self.start.run_id)
            else:
                self._end_parent("FINISHED" if is_done else "KILLED" if is_stopped else "FAILED", files)
            self.lock.release()
            os.environ.pop(NO_BARS, None)
            sys.stderr.write("\n" + self._summary(jobs, files, arrays, is_whole=is_whole))
        return is_done

    def _is_empty(self) -> bool:
        """Whether jobs left nothing but records of their failure."""
        records = (RECORD, SWEEP, JOB, ".lock")
        return all(path.is_dir() or path.name in records for path in self.folder.rglob("*"))

    def _end_parent(self, status: Status, files: Sequence[Path]) -> None:
        """Ends the parent run. A sweep ends without its store too, since everything is on disk."""
        uri, run_id = self.start.uri, self.start.run_id
        if not uri or not run_id:
            return
        try:
            waiting = end_parent(uri, run_id, status, files, self.folder, wait_seconds=self.wait_seconds)
        except OSError as error:
            sys.stderr.write(f"\nThe sweep's run stays open. {error}\n")
            return
        if waiting:
            sys.stderr.write(
                f"\n{waiting} records of the sweep's run wait in {self.folder} for MLflow at {uri}; send them with: "
                f"python -m panollava.deliver {self.folder}\n"
            )

    def _summary(
        self, jobs: Sequence[JobRecord], files: Sequence[Path], arrays: Sequence[str], *, is_whole: bool
    ) -> str:
        counts = Counter[str](job.status for job in jobs)
        killed = {"running": "killed or still running"}
        numbers = ", ".join(f"{number} {killed.get(status, status)}" for status, number in sorted(counts.items()))
        lines = [f"Sweep {self.folder}: {counted(len(jobs), 'job')} started, {numbers or 'none finished'}."]
        lines += [f"  {job.name} failed: {job.error}" for job in jobs if job.status == "failed"]
        if arrays:
            lines.append(f"Without this process, {_still_queued(arrays)} When it has ended, run {self.command} again.")
        elif not is_whole or counts["finished"] < len(jobs):
            lines.append(f"Run {self.command} to resume what is not finished.")
        if files:
            lines.append(f"Table and pictures: {', '.join(map(str, files))}")
        return "\n".join(lines) + "\n"


def _still_queued(arrays: Sequence[str]) -> str:
    names = ",".join(arrays)
    return f"job array {names} still waits or runs (squeue -j {names}); scancel {' '.join(arrays)} ends it."


def queued(arrays: Sequence[str]) -> list[str]:
    """The job arrays of which jobs wait or run, if the cluster can be queried."""
    if not arrays or shutil.which("squeue") is None:
        return []
    found = []
    for array in arrays:  # one by one: among several, one that the cluster has forgotten would hide the others
        answer = subprocess.run(["squeue", "-h", "-j", array], capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip():
            found.append(array)
    return found


def watch_launcher(target: str, folder: Path) -> None:
    """Makes Hydra report the failures of the launcher ``target`` in one line, and records its job arrays."""
    launcher: Any = Plugins.instance().class_name_to_class.get(target)
    if launcher is None:
        return
    launch = getattr(launcher.launch, "__wrapped__", launcher.launch)
    is_slurm = target.endswith(".SlurmLauncher")

    @functools.wraps(launch)
    def watched(*arguments: Any, **options: Any) -> Any:
        try:
            with _record_arrays(folder) if is_slurm else nullcontext():
                return launch(*arguments, **options)
        except BrokenProcessPool as error:
            raise CompactHydraException(
                "\nA process of the launcher was killed, and its pool ended all the others. The system kills processes "
                "where memory runs out: lower hydra.launcher.n_jobs or the batch size."
            ) from error
        except RuntimeError as error:  # submitit's: there is no cluster, or a job left no result
            raise CompactHydraException(f"\n{type(error).__name__}: {error}") from error

    launcher.launch = watched


def watch_study() -> None:
    """Makes Hydra report in one line that all trials of Optuna failed; why is in the sweep's last lines."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # which Optuna imports, names each of its plugins
    sweeper: Any = Plugins.instance().class_name_to_class[OPTUNA]
    sweep = getattr(sweeper.sweep, "__wrapped__", sweeper.sweep)

    @functools.wraps(sweep)
    def watched(*arguments: Any, **options: Any) -> Any:
        try:
            return sweep(*arguments, **options)
        except ValueError as error:
            raise CompactHydraException(f"\nOptuna: {error}") from error

    sweeper.sweep = watched


@contextmanager
def _record_arrays(folder: Path) -> Iterator[None]:
    """Records each job array when it is submitted: it runs even if this process, which only waits for it, ends."""
    from submitit import AutoExecutor

    submit = AutoExecutor.map_array

    def recorded(*arguments: Any, **options: Any) -> Any:
        jobs = submit(*arguments, **options)
        if (start := read_start(folder)) is not None:
            arrays = dict.fromkeys([*start.arrays, *(job.job_id.partition("_")[0] for job in jobs)])
            write_start(folder, replace(start, arrays=tuple(arrays)))
        return jobs

    AutoExecutor.map_array = recorded  # type: ignore[method-assign]
    try:
        yield
    finally:
        AutoExecutor.map_array = submit  # type: ignore[method-assign]
