"""The load of the machine while a run goes on, measured by MLflow's own monitors."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

logger = logging.getLogger(__name__)

PREFIX = "system/"
"""Where MLflow's page looks for them."""


class SystemMetrics:
    """A thread that measures processors, memory, disk and network, and NVIDIA's GPUs where ``nvidia-ml-py`` is there.

    Args:
        log: takes named numbers and a step; steps are whole seconds since 1970, so that a resumed run's follow on.
        seconds: between two measurements.
    """

    def __init__(self, log: Callable[[Mapping[str, float], int], None], seconds: float) -> None:
        self._log, self._seconds = log, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system metrics", daemon=True)

    def start(self) -> None:
        """Begins to measure."""
        self._thread.start()

    def stop(self) -> None:
        """Takes a last measurement and ends."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        monitors = _monitors()
        while True:
            over = self._ended.wait(self._seconds)
            for monitor in monitors:
                monitor.collect_metrics()
                values = monitor.aggregate_metrics()
                self._log({f"{PREFIX}{name}": value for name, value in values.items()}, int(time.time()))
                monitor.clear_metrics()
            if over:
                return


def _monitors() -> list[BaseMetricsMonitor]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except (ImportError, RuntimeError) as error:  # no nvidia-ml-py, or no NVIDIA driver
        logger.debug("No GPU is measured: %s", error)
    return monitors
