"""Trains the miniature image encoder patch by patch, and measures what can be read from its features."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss
from transformers import SiglipVisionConfig, SiglipVisionModel

from experiments.tiny.optim import cosine, keep, make_optimisers, resume, set_rate
from experiments.tiny.seeing import (
    COLOUR_CLASSES,
    IGNORED,
    OFFSET_UNIT_DEG,
    PATCH_SIZE,
    SHAPE_CLASSES,
    VIEW_SIZE,
    Labelled,
    batches,
    default_bank,
    join,
    label_views,
)
from panollava.data.scenes.scene import scene_at

logger = logging.getLogger(__name__)

HELD_OUT = 10_000_000
"""First scene that is measured on; training stays below."""


class PatchReader(nn.Module):
    """The encoder with linear heads that predict what each patch shows; the heads are used in training only.

    Linear heads leave colour, shape and offset where a small resampler finds them.
    """

    def __init__(self, encoder: SiglipVisionModel) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.colour = nn.Linear(width, len(COLOUR_CLASSES))
        self.shape = nn.Linear(width, len(SHAPE_CLASSES))
        self.offset = nn.Linear(width, 2)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views (n, 3, h, w) uint8 -> logits of colour and shape and offsets, (n, N, classes)."""
        features = self.encoder(pixel_values=views.float() / 127.5 - 1.0).last_hidden_state.float()
        return self.colour(features), self.shape(features), self.offset(features)


def make_encoder() -> SiglipVisionModel:
    """The miniature encoder with random weights."""
    config = SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=VIEW_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    model = SiglipVisionModel(config)
    # At this width attention in plain matrix products trains faster on a CPU than the fused kernel.
    model.set_attn_implementation("eager")
    return model


def patch_loss(reader: PatchReader, batch: Labelled) -> Tensor:
    """Cross-entropy of colour and shape, and smooth L1 of the offset where there is one."""
    colour, shape, offset = reader(batch.views)
    has_offset = ~batch.offset.isnan().any(-1)
    return (
        cross_entropy(colour.float().flatten(0, 1), batch.colour.flatten(), ignore_index=IGNORED)
        + cross_entropy(shape.float().flatten(0, 1), batch.shape.flatten(), ignore_index=IGNORED)
        + smooth_l1_loss(offset.float()[has_offset], batch.offset[has_offset], beta=0.2)
    )


def train_encoder(
    reader: PatchReader, *, steps: int, folder: Path, batch_size: int = 10, learning_rate: float = 2e-3
) -> None:
    """Trains `reader` in place, from the last state in `folder` if there is one.

    Args:
        steps: optimiser steps in all.
        folder: where the state is kept, every few hundred steps.
        batch_size: scenes a step, each in a dozen views.
        learning_rate: its peak; warmed up, then decayed along a cosine.
    """
    optimisers = make_optimisers(reader)
    start = resume(folder, reader, optimisers)
    schedule = cosine(learning_rate, steps, warmup=100)
    source = batches(start * batch_size, batch_size)
    reader.train()
    began = time.monotonic()
    for step in range(start, steps):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = patch_loss(reader, next(source))
        loss.backward()
        set_rate(optimisers, schedule(step))
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        if (step + 1) % 50 == 0:
            logger.info("step %d loss %.4f %.0f s", step + 1, loss.item(), time.monotonic() - began)
        if (step + 1) % 200 == 0 or step + 1 == steps:
            keep(folder, reader, optimisers, step + 1)


@torch.no_grad()
def measure_encoder(reader: PatchReader, *, scenes: int, level: int = 1) -> dict[str, float]:
    """How well the linear heads read held-out views of the default crop.

    Returns:
        Share of patches whose colour and shape are right, apart for patches that show a thing in tiles and in
        the global view and for those that show none, and the mean error of the offset in degrees.
    """
    reader.eval()
    bank = default_bank()
    held_out = [scene_at(0, "backbones", HELD_OUT + index, level) for index in range(scenes)]
    batch = join([label_views(scene, bank) for scene in held_out])
    colour, shape, offset = reader(batch.views)
    is_global = torch.tensor([camera.is_global for camera in bank.cameras]).repeat(scenes)[:, None]
    thing, nothing = batch.colour > 0, batch.colour == 0
    right_colour, right_shape = colour.argmax(-1) == batch.colour, shape.argmax(-1) == batch.shape
    has_offset = ~batch.offset.isnan().any(-1)
    miss = (offset - batch.offset)[has_offset].abs().mean() * OFFSET_UNIT_DEG
    return {
        "tile_colour": _share(right_colour, thing & ~is_global),
        "tile_shape": _share(right_shape, thing & ~is_global),
        "global_colour": _share(right_colour, thing & is_global),
        "background": _share(right_colour & right_shape, nothing),
        "offset_error_deg": float(miss),
    }


def _share(right: Tensor, among: Tensor) -> float:
    return float(right[among].float().mean())
