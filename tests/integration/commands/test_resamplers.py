"""Every resampler by its option: each stage it goes through, what it leaves out, and a run reopened in its width."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.runs import QUICK, UNTRACKED, backbones, command, config, run_train, stage_folder

from panollava import train
from panollava.data.world import WorldSource
from panollava.model.api import PanoLlava
from panollava.run.config_check import checked

Backbone = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]
LEFT_OUT = "the resampler has no parameters, so nothing but the head would train"
WIDTH = "keeps the encoder's width of 32: model.latent_width=40 is not used"
RESAMPLERS = {"c_abstractor": 16, "identity": 16, "perceiver": 16, "pool": 4, "qformer": 16}
"""Those no other end-to-end test trains, with the tokens of a view at their miniature defaults."""
PLAIN = ("identity", "pool")


@pytest.fixture
def arguments(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A quick run in an empty folder, whose latent width is not the encoder's."""
    monkeypatch.chdir(tmp_path)
    return [*backbones(backbone), *QUICK, UNTRACKED, "model.latent_width=40", "experiment_name=x"]


@pytest.mark.parametrize("name", RESAMPLERS)
def test_a_resampler_goes_through_every_stage_that_it_has_weights_for(
    arguments: list[str], name: str, capsys: Capture
) -> None:
    run_train(*arguments, f"resampler={name}", "dry_run=true")
    said = capsys.readouterr().err
    assert f"{5 * RESAMPLERS[name]} image tokens a panorama" in said
    assert (f"Stage vision is left out: {LEFT_OUT}" in said) == (name in PLAIN)
    assert ("Stage vision trains" in said) == (name not in PLAIN)
    assert (f"resampler={name} {WIDTH}" in said) == (name in PLAIN)
    assert "Stage resampler trains" in said
    assert "Stage finetune trains" in said


@pytest.mark.parametrize("name", PLAIN)
def test_stage_one_alone_is_refused_where_there_is_nothing_to_train(
    arguments: list[str], name: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert command(monkeypatch, train, *arguments, "stage=vision", f"resampler={name}") == 1
    captured = capsys.readouterr()
    assert f"stage=vision cannot run: {LEFT_OUT}. Choose another crop or resampler" in captured.out + captured.err


def test_a_run_without_resampler_weights_is_reopened_and_exported_in_its_own_width(arguments: list[str]) -> None:
    run_train(*arguments, "resampler=pool", "stage.run=[resampler,finetune]", "trainer.max_steps=1")
    metadata = json.loads((stage_folder("x", "finetune") / "checkpoint_metadata.json").read_text())
    assert metadata["model_config"]["latent_dimension"] == 32
    pano = PanoLlava.from_pretrained("runs/x")
    assert (pano.model.vision.width, pano.model.config.latent_width) == (32, 32)
    picture = WorldSource(split="test", scenes=1).panorama(0)
    answer = pano.generate(picture, "what is there?", max_new_tokens=4)
    pano.merge_lora_weights()
    pano.save_pretrained("export")
    assert PanoLlava.from_pretrained("export").generate(picture, "what is there?", max_new_tokens=4) == answer


def test_a_position_code_is_held_against_the_width_that_tokens_will_have() -> None:
    """The encoder's is only known when that is opened."""
    narrow = ["model.latent_width=20", "position=yaw_pitch"]
    assert checked(config("resampler=identity", *narrow)).model.latent_width == 20
    with pytest.raises(ValueError, match="need tokens of width 24 or more"):
        checked(config("resampler=mlp", *narrow))
