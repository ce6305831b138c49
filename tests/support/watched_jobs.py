"""A Hydra callback for the jobs of a test: they begin together, the encoder's calls are noted, one job is killed."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from panollava.model.vision import VisionTower
from panollava.tracking.mlflow_tracker import MlflowTracker

PATIENCE_S = 120


class WatchedJobs(Callback):
    """What happens is noted in a folder, a file each.

    Args:
        folder: of the notes.
        jobs: how many begin together.
        killed: number of the job that is killed, when it logs metrics of step 3 for the first time.
    """

    def __init__(self, folder: str, jobs: int, killed: int) -> None:
        self.folder, self.jobs, self.killed = Path(folder), jobs, killed

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Runs in the launcher's process, from which the job's is forked."""
        number = config.hydra.job.num
        self._note(f"begun-{number}")
        end = time.monotonic() + PATIENCE_S
        while len(list(self.folder.glob("begun-*"))) < self.jobs and time.monotonic() < end:
            time.sleep(0.01)
        if not hasattr(VisionTower.forward, "watched"):  # a launcher's process may run several jobs
            self._watch()
        MlflowTracker.number = number  # type: ignore[attr-defined]

    def _watch(self) -> None:
        forward, metrics = VisionTower.forward, MlflowTracker.metrics

        @functools.wraps(forward)  # the digest of the code follows it to what it wraps
        def noted(tower: VisionTower, pixels: torch.Tensor) -> torch.Tensor:
            self._note(f"encoded-{os.getpid()}-{time.monotonic_ns()}")
            return forward(tower, pixels)

        def deadly(tracker: MlflowTracker, values: Mapping[str, float], step: int) -> None:
            is_its_turn = MlflowTracker.number == self.killed and step == 3  # type: ignore[attr-defined]
            if is_its_turn and not (self.folder / "killed").exists():
                self._note("killed")
                os.kill(os.getpid(), signal.SIGKILL)
            metrics(tracker, values, step)

        noted.watched = True  # type: ignore[attr-defined]
        VisionTower.forward = noted  # type: ignore[method-assign]
        MlflowTracker.metrics = deadly  # type: ignore[method-assign]

    def _note(self, name: str) -> None:
        (self.folder / name).touch()
