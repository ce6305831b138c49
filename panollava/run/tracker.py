"""The tracker of a run: the main one, with additional ones beside it, below the run that it is about."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from panollava.checkpoint import read_state
from panollava.run_folder import STAGES
from panollava.sweep_folder import job_name
from panollava.tracking.additional import AdditionalOptions, CompositeTracker, Job, RecordedRun, additional_trackers
from panollava.tracking.mlflow_tracker import MlflowTracker
from panollava.tracking.tracker import NullTracker, Tracker

WAIT_SECONDS = 15.0  # of additional trackers, where the section is that of tracking=none


def open_tracker(
    section: Mapping[str, Any],
    *,
    run_name: str,
    outbox: Path,
    run_id: str | None = None,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    continues: bool = False,
    job: Job = "train",
    about: Sequence[Path] = (),
) -> Tracker:
    """The tracker of a ``tracking`` section.

    Args:
        run_name: where the section gives none. A job of a sweep has its own: the section's is the sweep's.
        outbox: folder for what a tracking server does not take at once; of a training, the folder of its run.
        run_id: the tracker's run to continue.
        parent_run_id: the tracker's run of the sweep that this is a job of.
        continues: whether additional trackers continue their last run as well.
        job: what the run does.
        about: checkpoints that it evaluates, compares or explains; the run is a child of the trainings that made them.
    """
    options = {key: value for key, value in section.items() if key not in ("type", "also", "wandb_project")}
    name = section["run_name"] or run_name
    main: Tracker = NullTracker()
    if section["type"] != "none":
        options["run_name"] = run_name if parent_run_id else name
        trained = [str(one) for path in about if (one := read_state(path).get("tracking_run"))]
        main = MlflowTracker(
            **options, run_id=run_id, parent_run_id=parent_run_id, about=trained, tags=tags, outbox=outbox
        )
    also = AdditionalOptions.of(section)
    if not also.also:
        return main
    recorded = _recorded(job, about, outbox, name, continues=continues)
    wait_seconds = section.get("wait_seconds", WAIT_SECONDS)
    others = additional_trackers(
        also, recorded, wait_seconds=wait_seconds, system_metrics=section.get("system_metrics", False)
    )
    return CompositeTracker(main, others, tags or {})


def _recorded(job: Job, about: Sequence[Path], outbox: Path, name: str, *, continues: bool) -> RecordedRun:
    roots = [path.parents[2] for path in about if len(path.parents) > 2 and (path.parents[2] / STAGES).is_file()]
    if job == "train":
        swept = job_name(outbox)
        group, _, name_in_sweep = (swept or outbox.name).partition("/")
        return RecordedRun(outbox, name_in_sweep or name, group, job, continues)
    if not roots:
        return RecordedRun(outbox, name, outbox.resolve().name, job)
    group = (job_name(roots[0]) or roots[0].resolve().name).partition("/")[0]
    # A comparison has a folder of its own, as it is about several runs.
    return RecordedRun(roots[0] if len(about) == 1 else outbox, name, group, job)
