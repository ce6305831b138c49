"""What a stage is going to take, told before its first step: roughly, from the sizes of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import psutil
import torch
from torch import nn

from panollava.assemble.run import Run
from panollava.assemble.stage import AnyStage
from panollava.logs import LOG, in_words
from panollava.stages.instruct import InstructStage
from panollava.training.options import StageOptions

GRADIENT, MOMENTS = 4, 8
"""Bytes of a weight's gradient and of AdamW's two moments, all fp32."""


@dataclass(frozen=True)
class Memory:
    """What a stage holds in memory (bytes), about.

    Attributes:
        model: its weights, as they lie.
        optimiser: gradients and AdamW's state of what trains.
        step: what a micro-batch keeps for the backward pass.
    """

    model: int
    optimiser: int
    step: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.model + self.optimiser + self.step


def forecast(run: Run, name: str, stage: AnyStage, options: StageOptions) -> None:
    """Logs how much of the model trains, how long its sequences are, and what it will take of the memory.

    Args:
        run: the run.
        name: the stage's name.
        stage: the stage, on its device.
        options: with the batch that will be used.
    """
    total, share = sum(map(_count, stage.parameters())), sum(map(_count, stage.trained().values()))
    LOG.info("Stage %s trains %s of %s parameters (%.2f %%).", name, f"{share:,}", f"{total:,}", 100 * share / total)
    if isinstance(stage, InstructStage):
        image, text = run.backbones.image_tokens, options.max_text_length
        positions = getattr(stage.model.config.get_text_config(), "max_position_embeddings", None)
        LOG.info(
            "Its sequences: %d image tokens and up to %d of text, %d of %s positions.",
            image, text, image + text, "unlimited" if positions is None else positions,
        )  # fmt: skip
    memory, free, told = estimate(run, stage, options), _free(run.compute.device), partial(in_words, base=1000)
    LOG.info(
        "Its memory, about: model %s, gradients and optimiser %s, a batch of %d %s; %s are free.",
        told(memory.model), told(memory.optimiser), options.batch_size, told(memory.step), told(free),
    )  # fmt: skip
    if memory.optimiser + memory.step > free:  # the model is there already
        LOG.warning(
            "That may not fit: a smaller stage.%s.batch_size, trainer.checkpoint_activations=true or "
            "trainer.auto_batch=true would help.",
            name,
        )


def estimate(run: Run, stage: AnyStage, options: StageOptions) -> Memory:
    """Memory of a stage, from its weights and the inputs and outputs of its linear layers.

    Activations of a layer are counted as what goes in and what comes out, for every token that passes it. Attention
    scores, norms and what the allocator loses are not counted, so the truth may be twice as much.

    Args:
        run: for the views, the image tokens and the type of activations.
        stage: with what trains switched on.
        options: batch size and text length.
    """
    trained = sum(parameter.numel() for parameter in stage.trained().values())
    model = sum(parameter.numel() * parameter.element_size() for parameter in stage.parameters())
    vision = stage.model.vision if isinstance(stage, InstructStage) else stage.vision
    views = options.batch_size * len(run.backbones.crop.camera_rows)
    patches, tokens = vision.tower.grid[0] * vision.tower.grid[1], vision.tokens_per_view
    blocks = list(vision.tower.blocks)
    learning = [block for block in blocks if any(weight.requires_grad for weight in block.parameters())]
    passing = max((_width(block) for block in blocks), default=0)  # a frozen block forgets what it computed
    numbers = views * patches * (passing + sum(map(_width, learning)))
    numbers += views * max(patches, tokens) * _width(vision.resampler)
    if isinstance(stage, InstructStage):
        numbers += views * tokens * _width(stage.model.projector)
        numbers += _language_numbers(run, stage, options)
    else:
        numbers += views * tokens * _width(stage.head)
    step = numbers * run.compute.dtype.itemsize
    return Memory(model, trained * (GRADIENT + MOMENTS), step)


def _language_numbers(run: Run, stage: InstructStage, options: StageOptions) -> int:
    sequence = options.batch_size * (run.backbones.image_tokens + options.max_text_length)
    config = stage.model.config.get_text_config()
    widths = [_width(block) for block in stage.model.language_blocks]
    if run.trainer.checkpoint_activations:  # each block keeps its input, and one at a time all it computes
        widths = [config.hidden_size] * len(widths) + [max(widths)]
    logits = 2 * options.batch_size * options.max_text_length * config.vocab_size  # and their gradient
    return sequence * sum(widths) + logits * 4 // run.compute.dtype.itemsize  # fp32


def _width(module: nn.Module) -> int:
    """Numbers that go into and come out of a module's linear layers for one token."""
    return sum(one.in_features + one.out_features for one in module.modules() if isinstance(one, nn.Linear))


def _count(parameter: nn.Parameter) -> int:
    """Weights in a tensor; two of four bits share a byte."""
    return parameter.numel() * (2 if parameter.dtype is torch.uint8 else 1)


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
