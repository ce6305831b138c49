"""Real 360° photographs of six thousand pixels and free text go through the same path as the built-in world."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support import REAL_DATA
from support.runs import QUICK, UNTRACKED, backbones, command, stage_folder

from panollava import train
from panollava.model.api import PanoLlava

PHOTOGRAPHS = REAL_DATA / "quic360_mini" / "data.csv"
pytestmark = pytest.mark.skipif(not PHOTOGRAPHS.is_file(), reason="the sample of QuIC-360 photographs is not here")


def test_train_and_answer(
    backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = [argument for argument in QUICK if not argument.startswith(("data.", "crop."))]
    tables = [f"data.{split}_csv={PHOTOGRAPHS}" for split in ("train", "val", "test")]
    asked = [*backbones(backbone), *quick, UNTRACKED, "data=quic360", *tables, "experiment_name=photographs"]
    asked += ["trainer.max_steps=2", "evaluation.blank=false"]
    assert command(monkeypatch, train, *asked) == 0, capsys.readouterr().err
    with PHOTOGRAPHS.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    (predicted,) = Path("results/eval_results/photographs").glob("*/predictions.csv")
    with predicted.open(encoding="utf-8-sig", newline="") as file:
        answers = list(csv.DictReader(file))
    pairs = {(row["url"], row["query"]) for row in rows}
    assert {row["image_id"] for row in answers} == {row["url"] for row in rows}
    assert len(answers) == len(pairs)
    assert {row["question"] for row in answers} == {f"Describe the {query} in this panorama." for _, query in pairs}
    references = [text for row in answers for text in json.loads(row["references"])]
    assert sorted(references) == sorted(row["annotation"].strip() for row in rows)
    folder = stage_folder("photographs", "finetune")
    assert folder.name == "anyres-e2p_mlp"
    metadata = json.loads((folder / "checkpoint_metadata.json").read_text("utf-8"))
    assert metadata["dataset"]["train_csv"] == str(PHOTOGRAPHS)
    picture = PHOTOGRAPHS.parent / rows[0]["url"]
    pano = PanoLlava.from_pretrained("runs/photographs")
    assert pano.views(picture).shape == (9, 3, 32, 32)
    assert isinstance(pano.generate(picture, "What is there?", max_new_tokens=4), str)
