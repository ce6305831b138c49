"""Hydra's callback that puts the jobs of a sweep under one parent run."""

from __future__ import annotations

import atexit
import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

PARENT_VARIABLE = "PANOLLAVA_PARENT_RUN"
"""Environment variable that tells a job, in this process or another, which run it belongs to."""


class SweepParent(Callback):
    """Opens the parent run before any job starts and ends it after the last one."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Makes the store and the parent; a job that came first would race the others for it."""
        if config.tracking.type != "mlflow" or config.dry_run:
            return
        from panollava.tracking.location import absolute_uri
        from panollava.tracking.sweep import start_parent

        name = config.tracking.run_name or Path(config.hydra.sweep.dir).name
        self._uri = absolute_uri(config.tracking.uri)
        self._run_id = start_parent(self._uri, config.tracking.experiment, name)
        self._failed = False
        os.environ[PARENT_VARIABLE] = self._run_id
        # When a job has failed Hydra raises before it says that the sweep is over.
        atexit.register(self._end, failed=True)

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        """Remembers that a job failed."""
        from hydra.core.utils import JobStatus

        if job_return.status == JobStatus.FAILED:
            self._failed = True

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Ends the parent run: failed, if one of its jobs did."""
        self._end(failed=False)

    def _end(self, *, failed: bool) -> None:
        from panollava.tracking.sweep import end_parent

        if os.environ.pop(PARENT_VARIABLE, None):
            end_parent(self._uri, self._run_id, "FAILED" if failed or self._failed else "FINISHED")
