"""Stages 2 and 3: next-token prediction of the text, given the panorama."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from panollava.batch import IGNORE_INDEX, Batch
from panollava.model.trainable import make_fp32, train_language
from panollava.stages.protocol import Stage, StageSetup, StepOutput

if TYPE_CHECKING:  # the composite's classes take seconds to import, and a check of a config needs none
    from panollava.model.vision import PanoVision
    from panollava.model.vlm import PanoLlavaForConditionalGeneration

LOSS = "language"


class InstructStage(Stage):
    """Next-token loss on the labelled tokens, which the data choose: all text after the image, or the answers.

    Resampler, position code and projector train, with the last blocks of both backbones that `setup` names and the
    LoRA adapter, if one is attached.

    Args:
        model: the composite.
        setup: name, and the blocks that train.

    Raises:
        ValueError: a backbone has fewer blocks.
    """

    def __init__(self, model: PanoLlavaForConditionalGeneration, setup: StageSetup) -> None:
        super().__init__(setup)
        self._recomputes = setup.checkpoint_activations
        self.model = model
        self.parts_logits = model.is_head_linear()
        for part in (model.vision.resampler, model.position, model.projector):
            part.requires_grad_(True)
        model.vision.tower.train_only(setup.vision_blocks)
        train_language(model, setup.language_blocks)
        make_fp32(p for p in model.language_model.parameters() if p.requires_grad)
        if setup.checkpoint_activations:
            model.checkpoint_activations()

    @property
    def composite(self) -> PanoLlavaForConditionalGeneration:
        """See ``Stage``."""
        return self.model

    @property
    def vision(self) -> PanoVision:  # type: ignore[override]
        """Encoder and resampler."""
        return self.model.vision

    def train(self, mode: bool = True) -> InstructStage:
        """Sets training mode for blocks that train; frozen parts stay in evaluation mode."""
        super().train(mode)
        if mode:
            self.model.language_model.eval()
            for block in self.model.language_blocks:
                if any(weight.requires_grad for weight in block.parameters()):
                    block.train()
                else:  # transformers recomputes activations of blocks in training mode; their layers drop nothing
                    block.training = self._recomputes
        return self

    def counts(self, batch: Batch) -> dict[str, float]:
        """Number of labelled tokens; the first position has nothing before it to be predicted from."""
        assert batch.labels is not None
        return {LOSS: float((batch.labels[:, 1:] != IGNORE_INDEX).sum())}

    def forward(self, batch: Batch) -> StepOutput:
        """Summed negative log-likelihood of the labelled tokens.

        Only positions with a label somewhere in the batch are projected onto the vocabulary: with 150,000 tokens and
        1,400 image tokens per sample the full logits would be the largest tensor of the run.
        """
        assert batch.labels is not None
        targets = batch.labels[:, 1:]
        positions = torch.nonzero((targets != IGNORE_INDEX).any(dim=0)).flatten()
        kept = targets[:, positions]
        if self.parts_logits:
            head = self.model.get_output_embeddings()
            loss, right = head_losses(head, self.model.states(positions, **batch.model_inputs), kept)
        else:
            output = self.model(**batch.model_inputs, logits_to_keep=positions, use_cache=False)
            loss, right = logit_losses(output.logits, kept)
        return StepOutput(losses={LOSS: loss}, metrics={f"{LOSS}/token_accuracy": right.float()})


PART = 2**24
"""Most logits at a time: 64 MB in float32."""


def head_losses(head: nn.Module, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood and number of right predictions of a language model's head.

    More than ``PART`` logits are computed in parts, and again in the backward pass, so that no more are in memory at a
    time. Then only states with a label are projected.

    Args:
        head: ``(..., Dl)`` -> ``(..., vocabulary)``.
        states: ``(B, K, Dl)``.
        labels: ``(B, K)`` int64, ``IGNORE_INDEX`` where a position is no target.

    Returns:
        Two sums, float32 and int64.
    """
    weight: Any = head.weight
    rows = max(1, PART // len(weight))
    if labels.numel() <= rows:
        return _part(head, states, labels)
    is_target = labels != IGNORE_INDEX
    parts = zip(states[is_target].split(rows), labels[is_target].split(rows), strict=True)
    losses, right = zip(*(checkpoint(_part, head, *part, use_reentrant=False) for part in parts), strict=True)
    return torch.stack(losses).sum(), torch.stack(right).sum()


def _part(head: nn.Module, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return logit_losses(head(states), labels)


def logit_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As ``head_losses``, of logits ``(..., vocabulary)`` of any floating type."""
    right = (logits.detach().argmax(dim=-1) == labels) & (labels != IGNORE_INDEX)
    flat = logits.flatten(0, -2).float()
    return functional.cross_entropy(flat, labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"), right.sum()
