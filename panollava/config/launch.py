"""What a launcher does beside its jobs: its own failures, each one clear message, and the arrays that it submits."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException

from panollava.sweep_folder import read_start, write_start

_BROKEN = (
    "A process of the launcher was ended from outside, and with it the jobs of the others. The system ends processes "
    "where memory runs out: lower hydra.launcher.n_jobs or the batch size."
)


def watch(target: str, folder: Path) -> None:
    """Makes the failures of a launcher such as Hydra tells in a line, and keeps the arrays that it submits on record.

    Args:
        target: the launcher's class, as ``hydra.launcher._target_`` has it.
        folder: of the sweep.
    """
    launcher: Any = Plugins.instance().class_name_to_class.get(target)
    if launcher is None:
        return
    launch = getattr(launcher.launch, "__wrapped__", launcher.launch)
    launcher.launch = _watched(launch, folder if target.endswith(".SlurmLauncher") else None)


def queued(arrays: Sequence[str]) -> list[str]:
    """Those of some job arrays of which jobs wait or run, where the cluster can be asked."""
    if not arrays or shutil.which("squeue") is None:
        return []
    found = []
    for array in arrays:  # one by one: of several, one that the cluster has forgotten would hide the others
        asked = subprocess.run(["squeue", "-h", "-j", array], capture_output=True, text=True, check=False)
        if asked.returncode == 0 and asked.stdout.strip():
            found.append(array)
    return found


def _watched(launch: Callable[..., Any], folder: Path | None) -> Callable[..., Any]:
    @functools.wraps(launch)
    def watched(*arguments: Any, **options: Any) -> Any:
        try:
            with _on_record(folder) if folder is not None else nullcontext():
                return launch(*arguments, **options)
        except BrokenProcessPool as error:
            raise CompactHydraException(f"\n{_BROKEN}") from error
        except RuntimeError as error:  # submitit's: no cluster is there, or a job left no result
            raise CompactHydraException(f"\n{type(error).__name__}: {error}") from error

    return watched


@contextmanager
def _on_record(folder: Path) -> Iterator[None]:
    """Records each job array as it is accepted: it runs whatever becomes of this process, which only waits for it."""
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
