"""Opens the tracker that a config names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panollava.logs import LOG
from panollava.tracking.delivery import deliver
from panollava.tracking.mlflow_tracker import MlflowTracker
from panollava.tracking.outbox import OUTBOX
from panollava.tracking.tracker import NullTracker, Tracker


def open_tracker(
    section: Mapping[str, Any],
    *,
    run_name: str,
    outbox: Path,
    run_id: str | None = None,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Tracker:
    """The tracker of a ``tracking`` section.

    Args:
        section: plain ``tracking`` section.
        run_name: where the section gives none; that of a sweep's job stands, since the section's is the sweep's.
        outbox: folder for what a tracking server does not take at once.
        run_id: run to go on with.
        parent_run_id: run of the sweep that this is a job of.
        tags: of the run.
    """
    if section["type"] == "none":
        return NullTracker()
    options = {key: value for key, value in section.items() if key not in ("type", "run_name")}
    return MlflowTracker(
        **options,
        run_name=run_name if parent_run_id else section["run_name"] or run_name,
        run_id=run_id,
        parent_run_id=parent_run_id,
        tags=tags,
        outbox=outbox,
    )


def send_left(folder: Path) -> None:
    """Sends what earlier starts of a finished run left in its outbox, if there is one."""
    if not (folder / OUTBOX).is_dir():
        return
    waiting, left = deliver(folder)
    LOG.info("%d of %d records that waited in %s are sent.", waiting - left, waiting, folder / OUTBOX)
