"""What a run's record is made of, as plain data: it can wait on disk, and be done twice without doubling anything."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panollava.tracking.location import ARTIFACTS, database_file
from panollava.tracking.registry import register

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

Operation = dict[str, Any]
"""``do`` says what is to be done; the other keys are JSON. ``path`` is a file or folder that goes along."""

TABLES_TAG = "mlflow.loggedArtifacts"
RUNNING = "RUNNING"

Row = Sequence[Any]
"""A metric as JSON has it: name, value, time in milliseconds, step."""


def perform(
    client: MlflowClient, uri: str, run_id: str, operation: Operation, *, folder: Path, again: bool = False
) -> None:
    """Does one operation.

    All but metrics are of a kind that the store takes twice as it takes them once. Metrics are looked up first where
    they may have arrived already: stores that are no databases would list them twice.

    Args:
        client, uri: of the store.
        run_id: the run.
        operation: what to do.
        folder: what its ``path`` starts from.
        again: it may have been done before, wholly or in part.
    """
    from mlflow.entities import Metric, Param, RunTag

    match operation:
        case {"do": "metrics", "rows": rows}:
            metrics = [Metric(key, value, timestamp, step) for key, value, timestamp, step in rows]
            client.log_batch(run_id, metrics=missing(client, run_id, metrics) if again else metrics)
        case {"do": "params", "values": values}:
            client.log_batch(run_id, params=[Param(key, value) for key, value in values.items()])
        case {"do": "tags", "values": values}:
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values.items()])
        case {"do": "file" | "folder", "path": path, "into": into}:
            _keep(client, uri, run_id, folder / path, into)
        case {"do": "table", "name": name}:
            tables = json.loads(client.get_run(run_id).data.tags.get(TABLES_TAG, "[]"))
            entry = {"path": name, "type": "table"}
            if entry not in tables:
                client.set_tag(run_id, TABLES_TAG, json.dumps([*tables, entry]))
        case {"do": "inputs", "datasets": datasets}:
            _log_inputs(client, run_id, datasets)
        case {"do": "register", **options}:
            register(client, uri, run_id, **{str(key): value for key, value in options.items()})
        case {"do": "status", "status": status, "time": time_ms}:
            if status == RUNNING:
                client.update_run(run_id, status=status)
            else:
                client.set_terminated(run_id, status, time_ms)
        case _:
            raise ValueError(f"{operation.get('do')!r} is no operation of this panollava; a newer one may know it.")


def beyond(rows: Sequence[Row], reached: Mapping[str, int]) -> list[Row]:
    """Metrics of steps that a run has not reached yet.

    A run that resumes takes some steps again, whose numbers are there: they are not kept twice. Step 0 is for measures
    of the whole run, which may be taken anew.

    Args:
        rows: metrics.
        reached: last step of each metric.
    """
    return [row for row in rows if row[3] == 0 or row[3] > reached.get(row[0], -1)]


def missing(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> list[Metric]:
    """Those of some metrics that the store does not have."""
    known = {_identity(one) for key in {each.key for each in metrics} for one in client.get_metric_history(run_id, key)}
    return [one for one in metrics if _identity(one) not in known]


def _identity(metric: Metric) -> tuple[str, int, int, float | None]:
    """What makes a metric the same one; stores keep infinity as the largest number, and NaN equals nothing."""
    value = max(-sys.float_info.max, min(sys.float_info.max, metric.value))
    return metric.key, metric.step, metric.timestamp, None if math.isnan(metric.value) else value


def _keep(client: MlflowClient, uri: str, run_id: str, path: Path, into: str | None) -> None:
    """Copies a file or folder to a run's artifacts.

    A relative address is taken from the database's folder; MLflow's client takes it from the working directory.
    """
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    file = database_file(uri)
    address = "" if file is None else client.get_run(run_id).info.artifact_uri
    if file is not None and address.startswith(f"{ARTIFACTS}/"):
        local = LocalArtifactRepository((file.parent / address).as_uri())
        (local.log_artifacts if path.is_dir() else local.log_artifact)(str(path), into)
    else:
        (client.log_artifacts if path.is_dir() else client.log_artifact)(run_id, str(path), into)


def _log_inputs(client: MlflowClient, run_id: str, datasets: Sequence[dict[str, Any]]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for one in datasets:
        rest = {key: value for key, value in one.items() if key != "context"}
        inputs.append(DatasetInput(Dataset(**rest), [InputTag("mlflow.data.context", one["context"])]))
    client.log_inputs(run_id, inputs)
