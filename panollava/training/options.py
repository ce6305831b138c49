"""What the loop can be told (``trainer.*`` and ``stage.<name>.*``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from panollava.training.precision import Precision


@dataclass(frozen=True)
class TrainerOptions:
    """Settings that every stage shares.

    Attributes:
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        precision: of frozen backbones and autocast; trained weights and losses are always fp32.
        num_workers: processes that read and cut panoramas; 0 does it in the main one.
        clip_norm: gradients are scaled down to this norm; 0 leaves them.
        validations_per_epoch: how often the validation split is run.
        patience: stop after so many validations without a better loss; 0 never.
        save_every_steps: checkpoints within an epoch, beside those at validations; 0 for none.
        log_every_steps: interval of the tracked training metrics.
        max_steps: ends a stage early; for trials.
        checkpoint_activations: recompute activations of the language model, and of encoder blocks that train, in the
            backward pass to save memory; losses and gradients keep their bits.
        compile: ``torch.compile`` the stage. It makes code for the lengths that come first, so a run that is resumed
            agrees with one that was not stopped within rounding, not to the bit.
        auto_batch: try before the first step which batch fits, and keep its effective size by accumulation.
        parallel: what several processes do with a model: each keeps all of it (``ddp``), or a share of it (``fsdp``).
        process_timeout_s: longest wait for another process, after which the run ends.
    """

    device: str = "auto"
    precision: Precision = "auto"
    num_workers: Annotated[int, Ge(0)] = 2
    clip_norm: Annotated[float, Ge(0)] = 1.0
    validations_per_epoch: Annotated[int, Ge(1)] = 1
    patience: Annotated[int, Ge(0)] = 0
    save_every_steps: Annotated[int, Ge(0)] = 0
    log_every_steps: Annotated[int, Ge(1)] = 10
    max_steps: Annotated[int, Ge(1)] | None = None
    checkpoint_activations: bool = False
    compile: bool = False
    auto_batch: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    process_timeout_s: Annotated[float, Gt(0)] = 1800.0


@dataclass(frozen=True)
class StageOptions:
    """Settings of one stage.

    Attributes:
        epochs: passes over the training split.
        batch_size: panoramas a micro-batch and process.
        accumulate: micro-batches an optimiser step.
        lr: peak learning rate.
        max_text_length: text tokens a sample, image tokens not counted; stage 1 reads no text.
        vision_trainable_blocks: last blocks of the encoder that train, or ``all`` of it.
        language_trainable_blocks: likewise of the language model; in finetune only.
    """

    epochs: Annotated[int, Ge(1)]
    batch_size: Annotated[int, Ge(1)]
    accumulate: Annotated[int, Ge(1)]
    lr: Annotated[float, Gt(0)]
    max_text_length: Annotated[int, Ge(8)]
    vision_trainable_blocks: Annotated[int, Ge(0)] | Literal["all"] = 0
    language_trainable_blocks: Annotated[int, Ge(0)] | Literal["all"] = 0
