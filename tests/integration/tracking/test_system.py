"""The load of the machine, measured beside a run."""

from __future__ import annotations

import time

from panollava.tracking.mlflow_tracker import MlflowTracker


def test_processors_memory_disk_and_network_are_measured_and_stop_with_the_run(client, store_uri, experiment) -> None:
    options = {"uri": store_uri, "experiment": experiment, "system_metrics": True, "system_seconds": 0.05}
    with MlflowTracker(**options) as tracker:
        tracker.metrics({"loss": 1.0}, step=1)
        time.sleep(0.3)
    metrics = client.get_run(tracker.run_id).data.metrics
    measured = {name for name in metrics if name.startswith("system/")}
    assert measured >= {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_percentage",
        "system/disk_usage_percentage",
        "system/network_receive_megabytes",
    }
    assert metrics["loss"] == 1.0
    key = "system/cpu_utilization_percentage"
    before = client.get_metric_history(tracker.run_id, key)
    assert len(before) >= 2
    assert all(0 <= one.value <= 100 for one in before)
    time.sleep(0.15)
    assert len(client.get_metric_history(tracker.run_id, key)) == len(before)


def test_a_run_of_a_moment_is_measured_once(client, store_uri, experiment) -> None:
    with MlflowTracker(uri=store_uri, experiment=experiment, system_metrics=True) as tracker:
        pass
    assert len(client.get_metric_history(tracker.run_id, "system/cpu_utilization_percentage")) == 1
