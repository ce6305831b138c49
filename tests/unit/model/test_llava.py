"""What fits the layout of LLaVA, and that what is written computes the same; stock classes alone open it elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support import chat_templates
from support.hub_folders import CHATML
from transformers import AutoProcessor, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from panollava.chat_format import ChatFormat
from panollava.model.api import PanoLlava
from panollava.model.llava import TOLERANCE, check_llava, misfits, pictures, save_llava
from panollava.model.lora import add_lora
from panollava.prompt import IMAGE_TOKEN

Backbone = Callable[[str], Path]
FITS: dict[str, Any] = {"resampler": {"type": "identity"}, "position": {"type": "none"}, "projector": {"type": "mlp"}}


def fitting(backbone: Backbone, vision: str = "siglip", language: str = "llama", layer: int = -2, **other: Any) -> Any:
    """A model that fits, whose weights are large enough that what it says depends on what it sees."""
    pano = PanoLlava.from_backbones(str(backbone(vision)), str(backbone(language)), **(FITS | other))
    pano.model.vision.tower.feature_layer = pano.model.config.feature_layer = layer
    with torch.no_grad():
        for weight in pano.model.language_model.parameters():
            weight.mul_(10 if weight.ndim == 2 else 1)
        for weight in pano.model.projector.parameters():
            weight.mul_(3)
    return pano


CASES = [
    pytest.param("siglip", "llama", -2, {}, id="siglip-llama"),
    pytest.param("siglip", "qwen2", -3, {"crop": {"type": "anyres_e2p", "view_size": 48}}, id="siglip-48-qwen2-tied"),
    pytest.param("siglip2", "qwen3", -2, {"projector": {"type": "mlp", "width": 20}}, id="siglip2-qwen3-narrow"),
    pytest.param("siglip_vision_only", "mistral", -2, {"crop": {"type": "cubemap"}}, id="siglip-alone-mistral"),
    pytest.param("clip", "llama", -1, {}, id="clip-last-llama"),
    pytest.param("clip_vision_only", "qwen3", -2, {"crop": {"type": "cubemap", "view_size": 40}}, id="clip-40-qwen3"),
]


@pytest.mark.parametrize(("vision", "language", "layer", "other"), CASES)
def test_logits_weights_and_greedy_text_are_the_model_s(
    vision: str, language: str, layer: int, other: dict[str, Any], backbone: Backbone, tmp_path: Path
) -> None:
    pano = fitting(backbone, vision, language, layer, **other)
    assert misfits(pano) == []
    save_llava(tmp_path, pano, torch.float32)
    same, own = check_llava(tmp_path, pano, torch.float32)
    assert same <= 1e-6
    assert own <= TOLERANCE
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(0)
    height, width = pano.model.vision.tower.image_size
    views = torch.randint(0, 256, (len(pano.crop.camera_rows), 3, height, width), generator=generator).to(torch.uint8)
    content = [{"type": "image", "image": view} for view in pictures(views)]
    message = {"role": "user", "content": [*content, {"type": "text", "text": "what is red?"}]}
    inputs = processor.apply_chat_template(
        [message], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    encoded = pano.encode("what is red?")
    assert inputs["input_ids"][0].tolist() == encoded.ids
    batch = pano.batch([views], [encoded])
    with torch.no_grad():
        expected = pano.model(**{key: one for key, one in batch.model_inputs.items() if one is not None}).logits
        found = stock(**inputs).logits
        text = stock.generate(**inputs, max_new_tokens=12)[0, len(encoded.ids) :]
    assert expected.std() > 1
    assert (found[..., : expected.shape[-1]] - expected).abs().max() <= TOLERANCE
    (said,) = pano.answer(batch, max_new_tokens=12)
    assert processor.decode(text, skip_special_tokens=True).strip() == said
    other_views = pano.batch([255 - views], [encoded])
    assert pano.answer(other_views, max_new_tokens=12) != [said]


def test_the_names_are_those_of_llava_and_nothing_names_a_place(backbone: Backbone, tmp_path: Path) -> None:
    pano = fitting(backbone)
    save_llava(tmp_path, pano, torch.bfloat16)
    assert max(check_llava(tmp_path, pano, torch.bfloat16)) <= TOLERANCE
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names, types = set(file.keys()), {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert types == {torch.bfloat16}
    starts = (
        "model.vision_tower.vision_model.",
        "model.multi_modal_projector.linear_",
        "model.language_model.",
        "lm_head.weight",
    )
    assert [name for name in names if not name.startswith(starts)] == []
    assert all(any(name.startswith(start) for name in names) for start in starts)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["image_seq_length"], config["image_token_index"]) == ("llava", 16, 300)
    assert config["text_config"]["vocab_size"] == 301
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert str(backbone("siglip").parent).encode() not in written


def test_the_placeholder_is_never_said(backbone: Backbone, tmp_path: Path) -> None:
    pano = fitting(backbone)
    save_llava(tmp_path, pano, torch.float32)
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    rows = stock.get_output_embeddings().weight
    torch.testing.assert_close(rows[300], rows[:300].mean(dim=0))
    assert stock.generation_config.suppress_tokens == [300]


MISFITS = [
    pytest.param({"resampler": {"type": "mlp", "depth": 1}}, "model.resampler.type=mlp", id="resampler"),
    pytest.param({"resampler": {"type": "pool"}}, "model.resampler.type=pool", id="pool"),
    pytest.param({"position": {"type": "yaw_pitch"}}, "model.position.type=yaw_pitch", id="position"),
    pytest.param({"projector": {"type": "linear"}}, "model.projector.type=linear", id="projector"),
    pytest.param({"projector": {"type": "mlp", "width": 33}}, "model.projector.width=33", id="width"),
    pytest.param({"projector": {"type": "mlp", "input_norm": True}}, "model.projector.input_norm=true", id="norm"),
    pytest.param({"join": "mean"}, "model.join=mean", id="join"),
    pytest.param({"tokens_per_side": 2}, "model.tokens_per_side=2", id="tokens_per_side"),
    pytest.param({"layer": -1}, "model.vision.feature_layer=-1", id="layer"),
    pytest.param({"vision": "dinov2"}, "model.vision.name: the encoder is dinov2", id="encoder"),
    pytest.param({"vision": "timm_vit"}, "model.vision.name: the encoder is timm_wrapper", id="timm"),
    pytest.param({"crop": {"type": "cubemap", "view_size": [32, 40]}}, "crop.view_size=[32, 40]", id="size"),
]


@pytest.mark.parametrize(("changed", "key"), MISFITS)
def test_what_does_not_fit_is_named_by_its_key_with_a_way_out(
    changed: dict[str, Any], key: str, backbone: Backbone
) -> None:
    (found,) = misfits(fitting(backbone, **changed))
    assert found.startswith(key)
    assert "Train" in found


def test_all_that_does_not_fit_is_named_at_once(backbone: Backbone) -> None:
    other = {"resampler": {"type": "mlp"}, "position": {"type": "yaw_pitch"}, "projector": {"type": "linear"}}
    keys = ["model.vision.feature_layer", "model.resampler.type", "model.position.type", "model.projector.type"]
    assert [one.partition("=")[0] for one in misfits(fitting(backbone, layer=-1, **other))] == keys


def test_decoding_that_counts_the_question_elsewhere_and_adapters_are_named(backbone: Backbone) -> None:
    pano = fitting(backbone)
    add_lora(pano.model, rank=2)
    pano.generation = pano.generation.changed({"repetition_penalty": 1.5, "no_repeat_ngram_size": 2})
    merge, penalty, ngrams = misfits(pano)
    assert merge.startswith("merge=false: ")
    assert penalty.startswith("generation.repetition_penalty=1.5: ")
    assert ngrams.startswith("generation.no_repeat_ngram_size=2: ")


def test_other_weights_and_other_logits_are_found(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pano = fitting(backbone)
    for dtype, message in (
        (torch.float32, r"logits that differ by .* allowed is 0\.0001"),
        (torch.bfloat16, "linear_1"),
    ):
        save_llava(tmp_path / str(dtype), pano, dtype)
        with torch.no_grad():
            pano.model.projector.layers[0].weight.mul_(1.01)
        with pytest.raises(ValueError, match=message):
            check_llava(tmp_path / str(dtype), pano, dtype)
    # The silent error: an encoder whose last norm the stock model leaves out.
    pano.model.vision.tower.feature_layer = pano.model.config.feature_layer = -1
    save_llava(tmp_path / "last", pano, torch.float32)
    with pytest.raises(ValueError, match="logits that differ"):
        check_llava(tmp_path / "last", pano, torch.float32)
    monkeypatch.setattr("panollava.model.llava.PIXELS", 0.0)
    with pytest.raises(ValueError, match=r"normalises pixels in another way: they differ by .*e-0[78]"):
        check_llava(tmp_path / "last", pano, torch.float32)


TEMPLATES = [CHATML, None, *(getattr(chat_templates, name) for name in ("QWEN2", "QWEN3", "LLAMA32"))]


@pytest.mark.parametrize("template", TEMPLATES, ids=["chatml", "none", "qwen2", "qwen3", "llama32"])
@pytest.mark.parametrize("system", [None, "Be \"brief\"\nand 'kind' {{ here }}."], ids=["plain", "system"])
def test_a_template_of_the_turns_writes_what_the_format_writes(
    template: str | None, system: str | None, backbone: Backbone
) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        backbone("qwen2" if "<|im_start|>" in (template or "") else "llama")
    )
    tokenizer.chat_template = template
    form = ChatFormat(tokenizer, system)
    turns = [(" what? ", "a {{ ring }}\n"), ("and\nbehind?", "nothing"), ("무엇?", None)]
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        parts: Any = question if messages else [{"type": "image"}, {"type": "text", "text": question}]
        messages += [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    written = tokenizer.apply_chat_template(
        messages[:-1], chat_template=form.as_template(IMAGE_TOKEN), tokenize=False, add_generation_prompt=True
    )
    assert written == form.render(turns, IMAGE_TOKEN).text
