"""The folder of a sweep: its parent run, and the status of its jobs.

::

    runs/<sweep>/sweep.json         the last start of the sweep, and the parent run
    runs/<sweep>/<job>/job.json     the job's values of the swept keys, and its status
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from panollava.disk import read_versioned, write_json

FORMAT_VERSION = 1
SWEEP, JOB = "sweep.json", "job.json"

JobStatus = Literal["running", "finished", "failed", "interrupted"]


@dataclass(frozen=True)
class Start:
    """The last start of a sweep."""

    id: str  # distinguishes its jobs from those of earlier starts
    uri: str | None = None  # store of the parent run; None with tracking=none
    run_id: str | None = None
    arrays: Sequence[str] = ()  # job arrays that a cluster has accepted


@dataclass(frozen=True)
class JobRecord:
    """One job."""

    name: str  # its folder below the sweep's
    start: str  # id of the start that it last ran in
    status: JobStatus  # a killed job stays running
    swept: Mapping[str, str] = field(default_factory=dict)  # its values of the swept keys
    error: str = ""  # why it failed
    score: float | None = None  # the measure of its evaluation; None in older records and without one


def write_start(sweep: Path, start: Start) -> None:
    _write(sweep / SWEEP, asdict(start))


def read_start(sweep: Path) -> Start | None:
    """The last start, or None if there was none."""
    values = _read(sweep / SWEEP)
    return None if values is None else Start(**values)


def write_job(sweep: Path, record: JobRecord) -> None:
    _write(sweep / record.name / JOB, asdict(record))


def read_jobs(sweep: Path) -> list[JobRecord]:
    """Every job that was ever started, sorted by name."""
    return [job for path in sorted(sweep.rglob(JOB)) if (job := read_job(path.parent)) is not None]


def read_job(folder: Path) -> JobRecord | None:
    """The job of a folder, or None if it has no record."""
    values = _read(folder / JOB)
    return None if values is None else JobRecord(**values)


def job_name(folder: Path) -> str | None:
    """``<sweep>/<job>`` if an experiment's folder is that of a job, else None."""
    job = read_job(folder)
    if job is None:
        return None
    sweep = folder.resolve().parents[len(Path(job.name).parts) - 1]
    return f"{sweep.name}/{job.name}"


def _write(path: Path, values: Mapping[str, Any]) -> None:
    write_json(path, {"format_version": FORMAT_VERSION, **values})


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    values = read_versioned(path, FORMAT_VERSION, "Remove the file to continue.")
    del values["format_version"]
    return values
