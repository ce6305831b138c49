"""The trained model in MLflow: what is kept there opens and answers as the run does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow.artifacts import download_artifacts
from support.runs import command, config

from panollava import train
from panollava.model.api import PanoLlava
from panollava.run.config_check import checked
from panollava.tracking.location import absolute_uri
from panollava.tracking.store import open_client

QUESTION = "What is to the left?"


def answer(folder: Path | str) -> str:
    picture = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    return PanoLlava.from_pretrained(folder).generate(picture, QUESTION, max_new_tokens=6)


def test_a_finished_run_is_kept_and_registered_by_the_same_command(
    recorded: Path, recorded_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(recorded / "runs", tmp_path / "runs", symlinks=True)
    monkeypatch.chdir(tmp_path)
    state = Path("runs/recorded/stage_state.json")
    content = json.loads(state.read_text())
    del content["stages"]["finetune/anyres-e2p_mlp"]["evaluated"]
    state.write_text(json.dumps(content))
    client = open_client(absolute_uri(folder=tmp_path))
    expected = answer("runs/recorded")
    for form in ("checkpoint", "export"):
        tracking = [f"tracking.log_model={form}", f"tracking.register=pano-{form}", "tracking.alias=champion"]
        assert command(monkeypatch, train, *recorded_arguments, *tracking) == 0
        version = client.get_model_version_by_alias(f"pano-{form}", "champion")
        found = download_artifacts(version.source, dst_path=str(tmp_path / form))
        assert answer(found) == expected
        assert (Path(found) / "config.json").exists() == (form == "export")
        assert not list(Path(found).rglob("optimizer*"))
    assert version.tags["panollava.measured_on"].startswith("finetune, validation data ")
    done = list(json.loads(state.read_text())["stages"]["finetune/anyres-e2p_mlp"])
    assert done.index("evaluated") < done.index("kept_model")  # scores do not wait until a server has taken the model

    runs = len(client.search_runs(["1"]))
    assert command(monkeypatch, train, *recorded_arguments, *tracking) == 0  # it is there as asked
    assert len(client.search_runs(["1"])) == runs
    assert not list((tmp_path / "runs" / "recorded").glob(".tmp-*"))


def test_a_stage_1_model_cannot_be_exported() -> None:
    with pytest.raises(ValueError, match=r"tracking\.log_model=export: a stage-1 model has no language part"):
        checked(config("stage=vision", "tracking.log_model=export"))
