"""Backbones that an earlier stage trained go on: into the next stage, its checkpoints, a resume, the opened run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.runs import (
    QUICK,
    UNTRACKED,
    assert_same_bits,
    backbones,
    checkpoint_tensors,
    run_train,
    stage_folder,
)
from torch import Tensor

from panollava.checkpoint import BEST, LAST, follow, read_state
from panollava.model.api import PanoLlava
from panollava.model.vision import VisionTower
from panollava.run.build_stage import trained_backbones
from panollava.run.restore import measure, restore
from panollava.run.tools import Tools
from panollava.run_folder import read_metadata
from panollava.store.catalogue import StoreOptions
from panollava.training.loop import OptimiserStep
from panollava.training.precision import choose_compute

Backbone = Callable[[str], Path]
OLDER = ["+experiment=trained_encoder", "lora=none", "stage.finetune.language_trainable_blocks=1"]
STAGES = ("vision", "resampler", "finetune")


@pytest.fixture
def quick(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A quick run in a folder of its own, without an evaluation."""
    monkeypatch.chdir(tmp_path)
    return [*backbones(backbone), *QUICK, UNTRACKED, "evaluation.enabled=false"]


def weights(experiment: str, stage: str) -> dict[str, Tensor]:
    """What a stage's best checkpoint says is not as the named backbones have it."""
    return load_file(stage_folder(experiment, stage) / BEST / "trained.safetensors")


def tower(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name.startswith("vision.tower.")}


def test_a_trained_encoder_goes_through_all_stages(quick: list[str], backbone: Backbone) -> None:
    run_train(*quick, *OLDER, "experiment_name=x")
    one, two, three = (weights("x", stage) for stage in STAGES)
    hub = VisionTower.from_pretrained(backbone("siglip")).state_dict()
    assert tower(one)
    assert all(not torch.equal(value, hub[name.removeprefix("vision.tower.")]) for name, value in tower(one).items())
    assert tower(one).keys() == tower(two).keys()
    assert any(not torch.equal(value, tower(two)[name]) for name, value in tower(one).items())
    assert_same_bits(tower(three), tower(two))  # frozen there, and still not the hub's
    assert (
        {name for name in three if name.startswith("language_model.")}
        == {name for name in three if name.startswith("language_model.model.layers.1.")}
        != set()
    )
    states = [read_state(stage_folder("x", stage) / BEST) for stage in STAGES]
    assert [state["trained_backbones"] for state in states] == [["vision"], ["vision"], ["vision", "language"]]
    final = load_file(stage_folder("x", "finetune") / "model_final.safetensors")
    assert_same_bits(final, three)
    pano = PanoLlava.from_pretrained("runs/x")
    held = dict(pano.model.named_parameters())
    assert_same_bits({name: held[name] for name in three}, three)
    # A stage at a time, in a process each, is the same run.
    for stage in STAGES:
        run_train(*quick, *OLDER, "experiment_name=apart", f"stage={stage}")
        assert_same_bits(
            checkpoint_tensors(stage_folder("apart", stage) / LAST), checkpoint_tensors(stage_folder("x", stage) / LAST)
        )
    for stage in ("vision", "finetune"):
        run = restore(str(stage_folder("x", stage)))
        store = StoreOptions()
        tools = Tools(choose_compute("cpu", "fp32"), store, store.file_identity())
        found = measure(run, pano if stage == "finetune" else None, run.settings["data"], "val", tools)
        assert found["loss"] == pytest.approx(read_metadata(run.folder)["validation_loss"], rel=1e-5)


def test_an_inherited_encoder_survives_a_crash(quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [*quick, "stage.run=[vision,finetune]", "stage.vision.vision_trainable_blocks=1", "lora.dropout=0.3"]
    asked += ["trainer.save_every_steps=1", "stage.finetune.vision_trainable_blocks=0"]
    run_train(*asked, "experiment_name=whole")
    original, taken = OptimiserStep.__call__, [0]

    def call(self: OptimiserStep, *args: object) -> dict[str, float]:
        taken[0] += 1
        if taken[0] == 6:  # the last of the second stage
            raise RuntimeError("power cut")
        return original(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(OptimiserStep, "__call__", call)
        with pytest.raises(RuntimeError, match="power cut"):
            run_train(*asked, "experiment_name=cut")
    run_train(*asked, "experiment_name=cut")
    cut, whole = (checkpoint_tensors(stage_folder(name, "finetune") / LAST) for name in ("cut", "whole"))
    assert_same_bits(cut, whole)
    assert any(name.startswith("trained.safetensors:vision.tower.") for name in whole)


def test_a_backbone_of_another_run_is_refused(quick: list[str], backbone: Backbone) -> None:
    quick = [*quick, "trainer.max_steps=1"]
    run_train(*quick, "stage=vision", "stage.vision.vision_trainable_blocks=1", "experiment_name=eyes")
    run_train(
        *quick, "stage=finetune", "lora=none", "stage.finetune.language_trainable_blocks=1", "experiment_name=all"
    )
    with pytest.raises(ValueError, match=r"trained its own vision backbone, from .*siglip, and this run names .*clip"):
        run_train(*quick, f"vision.name={backbone('clip')}", "stage=resampler", "init_from=runs/eyes")
    with pytest.raises(ValueError, match=r"weights of the language model, which lora\.save_only=true"):
        run_train(*quick, "stage=finetune", "init_from=runs/all", "lora.save_only=true")
    # Beside an adapter the trained block is inherited, under the name it has without one.
    run_train(*quick, "stage=finetune", "init_from=runs/all", "experiment_name=adapted")
    kept, source = weights("adapted", "finetune"), weights("all", "finetune")
    language = {name: value for name, value in source.items() if name.startswith("language_model.")}
    assert language
    assert_same_bits({name: kept[name] for name in language}, language)
    assert any(".lora_" in name for name in kept)
    pano = PanoLlava.from_pretrained("runs/adapted")
    assert trained_backbones(kept) == ["language"]
    base = pano.model.language_model.base_model.model.model.layers[1].mlp.up_proj.base_layer.weight
    assert torch.equal(base, language["language_model.model.layers.1.mlp.up_proj.weight"])


def test_what_is_saved_alone_holds_no_weight_of_the_language_model(quick: list[str]) -> None:
    run_train(*quick, "stage=finetune", "lora.save_only=true", "experiment_name=x")
    for file in stage_folder("x", "finetune").rglob("*.safetensors"):
        kept = {name for name in load_file(file) if "language_model." in name or name.startswith("base_model.")}
        assert all(".lora_" in name for name in kept), file
    assert follow(stage_folder("x", "finetune") / BEST) is not None
