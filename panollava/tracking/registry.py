"""Registered models: a version for each run that asks for one, and an alias that the best of them holds."""

from __future__ import annotations

import logging
import math
import re
from typing import TYPE_CHECKING

from panollava.tracking.location import store_lock

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

LOSS_TAG, MEASURED_TAG = "panollava.loss", "panollava.measured_on"
"""Tags of a version: its validation loss, and what that was measured on."""


def check_names(name: str | None, alias: str) -> None:
    """Refuses, before training, what the registry would refuse after it.

    Raises:
        ValueError: not a name or an alias.
    """
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
    """Makes a run's model a version of a registered model, and sees to it that the best version has the alias.

    The best is the one with the lowest validation loss. Losses are compared only where they were measured on the
    same thing; a version with another measure leaves the alias where it is. Processes that register at once on a
    server, where no lock keeps them apart, end with the best as well: each looks again after it has moved the alias.

    Args:
        client, uri: of the store.
        run_id: the run.
        name: the registered model; made if it is missing.
        alias: what the best version is called.
        artifact: folder of the model among the run's artifacts.
        loss: lowest validation loss.
        measured_on: stage, data and language model, in words.
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
    """The version of this run, which is made if it is missing."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{artifact}"
    for known in client.search_model_versions(f"run_id = '{run_id}'"):
        if (known.name, known.source) == (name, source):
            return known
    return client.create_model_version(name, source, run_id)


def _holder(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that has the alias."""
    number = client.get_registered_model(name).aliases.get(alias)
    return None if number is None else client.get_model_version(name, str(number))


def _best(client: MlflowClient, name: str, measured_on: str, holder: ModelVersion | None) -> ModelVersion | None:
    """The version that should have the alias instead of its holder, None where that is right or cannot be compared."""
    if holder is not None and holder.tags.get(MEASURED_TAG) != measured_on:
        return None
    quote = '"' if "'" in name else "'"
    found = client.search_model_versions(f"name = {quote}{name}{quote}")
    best = min(
        (one for one in found if one.tags.get(MEASURED_TAG) == measured_on),
        key=lambda one: (_loss(one), int(one.version)),
    )
    return None if holder is not None and _loss(holder) <= _loss(best) else best


def _loss(version: ModelVersion) -> float:
    """A version's loss; one that is unknown, or no number, is worse than any other."""
    loss = float(version.tags.get(LOSS_TAG, "inf"))
    return math.inf if math.isnan(loss) else loss
