"""Random models and batches of two sizes: as real ones are, and small for a CPU."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForCausalLM, Qwen2Config, SiglipVisionConfig

from panollava.batch import IGNORE_INDEX, PAD, PREFIX, Batch, pack
from panollava.crop.cameras import camera_tensor
from panollava.crop.strategies import AnyresE2pCrop
from panollava.losses.objective.vicreg import VicregObjective
from panollava.model.lora import add_lora
from panollava.model.vision import PanoVision, VisionTower
from panollava.model.vlm import PanoLlavaForConditionalGeneration
from panollava.stages.language import InstructStage
from panollava.stages.protocol import Stage, StageSetup
from panollava.stages.vision import OverlapStage
from panollava.training.distributed import DistributedContext
from panollava.training.loop import OptimiserStep
from panollava.training.options import OptimOptions, make_optimizer
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
        name: in the table.
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

    name: str
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
    name="real",
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
    name="small",
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


def composite(
    setting: Setting,
    language: dict[str, Any],
    *,
    dtype: torch.dtype,
    attention: str = "sdpa",
    resampler: dict[str, Any] | None = None,
    exact: bool = False,
) -> PanoLlavaForConditionalGeneration:
    """A composite with random weights, the same for each kernel; with ``exact`` also for each number format.

    Args:
        language: shape of its language model.
        dtype: of the backbones.
        attention: kernel of both backbones.
        exact: draw the weights in fp32, which needs twice the memory while it is built.
    """
    size, drawn = setting.size, torch.float32 if exact else dtype
    torch.manual_seed(0)
    with setting.device:
        encoder = AutoModel.from_config(
            SiglipVisionConfig(**size.vision, vision_use_head=False), attn_implementation=attention, dtype=drawn
        )
        model = AutoModelForCausalLM.from_config(
            Qwen2Config(**language, max_position_embeddings=32768), attn_implementation=attention, dtype=drawn
        )
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.q_proj.weight.mul_(WIDTH_FACTOR)
    side = size.vision["image_size"]
    tower = VisionTower(cast(encoder, dtype), image_size=(side, side), mean=[0.5] * 3, std=[0.5] * 3)
    found = PanoLlavaForConditionalGeneration.from_backbones(
        tower,
        cast(model, dtype),
        resampler=resampler or size.resampler,
        position={"type": "yaw_pitch"},
        projector={"type": "mlp"},
        crop=CROP,
        image_token_id=language["vocab_size"],
        latent_width=size.latent,
    )
    return found.to(setting.device).eval()


def cast(module: Any, dtype: torch.dtype) -> Any:
    """The module with its weights in another format; the frequencies of rotary positions stay as they were drawn.

    In bf16 they would turn the last of 2,400 positions by radians; a model that is opened in bf16 keeps them in fp32.
    """
    for weight in module.parameters():
        weight.data = weight.data.to(dtype)
    return module


def instruct_stage(model: PanoLlavaForConditionalGeneration, name: str = "resampler", dropout: float = 0.1) -> Stage:
    """Stage 2, or stage 3 (``finetune``) with LoRA."""
    if name == "finetune":
        device = model.device
        add_lora(model, dropout=dropout)
        model.to(device)
    return InstructStage(model, StageSetup(name)).train()


def overlap_stage(setting: Setting, dtype: torch.dtype, resampler: dict[str, Any] | None = None) -> Stage:
    """Stage 1."""
    size, side = setting.size, setting.size.vision["image_size"]
    torch.manual_seed(0)
    with setting.device:
        encoder = AutoModel.from_config(SiglipVisionConfig(**size.vision, vision_use_head=False), dtype=dtype)
    tower = VisionTower(encoder, image_size=(side, side), mean=[0.5] * 3, std=[0.5] * 3)
    vision = PanoVision.build(tower, resampler=resampler or size.resampler, latent_width=size.latent)
    return OverlapStage(vision, StageSetup("vision"), objective=VicregObjective()).to(setting.device).train()


def panoramas(size: Size, count: int, seed: int = 0) -> Batch:
    """Views of random pixels, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    side = size.vision["image_size"]
    pixels = torch.randint(0, 256, (count, VIEWS, 3, side, side), dtype=torch.uint8, generator=generator)
    cameras = camera_tensor(STRATEGY.cameras()).expand(count, -1, -1).contiguous()
    return Batch([f"sample {index}" for index in range(count)], pixels, cameras, torch.ones(count, VIEWS).bool())


def texts(size: Size, language: dict[str, Any], count: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of random texts about panoramas, each shorter than the one before it."""
    generator, vocabulary = torch.Generator().manual_seed(seed), language["vocab_size"]
    image = [vocabulary] * (VIEWS * size.patches)
    found = []
    for index in range(count):
        length = max(2, size.text - 3 * index)
        text = torch.randint(0, vocabulary, (length,), generator=generator).tolist()
        found.append(([0, *image, *text], [IGNORE_INDEX] * (1 + len(image)) + text))
    return found


def with_texts(size: Size, language: dict[str, Any], count: int, seed: int = 0) -> Batch:
    """Panoramas with a text each, padded on the right."""
    rows = texts(size, language, count, seed)
    return replace(panoramas(size, count, seed), **_padded(rows))


def about_one(size: Size, language: dict[str, Any], count: int) -> tuple[Batch, Batch]:
    """Several texts about one panorama: a row for each, and all in one row behind their common prefix."""
    rows, one = texts(size, language, count), panoramas(size, 1)
    (packed,) = pack(rows, language["vocab_size"])
    index = torch.zeros(1, dtype=torch.int64)
    apart = replace(one, picture_index=index.expand(count), **_padded(rows))
    together = replace(
        one,
        picture_index=index,
        input_ids=torch.tensor([packed.ids]),
        labels=torch.tensor([packed.labels]),
        attention_mask=torch.ones(1, len(packed.ids), dtype=torch.int64),
        position_ids=torch.tensor([packed.positions]),
        segments=torch.tensor([packed.segments]),
    )
    assert together.segments is not None
    assert int((together.segments == PREFIX).sum()) > 0 == int((together.segments == PAD).sum())
    return apart, together


def _padded(rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    ids, labels = (pad_sequence([torch.tensor(row[at]) for row in rows], batch_first=True) for at in range(2))
    lengths = torch.tensor([len(row[0]) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels.masked_fill(mask == 0, IGNORE_INDEX)}


def optimiser_step(
    stage: Stage, module: nn.Module, compute: Compute, procs: DistributedContext | None = None
) -> OptimiserStep:
    """The step that training takes: forward, backward, clipping and AdamW."""
    optimizer = make_optimizer(stage.trained(), OptimOptions(), 1e-4)
    return OptimiserStep(stage, module, optimizer, compute.scaler(), compute, procs or DistributedContext(), 1.0)


def gap(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    found, expected = found.detach().double().flatten().cpu(), expected.detach().double().flatten().cpu()
    return float((found - expected).norm() / expected.norm())


def gradient(stage: Stage) -> Tensor:
    """All gradients in one vector on the CPU, in fp32, which are then cleared."""
    found = [weight.grad.float().flatten().cpu() for weight in stage.trained().values()]  # type: ignore[union-attr]
    for weight in stage.trained().values():
        weight.grad = None
    return torch.cat(found)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ms(action: Callable[[], object], device: torch.device, rounds: int, warmup: int = 2) -> float:
    """Median milliseconds of an action, after some that are not counted."""
    taken = []
    for _ in range(warmup + rounds):
        wait(device)
        start = time.perf_counter()
        action()
        wait(device)
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken[warmup:])


def tidy() -> None:
    """Frees what the last check has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
