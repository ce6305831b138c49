"""Parts of the backbones that train where the config says so: these tensors, in fp32, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.runs import config

from panollava.model.trainable import named_weights, plain_name
from panollava.run.config_check import checked

Build = Callable[..., Any]
NEW = ("vision.resampler.", "position.", "projector.", "head.")
LAST_BLOCK = "vision.tower.model.encoder.layers.2."
LAST_LAYER = "language_model.model.layers.1."
CASES = [
    pytest.param("vision", ["vision_trainable_blocks=1"], "none", (LAST_BLOCK,), id="stage 1, a block of the encoder"),
    pytest.param("vision", ["vision_trainable_blocks=all"], "none", ("vision.tower.",), id="stage 1, the encoder"),
    pytest.param("resampler", ["vision_trainable_blocks=all"], "lora", ("vision.tower.",), id="stage 2, the encoder"),
    pytest.param(
        "finetune",
        ["vision_trainable_blocks=1", "language_trainable_blocks=1"],
        "lora",
        (LAST_BLOCK, LAST_LAYER),
        id="stage 3, a block of both beside LoRA",
    ),
    pytest.param("finetune", ["language_trainable_blocks=1"], "none", (LAST_LAYER,), id="stage 3, a block"),
    pytest.param("finetune", ["language_trainable_blocks=all"], "none", ("language_model.",), id="stage 3, all"),
]


def asked(stage: str, keys: list[str], lora: str) -> list[str]:
    return [f"lora={lora}", *(f"stage.{stage}.{key}" for key in keys)]


def without_a_say(name: str) -> bool:
    """Weights that no feature depends on, and a bias that the objective does not see."""
    return ".head." in name or "post_layernorm" in name or name == "head.3.bias"


@pytest.mark.parametrize(
    ("stage", "keys", "lora", "backbone_parts", "precision"),
    [
        pytest.param(*case.values, precision, id=f"{case.id}, {precision}")
        for case, precision in zip(CASES, ["fp32", "bf16"] * 3, strict=True)
    ],
)
def test_what_is_asked_for_trains_and_nothing_else(
    built: Build, stage: str, keys: list[str], lora: str, backbone_parts: tuple[str, ...], precision: str
) -> None:
    case = built(stage, *asked(stage, keys, lora), f"trainer.precision={precision}", "trainer.clip_norm=0")
    before = {plain_name(name.removeprefix("model.")): value for name, value in case.tensors().items()}
    case.train(steps=3)
    after = {plain_name(name.removeprefix("model.")): value for name, value in case.tensors().items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trained = case.stage.trained()
    expected = {
        name
        for name in before
        if name in named(case) and (name.startswith((*NEW, *backbone_parts)) or (".lora_" in name and lora == "lora"))
    }
    if stage != "finetune":
        expected = {name for name in expected if ".lora_" not in name}
    assert {name for name in trained if not without_a_say(name)} == {n for n in expected if not without_a_say(n)}
    # A key's bias shifts all scores of a query alike, so its gradient is rounding and may be none.
    silent = {name for name in trained if name.endswith("k_proj.bias") or without_a_say(name)}
    assert changed - silent == set(trained) - silent
    assert changed <= set(trained)
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    frozen = case.stage.frozen_backbone()
    assert {parameter.dtype for parameter in frozen.values()} <= {case.run.compute.dtype}
    assert not set(frozen) & set(trained)


def named(case: Any) -> set[str]:
    """Names of all weights, as in checkpoints."""
    return set(named_weights(getattr(case.stage, "model", case.stage)))


@pytest.mark.parametrize("encoder", ["clip", "dinov2_registers", "timm_vit"])
@pytest.mark.parametrize("blocks", ["1", "all"])
def test_every_encoder_trains_beside_frozen_bf16(built: Build, backbone: Any, encoder: str, blocks: str) -> None:
    key = f"stage.vision.vision_trainable_blocks={blocks}"
    case = built("vision", f"vision.name={backbone(encoder)}", key, "trainer.precision=bf16")
    before = case.tensors()
    case.train(steps=2)
    after = case.tensors()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved <= set(case.stage.trained())
    assert any(name.startswith("vision.tower.") for name in moved)


@pytest.mark.parametrize(
    ("stage", "key", "message"),
    [
        ("vision", "vision_trainable_blocks=4", r"vision_trainable_blocks=4.*0 to 3 or all"),
        ("finetune", "language_trainable_blocks=3", r"language_trainable_blocks=3.*2 blocks.*0 to 2 or all"),
    ],
)
def test_more_blocks_than_there_are(built: Build, stage: str, key: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(stage, f"stage.{stage}.{key}", "lora=none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stage.finetune.language_trainable_blocks=all"], r"language_trainable_blocks=all.*lora=none"),
        (["stage.finetune.language_trainable_blocks=2", "lora.save_only=true"], r"save_only=true.*would be lost"),
        (["lora=none", "lora.save_only=true"], r"save_only=true saves an adapter.*has none"),
        (["+stage.resampler.language_trainable_blocks=1"], r"stage\.resampler\.language_trainable_blocks is not a key"),
        (["stage.finetune.language_trainable_blocks=some"], r"stage\.finetune\.language_trainable_blocks"),
        (["stage.vision.vision_trainable_blocks=-1"], r"stage\.vision\.vision_trainable_blocks=-1"),
    ],
)
def test_keys_that_do_not_go_together(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(config(*arguments))


def test_the_older_variant_is_one_option() -> None:
    stages = checked(config("+experiment=trained_encoder")).stage
    assert [stages[name].vision_trainable_blocks for name in ("vision", "resampler", "finetune")] == ["all", "all", 0]


def test_only_what_trains_is_in_training_mode(built: Build) -> None:
    case = built("finetune", "stage.finetune.vision_trainable_blocks=1", "lora=none")
    tower = case.stage.train().model.vision.tower
    assert [block.training for block in tower.blocks] == [False, False, True]
    assert not tower.model.embeddings.training
    assert not any(module.training for module in case.stage.eval().modules())
