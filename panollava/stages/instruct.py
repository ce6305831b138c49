"""Stages 2 and 3: the next token of the text, given the panorama."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from panollava.batch import IGNORE_INDEX, Batch
from panollava.losses.lm import token_nll_sum
from panollava.model.trainable import Blocks, is_backbone, make_fp32, named_weights, train_language
from panollava.model.vlm import PanoLlavaForConditionalGeneration
from panollava.stages.protocol import StepOutput

LOSS = "language"


class InstructStage(nn.Module):
    """Next-token loss on the labelled tokens.

    Resampler, position code (if it has weights) and projector train; the encoder is frozen but for its last blocks,
    and so is the language model but for its last blocks and its adapter, where one is attached. Which tokens are
    labelled (all text after the image, or the assistant's alone) is the data's business.

    Args:
        model: the composite; with LoRA attached the adapter trains too.
        name: ``resampler`` or ``finetune``.
        vision_blocks: blocks of the encoder that train (see ``VisionTower.train_only``).
        language_blocks: blocks of the language model that train (see ``train_language``).
        checkpoint_activations: recompute activations in the backward pass to save memory.

    Raises:
        ValueError: a backbone has fewer blocks.
    """

    caveat = ""
    coupled = ""

    def __init__(
        self,
        model: PanoLlavaForConditionalGeneration,
        *,
        name: str,
        vision_blocks: Blocks = 0,
        language_blocks: Blocks = 0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self._recomputes = checkpoint_activations
        self.model = model
        for part in (model.vision.resampler, model.position, model.projector):
            part.requires_grad_(True)
        model.vision.tower.train_only(vision_blocks)
        train_language(model, language_blocks)
        make_fp32(p for p in model.language_model.parameters() if p.requires_grad)
        if checkpoint_activations:
            model.checkpoint_activations()

    def concern(self, metrics: Mapping[str, float]) -> str | None:
        """Nothing: what a language loss is worth shows in answers."""
        return None

    def train(self, mode: bool = True) -> InstructStage:
        """Training mode for what trains; frozen parts stay as they are at inference."""
        super().train(mode)
        if mode:
            self.model.language_model.eval()
            for block in self.model.language_blocks:
                if any(weight.requires_grad for weight in block.parameters()):
                    block.train()
                else:  # transformers asks the block whether to recompute; what is in it drops nothing
                    block.training = self._recomputes
        return self

    def trained(self) -> dict[str, nn.Parameter]:
        """Everything that requires a gradient, named as in the composite without LoRA."""
        return {name: p for name, p in named_weights(self.model).items() if p.requires_grad}

    def frozen_backbone(self) -> dict[str, nn.Parameter]:
        """Weights of encoder and language model that do not train here."""
        return {n: p for n, p in named_weights(self.model).items() if is_backbone(n) and not p.requires_grad}

    def counts(self, batch: Batch) -> dict[str, float]:
        """Number of labelled tokens; the first position has nothing before it to be predicted from."""
        assert batch.labels is not None
        return {LOSS: float((batch.labels[:, 1:] != IGNORE_INDEX).sum())}

    def forward(self, batch: Batch) -> StepOutput:
        """Summed negative log-likelihood of the labelled tokens.

        Only positions that predict a label somewhere in the batch pay the vocabulary matrix: at 150,000 words
        and 1,400 image tokens a sample the full logits would be the largest tensor of the run.
        """
        assert batch.labels is not None
        targets = batch.labels[:, 1:]
        positions = torch.nonzero((targets != IGNORE_INDEX).any(dim=0)).flatten()
        output = self.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            pixel_values=batch.pixel_values,
            vision_features=batch.vision_features,
            cameras=batch.cameras,
            view_mask=batch.view_mask,
            logits_to_keep=positions,
            use_cache=False,
        )
        kept = targets[:, positions]
        loss, _ = token_nll_sum(output.logits, kept)
        right = (output.logits.detach().argmax(dim=-1) == kept) & (kept != IGNORE_INDEX)
        return StepOutput(losses={LOSS: loss}, metrics={f"{LOSS}/token_accuracy": right.sum().float()})
