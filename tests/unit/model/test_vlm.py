"""The composite: fusion, masks, loss, generation, precision, saving and loading."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import composite
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, Gemma2Config, GraniteConfig

from panollava.batch import IGNORE_INDEX
from panollava.crop.crop import Crop
from panollava.model.hub import load_language_model
from panollava.model.vision import PanoVision, VisionTower
from panollava.model.vlm import PanoLlavaForConditionalGeneration
from panollava.stages.language import InstructStage
from panollava.stages.protocol import StageSetup

Backbone = Callable[[str], Path]
MLP = {"type": "mlp", "depth": 2, "width": 24}
BIMAMBA = {"type": "bimamba", "width": 16, "layers": 2, "state": 4, "head_width": 8}
COMBINATIONS = [
    ("siglip", "qwen2", MLP),
    ("siglip2", "qwen3", BIMAMBA),
    ("clip", "llama", MLP),
    ("dinov2_registers", "mistral", BIMAMBA),
    ("timm_vit", "qwen2", BIMAMBA),
]
VIEWS, TOKENS = 5, 16
TINY = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 1, "pad_token_id": 0}


def small(backbone: Backbone, encoder: str = "siglip", language: str = "qwen2", **settings: Any) -> Any:
    return composite(backbone(encoder), backbone(language), **settings)[0]


def inputs(
    model: PanoLlavaForConditionalGeneration, texts: tuple[int, ...] = (6, 6), seed: int = 0
) -> dict[str, Tensor]:
    """Left-padded prompts of some text tokens around the image, the same for a row however it is batched."""
    config = model.config
    cameras = Crop.from_spec(config.crop, view_size=(32, 32)).camera_rows
    rows, views = [], []
    for index, length in enumerate(texts):
        generator = torch.Generator().manual_seed(seed + index)
        words = torch.randint(10, 250, (length,), generator=generator)
        image = torch.full((VIEWS * TOKENS,), config.image_token_id)
        rows.append(torch.cat([words[:2], image, words[2:]]))
        views.append(torch.randint(0, 256, (VIEWS, 3, 32, 32), dtype=torch.uint8, generator=generator))
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.cat([torch.zeros(longest - len(row), dtype=torch.long), row]) for row in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.stack(views),
        "cameras": cameras.expand(len(rows), -1, -1).clone(),
        "view_mask": torch.ones(len(rows), VIEWS, dtype=torch.bool),
    }


def labels_of(batch: dict[str, Tensor], last: int = 3) -> Tensor:
    labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
    labels[:, -last:] = batch["input_ids"][:, -last:]
    return labels


@pytest.mark.parametrize(("encoder", "language", "resampler"), COMBINATIONS)
def test_every_trainable_parameter_gets_a_gradient(
    encoder: str, language: str, resampler: dict[str, Any], backbone: Backbone
) -> None:
    model = small(backbone, encoder, language, resampler=resampler).train()
    model.vision.tower.train_only("all")
    batch = inputs(model)
    model(**batch, labels=labels_of(batch)).loss.backward()
    without = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert without == []
    assert all(weight.grad is None for weight in model.parameters() if not weight.requires_grad)
    parts = {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert parts == {"vision", "projector", "language_model"}  # this position code has no weights


@torch.no_grad()
def test_backbones_are_used_as_they_are(backbone: Backbone) -> None:
    model = small(backbone, "clip", "llama")
    ids = torch.arange(10, 30)[None]
    alone = load_language_model(backbone("llama"))
    assert torch.equal(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, alone(ids).logits)
    pixels = inputs(model)["pixel_values"]
    alone = VisionTower.from_pretrained(backbone("clip"))
    assert torch.equal(model.vision.features(pixels)[1, 2], alone(pixels[1])[2])


@torch.no_grad()
def test_image_tokens_take_the_placeholders_in_order(backbone: Backbone) -> None:
    model = small(backbone)
    batch = inputs(model)
    tokens = model.encode_views(batch["pixel_values"], cameras=batch["cameras"]).flatten(1, 2)
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    embeddings[:, 2 : 2 + VIEWS * TOKENS] = tokens
    expected = model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(model(**batch).logits, expected)


@pytest.mark.parametrize("language", ["qwen2", "qwen3", "llama", "mistral"])
@torch.no_grad()
def test_generation_does_not_depend_on_padding_cache_or_ready_features(language: str, backbone: Backbone) -> None:
    model = small(backbone, "siglip", language)
    model.generation_config.eos_token_id = None
    options = {"max_new_tokens": 6, "do_sample": False}
    batch = inputs(model, texts=(4, 9))
    length = batch["input_ids"].shape[1]
    together = model.generate(**batch, **options)[:, length:]
    assert together.shape == (2, 6)
    for row, texts in enumerate([4, 9]):
        single = inputs(model, texts=(texts,), seed=row)
        alone = model.generate(**single, **options)
        assert torch.equal(alone[0, single["input_ids"].shape[1] :], together[row])
    assert torch.equal(model.generate(**batch, **options, use_cache=False)[:, length:], together)
    features = model.vision.features(batch.pop("pixel_values"))
    assert torch.equal(model.generate(**batch, vision_features=features, **options)[:, length:], together)


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_the_tower_runs_once_a_generation(beams: int, backbone: Backbone) -> None:
    model = small(backbone)
    calls: list[int] = []
    model.vision.tower.register_forward_hook(lambda *_: calls.append(1))
    model.generate(**inputs(model), max_new_tokens=5, do_sample=False, num_beams=beams, repetition_penalty=1.2)
    assert len(calls) == 1


@torch.no_grad()
def test_right_padding_changes_nothing(backbone: Backbone) -> None:
    model = small(backbone)
    batch = inputs(model)
    expected = model(**batch, labels=labels_of(batch))
    padded = dict(batch)
    padded["input_ids"] = torch.nn.functional.pad(batch["input_ids"], (0, 5))
    padded["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 5))
    labels = torch.nn.functional.pad(labels_of(batch), (0, 5), value=IGNORE_INDEX)
    output = model(**padded, labels=labels)
    torch.testing.assert_close(output.logits[:, :-5], expected.logits)
    torch.testing.assert_close(output.loss, expected.loss)


@torch.no_grad()
def test_padding_views_are_left_out(backbone: Backbone) -> None:
    model = small(backbone)
    batch = inputs(model, texts=(6,))
    padded = dict(batch)
    padded["pixel_values"] = torch.cat([batch["pixel_values"], batch["pixel_values"][:, :2]], dim=1)
    padded["cameras"] = torch.cat([batch["cameras"], batch["cameras"][:, :2]], dim=1)
    padded["view_mask"] = torch.arange(VIEWS + 2)[None] < VIEWS
    torch.testing.assert_close(model(**padded).logits, model(**batch).logits)


@torch.no_grad()
def test_only_kept_positions_pay_the_vocabulary(backbone: Backbone) -> None:
    model = small(backbone)
    batch = inputs(model)
    labels = labels_of(batch)
    full = model(**batch, labels=labels)
    positions = torch.nonzero((labels[:, 1:] != IGNORE_INDEX).any(dim=0)).flatten()
    seen: list[int] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    kept = model(**batch, labels=labels, logits_to_keep=positions)
    last = model(**batch, labels=labels, logits_to_keep=4)
    assert seen == [3, 4]
    torch.testing.assert_close(kept.logits, full.logits[:, positions])
    torch.testing.assert_close(kept.loss, full.loss)
    torch.testing.assert_close(last.loss, full.loss)
    picked = full.logits[:, -4:-1].log_softmax(-1).gather(2, batch["input_ids"][:, -3:, None])
    torch.testing.assert_close(full.loss, -picked.mean())


def test_states_under_the_head_give_the_logits_of_most_families(backbone: Backbone) -> None:
    """Not of those that transform what the head gives, which is found whatever their key is called."""
    model = small(backbone)
    batch = inputs(model)
    positions = torch.tensor([-4, -2])
    assert model.is_head_linear()
    states = model.states(positions, **batch)
    torch.testing.assert_close(model.get_output_embeddings()(states), model(**batch).logits[:, positions])
    for config in (
        Gemma2Config(**TINY, head_dim=8, final_logit_softcapping=30.0),
        GraniteConfig(**TINY, logits_scaling=8.0),
    ):
        model.language_model = AutoModelForCausalLM.from_config(config)
        assert not model.is_head_linear()
    model.language_model = AutoModelForCausalLM.from_config(
        Gemma2Config(**TINY, head_dim=8, final_logit_softcapping=None)
    )
    assert model.is_head_linear()


def test_a_stage_is_built_on_the_cpu_whatever_the_kernel(backbone: Backbone) -> None:
    def only_on_a_gpu(module: Any, query: Tensor, *_: Any, **options: Any) -> Any:
        raise RuntimeError(f"FlashAttention only supports CUDA tensors, not {query.device}")

    AttentionInterface.register("only_on_a_gpu", only_on_a_gpu)
    model = small(backbone)
    batch = inputs(model)
    model.language_model.set_attn_implementation("only_on_a_gpu")
    stage = InstructStage(model, StageSetup("finetune"))
    assert stage.parts_logits
    assert model.language_model.config._attn_implementation == "only_on_a_gpu"
    with pytest.raises(RuntimeError, match="only supports CUDA"):
        model(**batch)


def test_a_wrong_number_of_placeholders_names_both(backbone: Backbone) -> None:
    model = small(backbone)
    batch = inputs(model)
    batch["input_ids"][1, 5] = 11
    with pytest.raises(ValueError, match=r"\[80, 79\] image placeholders.*\[80, 80\] image tokens"):
        model(**batch)
    for name in ("pixel_values", "cameras"):
        with pytest.raises(ValueError, match=r"no panorama was given|cameras are missing"):
            model(**{key: value for key, value in inputs(model).items() if key != name})
    with pytest.raises(ValueError, match=r"expected \(B, V, 16, 32\)"):
        model.encode_views(vision_features=torch.zeros(1, 5, 9, 32), cameras=batch["cameras"][:1])


def test_components_draw_from_their_own_generators(backbone: Backbone) -> None:
    before = torch.random.get_rng_state()
    first = small(backbone, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = small(backbone, seed=1, resampler={"type": "mlp", "depth": 4, "width": 8})
    again = small(backbone, seed=2)
    weight = "projector.layers.0.weight"
    assert torch.equal(first.state_dict()[weight], other.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], again.state_dict()[weight])


@pytest.mark.parametrize("resampler", [MLP, BIMAMBA])
def test_stage_one_and_the_composite_start_from_the_same_resampler(
    resampler: dict[str, Any], backbone: Backbone
) -> None:
    alone = PanoVision.build(
        VisionTower.from_pretrained(backbone("siglip")), resampler=resampler, latent_width=40, seed=3
    )
    whole = small(backbone, resampler=resampler, seed=3).vision
    assert (whole.tokens_per_view, whole.token_grid, whole.width) == (16, (4, 4), 40)
    weights = whole.resampler.state_dict()
    assert weights.keys() == alone.resampler.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in alone.resampler.state_dict().items())


def test_unknown_components_and_keywords_name_what_there_is(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match=r"resampler.*'mlpp'.*mlp"):
        small(backbone, resampler={"type": "mlpp"})
    with pytest.raises(ValueError, match=r"model\.resampler: 'mlp' has no 'dept'.*depth"):
        small(backbone, resampler={"type": "mlp", "dept": 2})


def test_frozen_backbones_may_be_bf16_while_the_rest_trains_in_fp32(backbone: Backbone, tmp_path: Path) -> None:
    model = small(backbone, dtype=torch.bfloat16)
    model.vision.tower.requires_grad_(False)
    model.language_model.requires_grad_(False)
    batch = inputs(model)
    output = model(**batch, labels=labels_of(batch))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trained} == {torch.float32}
    assert all(weight.grad is not None for weight in trained)
    model.save_pretrained(tmp_path)
    reloaded = PanoLlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert {k: v.dtype for k, v in reloaded.state_dict().items()} == {k: v.dtype for k, v in model.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(reloaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(("encoder", "language", "resampler"), COMBINATIONS)
@torch.no_grad()
def test_an_export_reloads_with_every_buffer_and_tie(
    encoder: str, language: str, resampler: dict[str, Any], backbone: Backbone, tmp_path: Path
) -> None:
    model = small(backbone, encoder, language, resampler=resampler)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    reloaded = PanoLlavaForConditionalGeneration.from_pretrained(tmp_path)
    buffers = dict(reloaded.named_non_persistent_buffers())
    for name, buffer in model.named_non_persistent_buffers():
        assert torch.equal(buffers[name], buffer), name
    tied = reloaded.get_output_embeddings().weight is reloaded.get_input_embeddings().weight
    assert tied == language.startswith("qwen")
    batch = inputs(model)
    assert torch.equal(reloaded(**batch).logits, model(**batch).logits)


def test_a_batch_without_a_label_has_the_loss_0(backbone: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    model = small(backbone)
    batch = inputs(model)
    labels = torch.full_like(batch["input_ids"], -100)
    for kept in (0, 2):
        loss = model(**batch, labels=labels, logits_to_keep=kept).loss
        loss.backward()
        assert loss.item() == 0
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert "All labels are -100" in caplog.text


def test_a_damaged_export_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    model = small(backbone)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("projector.layers.0.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing.*projector\.layers\.0\.weight"):
        PanoLlavaForConditionalGeneration.from_pretrained(tmp_path)


def test_the_configuration_alone_rebuilds_the_shapes(backbone: Backbone, tmp_path: Path) -> None:
    model = small(backbone, "timm_vit", "llama")
    model.config.save_pretrained(tmp_path)
    config = type(model.config).from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["vision_name"] == str(backbone("timm_vit"))
    rebuilt = PanoLlavaForConditionalGeneration(config)
    assert {k: v.shape for k, v in rebuilt.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_activation_checkpointing_gives_the_same_gradients(backbone: Backbone) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = small(backbone, "timm_vit", "qwen2").train()
        batch = inputs(model)
        if checkpointed:
            model.checkpoint_activations()
        model(**batch, labels=labels_of(batch), use_cache=False).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_transformers_trainer_accumulates_means(backbone: Backbone, tmp_path: Path) -> None:
    """Two batches of two are logged as one of four; labels are as many in each row."""
    from transformers import Trainer, TrainingArguments

    def first_loss(batch_size: int, accumulated: int) -> float:
        model = small(backbone)
        batch = inputs(model, (6, 6, 6, 6))
        batch["labels"] = labels_of(batch)
        rows = [{name: value[row] for name, value in batch.items()} for row in range(4)]
        options = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulated,
            max_steps=1,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
        )
        trainer = Trainer(model=model, args=options, train_dataset=rows)
        trainer.train()
        return trainer.state.log_history[0]["loss"]

    assert first_loss(2, 2) == pytest.approx(first_loss(4, 1), abs=1e-3)
