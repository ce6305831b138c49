"""Stages 2 and 3: the next token of the text, given the panorama."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from panollava.batch import IGNORE_INDEX, Batch
from panollava.model.trainable import make_fp32, train_language
from panollava.model.vision import PanoVision
from panollava.model.vlm import PanoLlavaForConditionalGeneration
from panollava.stages.protocol import Stage, StageSetup, StepOutput

LOSS = "language"


class InstructStage(Stage):
    """Next-token loss on the labelled tokens.

    Resampler, position code (if it has weights) and projector train; the encoder is frozen but for its last blocks,
    and so is the language model but for its last blocks and its adapter, where one is attached. Which tokens are
    labelled (all text after the image, or the assistant's alone) is the data's business.

    Args:
        model: the composite; with LoRA attached the adapter trains too.
        setup: name, and what of the backbones trains.

    Raises:
        ValueError: a backbone has fewer blocks.
    """

    def __init__(self, model: PanoLlavaForConditionalGeneration, setup: StageSetup) -> None:
        super().__init__(setup)
        self._recomputes = setup.checkpoint_activations
        self.model = model
        for part in (model.vision.resampler, model.position, model.projector):
            part.requires_grad_(True)
        model.vision.tower.train_only(setup.vision_blocks)
        train_language(model, setup.language_blocks)
        make_fp32(p for p in model.language_model.parameters() if p.requires_grad)
        if setup.checkpoint_activations:
            model.checkpoint_activations()

    @property
    def composite(self) -> PanoLlavaForConditionalGeneration:
        """The model."""
        return self.model

    @property
    def vision(self) -> PanoVision:  # type: ignore[override]
        """Its encoder and resampler."""
        return self.model.vision

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


def token_nll_sum(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the labels, summed, in float32.

    Nothing is shifted here: ``logits[i]`` are those that predict ``labels[i]``. A caller that holds the
    logits of a whole sequence passes ``logits[:, :-1]`` and ``labels[:, 1:]``.

    Args:
        logits: ``(..., vocabulary)`` in any floating type.
        labels: ``(...)`` int64, ``IGNORE_INDEX`` where a position is no target.

    Returns:
        The sum (float32) and the number of targets (int64); 0 and 0 where there is no target.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"Logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not match: there must be one "
            "row of logits for each label."
        )
    total = functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return total, (labels != IGNORE_INDEX).sum()
