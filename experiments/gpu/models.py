"""Random models and batches of two sizes: as real ones are, and small for a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, Qwen2Config, SiglipVisionConfig

from panollava.batch import Batch
from panollava.crop.cameras import camera_tensor
from panollava.crop.strategies import AnyresE2pCrop
from panollava.data.dataset import Sample
from panollava.data.loader import Collate
from panollava.losses.objective.vicreg import VicregObjective
from panollava.model.lora import add_lora
from panollava.model.vision import PanoVision, VisionTower
from panollava.model.vlm import PanoLlavaForConditionalGeneration
from panollava.prompt import Encoded
from panollava.stages.language import InstructStage
from panollava.stages.protocol import Stage, StageSetup
from panollava.stages.vision import OverlapStage
from panollava.training.precision import Compute, choose_compute

CROP = {"type": "anyres_e2p"}
STRATEGY = AnyresE2pCrop()
VIEWS = len(STRATEGY.cameras())
WIDTH_FACTOR = 10.0
"""Of the queries' weights: random ones, as they are drawn, attend to all tokens alike."""


@dataclass(frozen=True)
class Size:
    """Shapes of models and batches.

    Attributes:
        vision: of SigLIP; ``image_size`` is the views'.
        language: of a Qwen2 that is compared with itself in fp32.
        half_b, seven_b: of the language models whose speed is measured, of 0.5 and 7 billion weights.
        latent: width of the resampler's tokens.
        resampler: of the language stages and of stage 1.
        text: tokens of a text.
        batch: panoramas of a step, with the encoder alone, with ``half_b`` and with ``seven_b``.
        rounds: steps that are measured.
        picture: height and width of a panorama whose views are cut.
    """

    vision: dict[str, Any]
    language: dict[str, Any]
    half_b: dict[str, Any]
    seven_b: dict[str, Any]
    latent: int
    resampler: dict[str, Any]
    bimamba: dict[str, Any]
    text: int
    batch: tuple[int, int, int]
    rounds: int
    picture: tuple[int, int]

    @property
    def patches(self) -> int:
        """Of a view, which are as many tokens."""
        return (self.vision["image_size"] // self.vision["patch_size"]) ** 2


_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_HALF_B = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
_HALF_B |= {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}
_SEVEN_B = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
_SEVEN_B |= {"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}
REAL = Size(
    vision={**_BASE, "image_size": 256, "patch_size": 16},
    language={**_HALF_B, "num_hidden_layers": 8},
    half_b=_HALF_B,
    seven_b=_SEVEN_B,
    latent=768,
    resampler={"type": "mlp"},
    bimamba={"width": 1024, "layers": 4},
    text=128,
    batch=(32, 8, 2),
    rounds=8,
    picture=(3000, 6000),
)
"""SigLIP-base with 9 views of 256 tokens; Qwen2.5 of 0.5 B and 7 B, of which 8 layers of the first are compared."""

_TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_TINY |= {"num_key_value_heads": 2, "vocab_size": 160, "tie_word_embeddings": True}
SMALL = Size(
    vision={**_BASE, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"image_size": 32, "patch_size": 8},
    language=_TINY,
    half_b=_TINY,
    seven_b={**_TINY, "hidden_size": 96, "tie_word_embeddings": False},
    latent=48,
    resampler={"type": "mlp", "depth": 2, "width": 64},
    bimamba={"width": 32, "layers": 2, "state": 8, "head_width": 16},
    text=12,
    batch=(4, 2, 2),
    rounds=2,
    picture=(96, 192),
)
"""Seconds on a CPU; the numbers have no meaning but that of the errors."""

SIZES = {"real": REAL, "small": SMALL}


@dataclass(frozen=True)
class Setting:
    """Where and with what a part runs.

    Attributes:
        device, size: as the names say.
        compute: of training there: bf16 where a GPU has it.
        folder: for files, removed afterwards.
    """

    device: torch.device
    size: Size
    compute: Compute
    folder: Path

    @classmethod
    def of(cls, device: str, size: Size, folder: Path) -> Setting:
        """On a device with its usual number format, and exact fp32 where fp32 is asked for."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        compute = choose_compute(device, "auto", section="")
        return cls(compute.device, size, compute, folder)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def in_dtype(self, dtype: torch.dtype) -> Compute:
        """The device in another number format."""
        return replace(self.compute, dtype=dtype)


def instruct_stage(
    setting: Setting,
    language: dict[str, Any],
    dtype: torch.dtype,
    name: str = "resampler",
    *,
    attention: str = "sdpa",
    resampler: dict[str, Any] | None = None,
    dropout: float = 0.1,
) -> Stage:
    """Stage 2, or stage 3 (``finetune``) with LoRA: random weights, the same for each number format and kernel.

    Args:
        language: shape of its language model.
        dtype: of the backbones.
        attention: kernel of both backbones.
        resampler: in place of the size's.
        dropout: of LoRA.
    """
    size, tower = setting.size, _tower(setting, dtype, attention)
    with setting.device:
        backbone = AutoModelForCausalLM.from_config(
            Qwen2Config(**language, max_position_embeddings=32768), attn_implementation=attention
        )
    with torch.no_grad():
        for block in backbone.model.layers:
            block.self_attn.q_proj.weight.mul_(WIDTH_FACTOR)
    model = PanoLlavaForConditionalGeneration.from_backbones(
        tower,
        cast(backbone, dtype),
        resampler=resampler or size.resampler,
        position={"type": "yaw_pitch"},
        projector={"type": "mlp"},
        crop=CROP,
        image_token_id=language["vocab_size"],
        latent_width=size.latent,
    ).eval()
    if name == "finetune":
        add_lora(model, dropout=dropout)
    return InstructStage(model.to(setting.device), StageSetup(name)).train()


def overlap_stage(setting: Setting, dtype: torch.dtype, resampler: dict[str, Any]) -> Stage:
    """Stage 1."""
    vision = PanoVision.build(_tower(setting, dtype), resampler=resampler, latent_width=setting.size.latent)
    return OverlapStage(vision, StageSetup("vision"), objective=VicregObjective()).to(setting.device).train()


def _tower(setting: Setting, dtype: torch.dtype, attention: str = "sdpa") -> VisionTower:
    config, side = SiglipVisionConfig(**setting.size.vision, vision_use_head=False), setting.size.vision["image_size"]
    torch.manual_seed(0)
    with setting.device:
        encoder = AutoModel.from_config(config, attn_implementation=attention)
    return VisionTower(cast(encoder, dtype), image_size=(side, side), mean=[0.5] * 3, std=[0.5] * 3)


def cast(module: Any, dtype: torch.dtype) -> Any:
    """The module with its weights in another format; the frequencies of rotary positions stay in fp32.

    In bf16 they would turn the last of 2,400 positions by radians; a model that is opened in bf16 keeps them in fp32.
    """
    for weight in module.parameters():
        weight.data = weight.data.to(dtype)
    return module


def panoramas(size: Size, count: int, seed: int = 0) -> Batch:
    """Views of random pixels, on the CPU."""
    return _collated([_sample(size, index, seed) for index in range(count)])


def with_texts(size: Size, language: dict[str, Any], count: int, seed: int = 0) -> Batch:
    """Panoramas with a random text each, padded on the right."""
    samples = [_sample(size, index, seed) for index in range(count)]
    texts = _texts(size, language, count, seed)
    return _collated([replace(one, text=text) for one, text in zip(samples, texts, strict=True)])


def about_one(size: Size, language: dict[str, Any], count: int) -> tuple[Batch, Batch]:
    """Several texts about one panorama: a row for each, and all in one row behind their common prefix."""
    samples = [replace(_sample(size, 0, 0), text=text) for text in _texts(size, language, count, 0)]
    shared = [replace(one, views=one.views if at == 0 else None, shares="one") for at, one in enumerate(samples)]
    return _collated(samples), _collated(shared, language["vocab_size"])


def _sample(size: Size, index: int, seed: int) -> Sample:
    generator, side = torch.Generator().manual_seed(1000 * seed + index), size.vision["image_size"]
    views = torch.randint(0, 256, (VIEWS, 3, side, side), dtype=torch.uint8, generator=generator)
    return Sample(f"sample {index}", views, camera_tensor(STRATEGY.cameras()), None)


def _texts(size: Size, language: dict[str, Any], count: int, seed: int) -> list[Encoded]:
    """Each shorter than the one before it; all tokens behind the image are targets."""
    generator, vocabulary = torch.Generator().manual_seed(seed), language["vocab_size"]
    before, found = [0, *[vocabulary] * (VIEWS * size.patches)], []
    for index in range(count):
        length = max(2, size.text - 3 * index)
        text = torch.randint(0, vocabulary, (length,), generator=generator).tolist()
        found.append(Encoded([*before, *text], [False] * len(before) + [True] * length, cut=0))
    return found


def _collated(samples: list[Sample], image_id: int = -1) -> Batch:
    batch = Collate(image_id=image_id)(samples)
    assert isinstance(batch, Batch)
    return batch
