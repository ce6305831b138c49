"""model.join by the command line: a stitched run from training to an export, and what cannot be stitched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.runs import QUICK, UNTRACKED, backbones, command, run_train
from transformers import AutoModelForImageTextToText, AutoProcessor

from panollava import train
from panollava.data.world import WorldSource
from panollava.model.api import PanoLlava

Backbone = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]
STITCHED = ["model.join=stitch", "experiment_name=x"]


@pytest.fixture
def arguments(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A quick stitched run, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return [*backbones(backbone), *(one for one in QUICK if not one.startswith("crop.")), UNTRACKED, *STITCHED]


def test_a_stitched_run_trains_evaluates_and_is_exported(arguments: list[str], capsys: Capture) -> None:
    run_train(*arguments, "crop.overlap=0.5", "trainer.max_steps=1")
    said = capsys.readouterr().err
    assert "9 views of 32x32 pixels, effective overlap 0.500, 80 image tokens a panorama" in said  # 144 with concat
    assert all(f"{name} step 1: validation loss" in said for name in ("vision", "resampler", "finetune"))
    assert list(Path("results/eval_results/x").glob("predictions_*/metrics.json"))
    pano = PanoLlava.from_pretrained("runs/x")
    picture = WorldSource(split="test", scenes=1).panorama(0)
    answer = pano.generate(picture, "what is there?", max_new_tokens=4)
    pano.merge_lora_weights()
    pano.save_pretrained("export")
    assert PanoLlava.from_pretrained("export").generate(picture, "what is there?", max_new_tokens=4) == answer
    model, processor = AutoModelForImageTextToText.from_pretrained("export"), AutoProcessor.from_pretrained("export")
    inputs = processor(images=picture, text="what is there?")
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True).strip() == answer


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["crop.pitch_rows_deg=[-30,30]"], "pitches of -30, 30 degrees"),
        (["crop=cubemap", "crop.poles=true"], "pitches of -90, 0, 90 degrees"),
        (["model.join=stitch_nearest", "crop.overlap=0.9"], "40 tiles have 4 columns of tokens each"),
    ],
)
def test_what_cannot_be_stitched_is_refused_before_training(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture, typed: list[str], said: str
) -> None:
    assert command(monkeypatch, train, *arguments, *typed) == 1
    captured = capsys.readouterr()
    message = captured.out + captured.err
    assert said in message
    assert "model.join=concat" in message
    assert "Traceback" not in message
    assert "trains" not in message
    assert not Path("runs").exists()
