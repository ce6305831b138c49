"""``dry_run=plan``: what it says, what it opens, and what it refuses."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.runs import QUICK, UNTRACKED, backbones, command, run_train

from panollava import train

Backbone = Callable[[str], Path]
PLAN = "dry_run=plan"


@pytest.fixture
def damaged(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of a quick run whose backbones' weights are no safetensors, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path.parent))
    folders = [tmp_path / name for name in ("siglip", "qwen3")]
    for folder in folders:
        shutil.copytree(backbone(folder.name), folder)
        for file in folder.glob("*.safetensors"):
            file.write_bytes(b"no weights")
    return [f"vision.name={folders[0]}", f"language.name={folders[1]}", *QUICK, UNTRACKED]


def rows(note: str) -> dict[str, list[str]]:
    """The rows of the table in a log, by their titles."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in note.splitlines() if line[:1] == "|"]
    return {title: values for title, *values in cells}


def test_a_plan_opens_no_weights_and_keeps_nothing(
    damaged: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(Path().rglob("*"))
    assert command(monkeypatch, train, *damaged, PLAN, "gpu=h100") == 0
    note = capsys.readouterr().err
    assert set(Path().rglob("*")) == before
    assert "Plan for h100 (80 GB, 989 TFLOPS in dense bf16, of which MFU 0.4), bfloat16:" in note
    table = rows(note)
    assert table[""] == ["vision", "resampler", "finetune"]
    assert table["steps"] == ["3", "3", "3"]  # 12 scenes, batches of 4, one epoch
    assert table["image tokens of a sample"] == ["80"] * 3
    assert "memory: libraries" not in table
    assert table["largest that fits 90 %"][:2] == ["65536+"] * 2
    assert "Feature store: 17 panoramas" in note
    assert "step 1" not in note
    with pytest.raises(ValueError, match="is not safetensors"):
        run_train(*damaged, "dry_run=true")


def test_a_dry_run_ends_with_the_same_table(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tables = []
    for kind in (PLAN, "dry_run=true"):
        run_train(*backbones(backbone), *QUICK, UNTRACKED, "stage=resampler", kind)
        tables.append(rows(capsys.readouterr().err))
    assert tables[0] == tables[1]
    assert tables[0]["memory: libraries"] == ["900 MB"]
    assert tables[0]["hours"] == ["unknown"]


def test_a_plan_follows_its_settings(damaged: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for more in ([], ["mfu=0.2"], ["trainer.max_steps=2"], ["stage.finetune.accumulate=3", "trainer.precision=fp32"]):
        run_train(*damaged, PLAN, "gpu=l4", "stage=finetune", *more)
        found.append(rows(capsys.readouterr().err))
    plain, slow, short, accumulated = found
    assert {key for key in plain if plain[key] != slow[key]} <= {"hours"}
    assert (plain["steps"], short["steps"], accumulated["steps"]) == (["3"], ["2"], ["1"])
    assert (plain["samples a step"], accumulated["samples a step"]) == (["4"], ["12"])
    assert accumulated["hours"] == ["unknown"]  # the table's peaks are not of fp32


def test_a_batch_that_does_not_fit_is_named(
    damaged: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from panollava.run.plan import GPUS, Device

    for count, way_out in ((1, "Not even one sample fits"), (6, "stage.resampler.batch_size=[123] fits")):
        monkeypatch.setitem(GPUS, "l4", Device("l4", count * 10**6, 121e12))
        run_train(*damaged, PLAN, "gpu=l4", "stage=resampler")
        assert re.search(rf"Stage resampler: batch_size=4 needs .* {way_out}", capsys.readouterr().err)


def test_what_is_refused(
    damaged: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        "dry_run=plan gpu=h1000": "gpu=\"h1000\": allowed is 'a100-40', 'a100-80', 'h100', 'h200', 'rtx4090' or 'l4'.",
        "dry_run=plans": "dry_run=\"plans\": allowed is False, True or 'plan'.",
        "dry_run=plan mfu=1.5": "mfu=1.5: allowed is less than or equal to 1.",
        "gpu=h100": "gpu=h100 says for which GPU a dry run plans, and this is none: add dry_run=plan",
    }
    for line, message in wrong.items():
        assert command(monkeypatch, train, *damaged, *line.split()) == 1
        assert message in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert command(monkeypatch, train, *damaged[1:], PLAN, "vision.name=nobody/nothing") == 1
    assert "model.vision.name='nobody/nothing' could not be opened" in capsys.readouterr().err
