"""Writes a small random CLIP with a tokenizer, as a measure of pictures and texts."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from panollava.model.hub import SHIPPED

SIDE = 32
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def small_clip(path: Path) -> Path:
    """A CLIP whose processor would cut out the middle of a picture, as the published ones do."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED["panollava/tiny-qwen3"])
    tokenizer.save_pretrained(path)
    text = {**SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "eos_token_id": 2}
    config = CLIPConfig(
        text_config=text, vision_config={**SHAPE, "image_size": SIDE, "patch_size": 8}, projection_dim=16
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(path)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(path)
    return path
