"""The operations of a run, as JSON, and how each is performed in the store; one registers the run's model."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from panollava.tracking.location import ARTIFACTS, database_file, store_lock

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

Operation = dict[str, Any]  # "do" names the operation, "path" is a file or folder that it copies; all is JSON
Row = Sequence[Any]  # a metric in JSON: name, value, time in milliseconds, step

TABLES_TAG = "mlflow.loggedArtifacts"
RUNNING = "RUNNING"
SLOWEST_RATE = 5e6  # bytes a second at which a server is expected to store a file before it answers
MAX_NAME = 250  # characters that MLflow keeps of a name
LOSS_TAG, MEASURED_TAG = "panollava.loss", "panollava.measured_on"  # of a model version: its loss, and of which data

logger = logging.getLogger(__name__)


def perform(
    client: MlflowClient, uri: str, run_id: str, operation: Operation, *, folder: Path, again: bool = False
) -> None:
    """Performs one operation.

    All operations but metrics are idempotent in the store. Metrics are looked up first where they may have arrived
    before (``again``), since stores that are not databases would list them twice. The operation's ``path`` is relative
    to ``folder``.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    match operation:
        case {"do": "metrics", "rows": rows}:
            metrics = [Metric(key, value, timestamp, step) for key, value, timestamp, step in rows]
            client.log_batch(run_id, metrics=_missing(client, run_id, metrics) if again else metrics)
        case {"do": "params", "values": values}:
            client.log_batch(run_id, params=[Param(key, value) for key, value in values.items()])
        case {"do": "tags", "values": values}:
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values.items()])
        case {"do": "file" | "folder", "path": path, "into": into}:
            _copy(client, uri, run_id, folder / path, into)
        case {"do": "table", "name": name}:
            tables = json.loads(client.get_run(run_id).data.tags.get(TABLES_TAG, "[]"))
            entry = {"path": name, "type": "table"}
            if entry not in tables:
                client.set_tag(run_id, TABLES_TAG, json.dumps([*tables, entry]))
        case {"do": "inputs", "datasets": datasets}:
            inputs = []
            for values in map(dict, datasets):
                tag = InputTag("mlflow.data.context", values.pop("context"))
                inputs.append(DatasetInput(Dataset(**values), [tag]))
            client.log_inputs(run_id, inputs)
        case {"do": "register", **options}:
            register(client, uri, run_id, **{str(key): value for key, value in options.items()})
        case {"do": "status", "status": status, "time": time_ms}:
            if status == RUNNING:
                client.update_run(run_id, status=status)
            else:
                client.set_terminated(run_id, status, time_ms)
        case _:
            raise ValueError(f"{operation.get('do')!r} is no operation of this panollava; a newer one may have it.")


def metric_name(name: str) -> str:
    """A name that MLflow accepts on every system: other characters become `_` (question types are free text)."""
    parts = [re.sub(r"[^\w.\- ]", "_", part).strip() for part in str(name).split("/")]
    return "/".join(part for part in parts if part.strip("."))[:MAX_NAME].rstrip("/ ") or "_"


def new_rows(rows: Sequence[Row], last_steps: Mapping[str, int]) -> list[Row]:
    """The metrics of steps that a run has not logged yet, by the last logged step of each metric.

    A resumed run repeats some steps. Step 0 is for values of the whole run, which may be measured again.
    """
    return [row for row in rows if row[3] == 0 or row[3] > last_steps.get(row[0], -1)]


def _missing(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> list[Metric]:
    def identity(metric: Metric) -> tuple[str, int, int, float | None]:
        # Stores keep infinity as the largest number; NaN does not equal itself.
        value = max(-sys.float_info.max, min(sys.float_info.max, metric.value))
        return metric.key, metric.step, metric.timestamp, None if math.isnan(metric.value) else value

    keys = {metric.key for metric in metrics}
    known = {identity(metric) for key in keys for metric in client.get_metric_history(run_id, key)}
    return [metric for metric in metrics if identity(metric) not in known]


def _copy(client: MlflowClient, uri: str, run_id: str, path: Path, into: str | None) -> None:
    # A relative address starts from the database's folder; MLflow's client starts it from the working directory.
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    file = database_file(uri)
    address = "" if file is None else client.get_run(run_id).info.artifact_uri
    if file is not None and address.startswith(f"{ARTIFACTS}/"):
        local = LocalArtifactRepository((file.parent / address).as_uri())
        (local.log_artifacts if path.is_dir() else local.log_artifact)(str(path), into)
    else:
        with _time_to_store(path):
            (client.log_artifacts if path.is_dir() else client.log_artifact)(run_id, str(path), into)


@contextmanager
def _time_to_store(path: Path) -> Iterator[None]:
    """Lengthens the time that MLflow waits for an answer by what the largest file takes at ``SLOWEST_RATE``.

    A server that stores artifacts for its clients answers only after it has copied the whole file to its own store.
    """
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT as LIMIT

    files = path.rglob("*") if path.is_dir() else [path]
    seconds = int(max((file.stat().st_size for file in files), default=0) / SLOWEST_RATE)
    before = LIMIT.get_raw()
    LIMIT.set(LIMIT.get() + seconds)
    if seconds:
        logger.info("%s is sent to MLflow, which may take minutes.", path.name)
    try:
        yield
    finally:
        LIMIT.unset() if before is None else LIMIT.set(before)


def check_names(name: str | None, alias: str) -> None:
    """Raises a ValueError if MLflow would refuse the name or alias of a registered model after the training."""
    if name is not None and (not name.strip() or re.search(r'[/:"]', name)):
        raise ValueError(f'tracking.register={name!r} is no name of a model: allowed is a text without /, : and ".')
    if not re.fullmatch(r"[\w-]+", alias) or re.fullmatch(r"(?i)v\d+|latest", alias):
        raise ValueError(
            f"tracking.alias={alias!r} is no alias: allowed are letters, digits, _ and -; v1, v2 … and latest are "
            "MLflow's own."
        )


def register(
    client: MlflowClient, uri: str, run_id: str, *, name: str, alias: str, artifact: str, loss: float, measured_on: str
) -> None:
    """Makes a run's model a version of a registered model, and gives the alias to the best version.

    The best has the lowest validation loss. Losses are compared only where they were measured on the same data; a
    version with another measure leaves the alias where it is. Processes that register at once on a server, which has
    no lock, end with the best as well: each looks again after it has moved the alias.

    ``artifact`` is the model's folder among the run's artifacts; ``measured_on`` names stage, data and language model.
    """
    with store_lock(uri):
        version = _version(client, run_id, name, artifact)
        client.set_model_version_tag(name, version.version, LOSS_TAG, repr(loss))
        client.set_model_version_tag(name, version.version, MEASURED_TAG, measured_on)
        before = holder = _holder(client, name, alias)
        while (best := _best(client, name, measured_on, holder)) is not None:
            client.set_registered_model_alias(name, alias, best.version)
            holder = _holder(client, name, alias)
        if holder is not None and holder.version == version.version:
            if before is None or before.version != version.version:
                logger.info("%s version %s is registered and is now %s@%s.", name, version.version, name, alias)
        elif holder is not None:
            logger.info(
                "%s version %s is registered (loss %.4f on %s); %s@%s is version %s (loss %s on %s).",
                name, version.version, loss, measured_on, name, alias, holder.version,
                holder.tags.get(LOSS_TAG, "unknown"), holder.tags.get(MEASURED_TAG, "something unknown"),
            )  # fmt: skip


def _version(client: MlflowClient, run_id: str, name: str, artifact: str) -> ModelVersion:
    """The version of this run, made if missing."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{artifact}"
    known = client.search_model_versions(f"run_id = '{run_id}'")
    ours = (one for one in known if (one.name, one.source) == (name, source))
    return next(ours, None) or client.create_model_version(name, source, run_id)


def _holder(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that has the alias."""
    number = client.get_registered_model(name).aliases.get(alias)
    return None if number is None else client.get_model_version(name, str(number))


def _best(client: MlflowClient, name: str, measured_on: str, holder: ModelVersion | None) -> ModelVersion | None:
    """The version to give the alias to; None where its holder keeps it."""
    if holder is not None and holder.tags.get(MEASURED_TAG) != measured_on:
        return None
    quote = '"' if "'" in name else "'"
    found = client.search_model_versions(f"name = {quote}{name}{quote}")
    comparable = (one for one in found if one.tags.get(MEASURED_TAG) == measured_on)
    best = min(comparable, key=lambda one: (_loss(one), int(one.version)))
    return None if holder is not None and _loss(holder) <= _loss(best) else best


def _loss(version: ModelVersion) -> float:
    """A version's loss; an unknown one and NaN count as infinity."""
    loss = float(version.tags.get(LOSS_TAG, "inf"))
    return math.inf if math.isnan(loss) else loss
