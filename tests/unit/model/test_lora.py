"""LoRA: on the language model alone, saved for plain peft, merged into a plain model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.models import composite

from panollava.model.hub import load_language_model
from panollava.model.lora import (
    add_lora,
    has_lora,
    load_lora,
    lora_in_use,
    lora_names,
    merge_lora,
    save_lora,
    use_lora,
    without_lora,
)
from panollava.model.vlm import PanoLlavaForConditionalGeneration

Backbone = Callable[[str], Path]
IDS = torch.arange(20, 40)[None]


def small(backbone: Backbone, language: str = "qwen2", **settings: Any) -> PanoLlavaForConditionalGeneration:
    return composite(backbone("siglip"), backbone(language), **settings)[0]


def stirred(model: PanoLlavaForConditionalGeneration) -> PanoLlavaForConditionalGeneration:
    """A fresh adapter is zero; give it something to say."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


@torch.no_grad()
def logits(model: PanoLlavaForConditionalGeneration) -> torch.Tensor:
    return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize("language", ["qwen2", "qwen3", "llama", "mistral"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_only_the_language_model_is_wrapped(language: str, targets: Any, backbone: Backbone) -> None:
    model = small(backbone, language)
    before = logits(model)
    outside = {name: weight.requires_grad for name, weight in model.named_parameters() if "language" not in name}
    add_lora(model, rank=4, alpha=8, dropout=0.0, target_modules=targets)
    adapters = {name for name, weight in model.named_parameters() if "lora_" in name}
    trained = {name for name, weight in model.language_model.named_parameters() if weight.requires_grad}
    assert adapters == {f"language_model.{name}" for name in trained}
    assert len(adapters) == 2 * 2 * (7 if targets == "all-linear" else 2)  # two layers, A and B
    after = {name: weight.requires_grad for name, weight in model.named_parameters() if "language" not in name}
    assert after == outside
    torch.testing.assert_close(logits(model), before)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_saved_loaded_and_merged_say_the_same(options: dict[str, bool], backbone: Backbone, tmp_path: Path) -> None:
    model = small(backbone)
    plain = logits(model)
    add_lora(model, rank=4, alpha=8, dropout=0.1, target_modules=["q_proj", "down_proj"], **options)
    expected = logits(stirred(model))
    assert not torch.allclose(expected, plain, atol=1e-3)
    save_lora(model, tmp_path / "lora_weights")
    assert {path.name for path in (tmp_path / "lora_weights").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "belongs_to.json",
    }
    assert json.loads((tmp_path / "lora_weights" / "adapter_config.json").read_text())["r"] == 4

    reloaded = small(backbone)
    load_lora(reloaded, tmp_path / "lora_weights")
    assert torch.equal(logits(reloaded), expected)
    assert not any(weight.requires_grad for weight in reloaded.language_model.parameters())

    by_peft = PeftModel.from_pretrained(load_language_model(backbone("qwen2")), str(tmp_path / "lora_weights"))
    with torch.no_grad():
        assert torch.equal(by_peft.eval()(IDS).logits, expected)

    merge_lora(model)
    assert not has_lora(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)
    model.save_pretrained(tmp_path / "export")
    export = PanoLlavaForConditionalGeneration.from_pretrained(tmp_path / "export")
    assert torch.equal(logits(export), logits(model))


def test_an_adapter_behind_other_eyes_is_warned_of(
    backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The shapes are the same, only the resampler or the projector has other weights."""
    model = small(backbone)
    add_lora(model, rank=2, alpha=4, dropout=0.0, target_modules=["q_proj"])
    save_lora(model, tmp_path)
    load_lora(small(backbone), tmp_path)
    assert "another resampler" not in caplog.text
    for part in ("vision.resampler.", "projector."):
        other = small(backbone)
        with torch.no_grad():
            next(weight for name, weight in other.named_parameters() if name.startswith(part)).add_(0.01)
        caplog.clear()
        load_lora(other, tmp_path)
        assert f"in {tmp_path} was trained with another resampler and projector" in caplog.text
    (tmp_path / "belongs_to.json").unlink()  # as plain peft writes it: nothing is known
    caplog.clear()
    load_lora(other := small(backbone), tmp_path, name="again")
    assert caplog.text == ""


def test_adapters_are_loaded_beside_each_other_and_switched(backbone: Backbone, tmp_path: Path) -> None:
    plain = logits(small(backbone))
    alone = {}
    for name, options in {"indoors": {"rank": 2}, "outdoors": {"rank": 4, "use_dora": True}}.items():
        model = small(backbone)
        add_lora(model, alpha=8, dropout=0.1, target_modules=["q_proj", "down_proj"], **options)  # type: ignore[arg-type]
        alone[name] = logits(stirred(model))
        save_lora(model, tmp_path / name)
    model = small(backbone)
    load_lora(model, tmp_path / "indoors", name="indoors")
    load_lora(model, tmp_path / "outdoors", name="outdoors")
    assert (lora_names(model), lora_in_use(model)) == (["indoors", "outdoors"], "outdoors")
    for name in ("outdoors", "indoors", None, "outdoors"):
        use_lora(model, name)
        assert lora_in_use(model) == name
        assert torch.equal(logits(model), plain if name is None else alone[name])
        assert not any(weight.requires_grad for weight in model.language_model.parameters())
    use_lora(model, "indoors")
    save_lora(model, tmp_path / "again")  # the one in use, as plain peft has it
    by_peft = PeftModel.from_pretrained(load_language_model(backbone("qwen2")), str(tmp_path / "again"))
    with torch.no_grad():
        assert torch.equal(by_peft.eval()(IDS).logits, alone["indoors"])
    with without_lora(model):
        assert not has_lora(model)
        assert torch.equal(logits(model), plain)
    assert (lora_names(model), lora_in_use(model)) == (["indoors", "outdoors"], "indoors")
    assert torch.equal(logits(model), alone["indoors"])
    with pytest.raises(ValueError, match=r"has LoRA already \(indoors, outdoors\)"):
        load_lora(model, tmp_path / "indoors", name="indoors")
    with pytest.raises(ValueError, match=r"no LoRA adapter 'upstairs'. Attached: indoors, outdoors"):
        use_lora(model, "upstairs")
    with pytest.raises(ValueError, match="letters, digits"):
        load_lora(model, tmp_path / "indoors", name="../up")
    merge_lora(model)
    assert lora_names(model) == []
    torch.testing.assert_close(logits(model), alone["indoors"], atol=1e-5, rtol=1e-4)


def test_a_second_adapter_that_does_not_fit_leaves_the_first_alone(backbone: Backbone, tmp_path: Path) -> None:
    model = small(backbone)
    add_lora(model, rank=2, alpha=4, dropout=0.0, target_modules=["q_proj"])
    save_lora(model, tmp_path)
    expected = logits(stirred(model))
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "r": 3}))
    with pytest.raises(ValueError, match=r"is inconsistent.*states rank 3, .* has 2"):
        load_lora(model, tmp_path, name="other")
    assert (lora_names(model), lora_in_use(model)) == (["default"], "default")
    assert torch.equal(logits(model), expected)


def test_an_export_with_lora_attached_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    model = small(backbone)
    add_lora(model, rank=2, alpha=4, dropout=0.0)
    with pytest.raises(ValueError, match=r"pano\.merge_lora_weights\(\) first.*keep_lora=True"):
        model.save_pretrained(tmp_path / "export")
    assert not (tmp_path / "export").exists()
    with pytest.raises(ValueError, match="has LoRA already"):
        add_lora(model, rank=2, alpha=4, dropout=0.0)
    with pytest.raises(ValueError, match="has LoRA already"):
        load_lora(model, tmp_path)


def test_mistakes_name_the_way_out(backbone: Backbone, tmp_path: Path) -> None:
    model = small(backbone)
    with pytest.raises(ValueError, match=r"'q_prj' not found.*Available: down_proj.*q_proj.*all-linear"):
        add_lora(model, rank=2, alpha=4, dropout=0.0, target_modules=["q_prj", "v_proj"])
    with pytest.raises(ValueError, match="no LoRA to save"):
        save_lora(model, tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors not found.*never opened"):
        load_lora(model, tmp_path)


def test_an_adapter_that_does_not_fit_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    model = small(backbone, "llama")
    add_lora(model, rank=4, alpha=8, dropout=0.0, target_modules=["q_proj"])
    save_lora(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(dict(list(tensors.items())[1:]), tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit.*1 weights are in only one"):
        load_lora(small(backbone, "llama"), tmp_path)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "r": 2}))
    with pytest.raises(ValueError, match=r"is inconsistent.*states rank 2, .* has 4"):
        load_lora(small(backbone, "llama"), tmp_path)


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["q_proj"]])
def test_an_adapter_of_plain_peft_may_come_with_the_vocabulary_it_was_trained_on(
    targets: list[str], backbone: Backbone, tmp_path: Path
) -> None:
    """peft saves output layer or embeddings beside it; those of another model are refused, with that reason."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets)
    trained = get_peft_model(load_language_model(backbone("llama")), config)
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(2), std=0.3)
    trained.save_pretrained(tmp_path, save_embedding_layers=True)
    model = small(backbone, "llama")
    load_lora(model, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(logits(model), trained.eval()(input_ids=IDS).logits)
    merge_lora(model)
    other = small(backbone, "llama")
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(2)
    before = other.get_output_embeddings().weight.clone()
    with pytest.raises(ValueError, match=r"comes with lm_head \(300, 32\) of the model that it was trained on.*merge"):
        load_lora(other, tmp_path)
    assert torch.equal(other.get_output_embeddings().weight, before)


def test_adapters_start_from_their_own_seed_and_stay_fp32(backbone: Backbone) -> None:
    state = torch.random.get_rng_state()
    weights = []
    for seed in (0, 0, 1):
        model = small(backbone, dtype=torch.bfloat16)
        add_lora(model, rank=2, alpha=4, dropout=0.0, seed=seed)
        adapters = [weight for name, weight in model.named_parameters() if "lora_A" in name]
        assert {weight.dtype for weight in adapters} == {torch.float32}
        weights.append(adapters[0])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_activation_checkpointing_with_lora_trains_every_adapter(backbone: Backbone) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = small(backbone)
        model.requires_grad_(False)
        add_lora(model, rank=2, alpha=4, dropout=0.0)
        stirred(model).train()
        if checkpointed:
            model.checkpoint_activations()
        model(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS, use_cache=False).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    assert all(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
