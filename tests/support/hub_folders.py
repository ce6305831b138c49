"""Writes small, random but true hub folders, so that what real hub names go through runs offline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from panollava.model.hub import SHIPPED

SIZE, PATCH, WIDTH = 32, 8, 32
"""Side of a view, of a patch, and the width that the encoders' own processors and configurations name."""

VISION_SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": PATCH,
}
TEXT_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
TINY_TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "vocab_size": 64,
}
CLIP_SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CHATML = (
    ""
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


def siglip(folder: Path) -> None:
    """A dual encoder, as `google/siglip-base-patch16-224` and the fixed-size SigLIP 2 checkpoints are."""
    config = SiglipConfig(
        text_config={**TINY_TEXT, "projection_size": WIDTH},
        vision_config={**VISION_SHAPE, "intermediate_size": 48},
    )
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)


def siglip_vision_only(folder: Path) -> None:
    """The vision half alone."""
    SiglipVisionModel(SiglipVisionConfig(**VISION_SHAPE, intermediate_size=48)).save_pretrained(folder)
    SiglipImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)


def siglip2(folder: Path) -> None:
    """Fixed-size SigLIP 2: the SigLIP architecture with the Gemma vocabulary and its tanh GELU."""
    config = SiglipConfig(
        text_config={**TINY_TEXT, "vocab_size": 128, "projection_size": WIDTH},
        vision_config={**VISION_SHAPE, "intermediate_size": 48, "hidden_act": "gelu_pytorch_tanh"},
    )
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=[0.4, 0.5, 0.6]).save_pretrained(folder)


def clip(folder: Path) -> None:
    """A dual encoder with a CLS token and a processor that names a shortest edge and a crop."""
    config = CLIPConfig(text_config=TINY_TEXT, vision_config={**VISION_SHAPE, "intermediate_size": 48})
    CLIPModel(config).save_pretrained(folder)
    crop = {"height": SIZE, "width": SIZE}
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=crop).save_pretrained(folder)


def clip_vision_only(folder: Path) -> None:
    """The vision half, and no preprocessor_config.json."""
    CLIPVisionModel(CLIPVisionConfig(**VISION_SHAPE, intermediate_size=48)).save_pretrained(folder)


def dinov2(folder: Path) -> None:
    """Trained at another size than its processor's, as the hub's are (518 and 224)."""
    Dinov2Model(Dinov2Config(**{**VISION_SHAPE, "image_size": 48}, mlp_ratio=2)).save_pretrained(folder)
    _dinov2_processor(folder)


def dinov2_registers(folder: Path) -> None:
    """With four register tokens."""
    config = Dinov2WithRegistersConfig(**{**VISION_SHAPE, "image_size": 48}, mlp_ratio=2, num_register_tokens=4)
    Dinov2WithRegistersModel(config).save_pretrained(folder)
    _dinov2_processor(folder)


def timm_vit(folder: Path) -> None:
    """As `timm/vit_tiny_patch16_224...` lies on the hub: written by timm itself, with its classifier."""
    arguments = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 3, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=7, **arguments)
    model.pretrained_cfg["input_size"] = (3, SIZE, SIZE)
    save_for_hf(model, folder, model_args={**arguments, "num_classes": 7}, safe_serialization=True)


def qwen2(folder: Path) -> None:
    """Tied embeddings, padded vocabulary, ChatML."""
    tokenizer(folder, CHATML)
    Qwen2ForCausalLM(Qwen2Config(**TEXT_SHAPE, **_ids(pad_to=384), tie_word_embeddings=True)).save_pretrained(folder)


def qwen3(folder: Path) -> None:
    """Tied embeddings, padded vocabulary, ChatML."""
    tokenizer(folder, CHATML)
    config = Qwen3Config(**TEXT_SHAPE, **_ids(pad_to=384), head_dim=8, tie_word_embeddings=True)
    Qwen3ForCausalLM(config).save_pretrained(folder)


def llama(folder: Path) -> None:
    """Llama 2 and Vicuna: no chat template, `<s>`/`</s>`, as many embeddings as the tokenizer has tokens."""
    tokenizer(folder, None, bos="<s>", eos="</s>")
    LlamaForCausalLM(LlamaConfig(**TEXT_SHAPE, **_ids())).save_pretrained(folder)


def mistral(folder: Path) -> None:
    """A template that refuses system turns."""
    tokenizer(folder, MISTRAL_TEMPLATE, bos="<s>", eos="</s>")
    MistralForCausalLM(MistralConfig(**TEXT_SHAPE, **_ids(), sliding_window=None)).save_pretrained(folder)


ENCODERS: dict[str, Callable[[Path], None]] = {
    writer.__name__: writer
    for writer in (
        siglip,
        siglip_vision_only,
        siglip2,
        clip,
        clip_vision_only,
        dinov2,
        dinov2_registers,
        timm_vit,
    )
}
LANGUAGE_MODELS: dict[str, Callable[[Path], None]] = {
    writer.__name__: writer for writer in (qwen2, qwen3, llama, mistral)
}
VOCABULARY = 300


def write(name: str, folder: Path, seed: int = 0) -> Path:
    """The folder of a family, written once.

    Args:
        name: key of ``ENCODERS`` or ``LANGUAGE_MODELS``.
        folder: where families lie, one folder each.
        seed: of the random weights.
    """
    path = folder / name
    if not path.exists():
        path.mkdir(parents=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            {**ENCODERS, **LANGUAGE_MODELS}[name](path)
    return path


def small_clip(path: Path) -> Path:
    """A CLIP whose processor would cut out the middle of a picture, as the published ones do."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED["panollava/tiny-qwen3"])
    tokenizer.save_pretrained(path)
    text = {**CLIP_SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "eos_token_id": 2}
    config = CLIPConfig(
        text_config=text, vision_config={**CLIP_SHAPE, "image_size": SIZE, "patch_size": 8}, projection_dim=16
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(path)
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(path)
    return path


def tokenizer(
    folder: Path, chat_template: str | None, *, bos: str | None = None, eos: str = "<|im_end|>"
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of exactly ``VOCABULARY`` tokens."""
    special = ["<pad>", *([bos] if bos else ["<|im_start|>"]), eos]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    text = [
        "what is the colour of the cube to the right? red green blue 360°",
        "0123456789 a b c d e f g h",
    ] * 4
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(text, trainer)
    assert core.get_vocab_size() == VOCABULARY
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token="<pad>")
    wrapped.chat_template = chat_template
    wrapped.save_pretrained(folder)
    return wrapped


def _ids(pad_to: int = VOCABULARY) -> dict[str, Any]:
    return {"vocab_size": pad_to, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _dinov2_processor(folder: Path) -> None:
    """BitImageProcessor, as the hub's DINOv2 has it."""
    settings = {
        "image_processor_type": "BitImageProcessor",
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_center_crop": True,
        "size": {"shortest_edge": 36},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
