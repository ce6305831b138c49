"""Registered models: one version a run, and an alias that moves to a better one and to no other."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from panollava.tracking import operations
from panollava.tracking.mlflow_tracker import MlflowTracker
from panollava.tracking.tracker import ModelLoss

DATA = "finetune, validation data 0123, tiny"


@pytest.fixture
def new_model(client, store_uri, experiment, tmp_path):
    """Registers the model of a new run, or of a known one, and gives the run's id."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.safetensors").write_text("weights")

    def make(loss: float, measured_on: str = DATA, run_id: str | None = None) -> str:
        options = {"uri": store_uri, "experiment": experiment, "run_id": run_id, "register": experiment}
        with MlflowTracker(**options, alias="champion") as tracker:
            assert tracker.model_form == "checkpoint"
            tracker.model(tmp_path / "model", ModelLoss(loss, measured_on))
        return str(tracker.run_id)

    return make


@pytest.fixture
def champion(client, experiment):
    return lambda: client.get_model_version_by_alias(experiment, "champion").run_id


def test_the_alias_moves_to_a_lower_loss_only(client, new_model, champion, experiment) -> None:
    first = new_model(0.5)
    assert champion() == first
    new_model(0.6)
    assert champion() == first
    best = new_model(0.4)
    assert champion() == best
    assert len(client.search_model_versions(f"name = '{experiment}'")) == 3


@pytest.mark.parametrize(("first", "second"), [(0.5, 0.3), (0.3, 0.5), (math.nan, 0.3)])
def test_of_two_that_register_at_once_the_better_has_the_alias(
    new_model, champion, monkeypatch, first: float, second: float
) -> None:
    """On a server no lock keeps them apart: the second comes between what the first has seen and what it does."""
    monkeypatch.setattr(operations, "store_lock", lambda _uri: nullcontext())
    move, waiting, runs = MlflowClient.set_registered_model_alias, [second], {}

    def late(self: MlflowClient, name: str, alias: str, version: str) -> None:
        if waiting:
            runs[second] = new_model(waiting.pop())
        move(self, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", late)
    runs[first] = new_model(first)
    assert champion() == runs[min(first, second, key=lambda loss: (math.isnan(loss), loss))]


def test_losses_of_other_data_or_models_say_nothing(new_model, champion, caplog) -> None:
    caplog.set_level("INFO", "panollava")
    first = new_model(0.5)
    new_model(0.1, "finetune, validation data 4567, tiny")
    assert champion() == first
    assert "is version 1 (loss 0.5 on finetune, validation data 0123, tiny)" in caplog.text


def test_a_run_that_goes_on_renews_its_version(client, new_model, champion, experiment) -> None:
    run_id = new_model(0.5)
    assert new_model(0.3, run_id=run_id) == run_id
    (version,) = client.search_model_versions(f"name = '{experiment}'")
    assert version.tags["panollava.loss"] == "0.3"
    assert champion() == run_id


def test_a_version_leads_to_the_model(client, new_model, experiment, tmp_path) -> None:
    from mlflow.artifacts import download_artifacts

    new_model(0.5)
    version = client.get_model_version_by_alias(experiment, "champion")
    found = download_artifacts(version.source, dst_path=str(tmp_path / "found"))
    assert (Path(found) / "weights.safetensors").read_text() == "weights"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"register": "a/b"}, "tracking.register='a/b'"),
        ({"register": " "}, "tracking.register=' '"),
        ({"register": 'a"b'}, "tracking.register='a\"b'"),
        ({"register": "m", "alias": "v12"}, "tracking.alias='v12'"),
        ({"register": "m", "alias": "latest"}, "tracking.alias='latest'"),
        ({"register": "m", "alias": "the best"}, "tracking.alias='the best'"),
    ],
)
def test_names_that_mlflow_refuses_are_refused_before_training(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        MlflowTracker(**options)
