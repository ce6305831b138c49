"""Small random models of hub folders, and the state-space recurrence in its plain form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panollava.crop.crop import Crop
from panollava.model.api import PanoLlava
from panollava.model.hub import load_language_model, load_tokenizer
from panollava.model.vision import VisionTower
from panollava.model.vlm import PanoLlavaForConditionalGeneration
from panollava.prompt import ChatPrompt, add_image_token

Backbone = Callable[[str], Path]
QUESTION, ANSWER = "what colour is the cube?", "red and blue"
TOKENS = 16
"""Of a view."""
ROUNDS = 30
"""Times that the step-by-step reference walks around a ring until its start is forgotten."""


def composite(encoder: Path, language: Path, **settings: Any) -> tuple[PanoLlavaForConditionalGeneration, Any]:
    """A small composite around two families' folders, and its tokenizer.

    Args:
        encoder: folder of an encoder.
        language: folder of a language model.
        **settings: in place of ``from_backbones``'s small ones below.
    """
    dtype = settings.pop("dtype", torch.float32)
    tokens = load_tokenizer(language)
    defaults: dict[str, Any] = {
        "resampler": {"type": "mlp", "depth": 2, "width": 24},
        "position": {"type": "yaw_pitch"},
        "projector": {"type": "mlp"},
        "crop": {"type": "anyres_e2p", "overlap": 0.0},
        "latent_width": 40,
    }
    model = PanoLlavaForConditionalGeneration.from_backbones(
        VisionTower.from_pretrained(encoder, dtype=dtype),
        load_language_model(language, dtype=dtype),
        image_token_id=add_image_token(tokens),
        **(defaults | settings),
    )
    return model.eval(), tokens


def opened(backbone: Backbone, language: str = "qwen2", **settings: Any) -> PanoLlava:
    """A small random model for nine views of sixteen patches, whose attention is far from even."""
    defaults: dict[str, Any] = {"crop": {"type": "anyres_e2p"}}
    model, tokenizer = composite(backbone("siglip"), backbone(language), **(defaults | settings))
    with torch.no_grad():
        for block in model.language_blocks:
            block.self_attn.q_proj.weight.mul_(20)  # small random weights would attend to all alike
    return PanoLlava(model, ChatPrompt(tokenizer), Crop.from_spec(model.config.crop, view_size=(32, 32)))


def views_of(pano: PanoLlava, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = len(pano.crop.camera_rows)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def step_by_step(
    values: Tensor, step: Tensor, log_decay: Tensor, write: Tensor, read: Tensor, skip: Tensor, *, rounds: int = 1
) -> Tensor:
    """The state-space recurrence, step by step, which the chunked scan must equal."""
    state = values.new_zeros(*values[:, 0].shape, write.shape[-1])
    for _ in range(rounds):
        outputs = []
        for t in range(values.shape[1]):
            written = (values * step[..., None])[:, t, :, :, None] * write[:, t, None, None, :]
            state = state * log_decay[:, t].exp()[..., None, None] + written
            outputs.append((state * read[:, t, None, None, :]).sum(-1) + values[:, t] * skip[..., None])
    return torch.stack(outputs, dim=1)
