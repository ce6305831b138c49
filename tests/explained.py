"""A small random model whose attention is far from even, for tests of what explains it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from families import composite
from torch import Tensor

from panollava.crop.crop import Crop
from panollava.model.api import PanoLlava
from panollava.prompt import ChatPrompt

Backbone = Callable[[str], Path]
QUESTION, ANSWER = "what colour is the cube?", "red and blue"
TOKENS = 16
"""Of a view."""


def opened(backbone: Backbone, language: str = "qwen2", **settings: Any) -> PanoLlava:
    """A small random model for nine views of sixteen patches."""
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
