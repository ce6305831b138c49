"""transformers' Llava in its Trainer, at the shapes of stage 2."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from experiments.gpu.measure import WARMUP, wait
from experiments.gpu.models import Setting, cast
from panollava.batch import Batch

IMAGE_TOKEN = 1
"""Of the vocabulary, as Llava embeds it before it is replaced."""


def trainer_ms(setting: Setting, language: dict[str, Any], batch: Batch) -> float:
    """Median milliseconds from the end of a step of the Trainer to the end of the next."""
    size = setting.size
    samples, clock = _samples(batch, language["vocab_size"]), _Clock(setting)
    steps = WARMUP + size.rounds
    arguments = TrainingArguments(
        output_dir=str(setting.folder / "trainer"),
        per_device_train_batch_size=len(samples),
        max_steps=steps,
        learning_rate=1e-4,
        bf16=setting.compute.dtype is torch.bfloat16,
        fp16=setting.compute.dtype is torch.float16,
        use_cpu=not setting.on_gpu,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    data: Any = samples * steps
    model = llava_model(setting, language)
    Trainer(model=model, args=arguments, train_dataset=data, data_collator=_collate, callbacks=[clock]).train()
    taken = [1000 * (after - before) for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    return statistics.median(taken[WARMUP - 1 :])


def llava_model(setting: Setting, language: dict[str, Any]) -> LlavaForConditionalGeneration:
    """Llava with random weights, of which the projector trains, in fp32, and the backbones are frozen."""
    size = setting.size
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**size.vision, vision_use_head=False),
        text_config=Qwen2Config(**language, max_position_embeddings=32768),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=size.patches,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    with setting.device:
        model = LlavaForConditionalGeneration(config)
    cast(model, setting.compute.dtype).requires_grad_(False)
    for name, module in model.named_modules():
        if name.endswith("multi_modal_projector"):
            module.float().requires_grad_(True)
    return model


def _samples(batch: Batch, placeholder: int) -> list[dict[str, Tensor]]:
    """A dictionary for each panorama, as a data set of transformers gives them."""
    assert batch.pixel_values is not None
    assert batch.input_ids is not None
    ids = batch.input_ids.masked_fill(batch.input_ids == IMAGE_TOKEN, IMAGE_TOKEN + 1)
    columns: dict[str, Any] = {
        "pixel_values": (batch.pixel_values.float() / 255 - 0.5) / 0.5,  # as an image processor gives them
        "input_ids": ids.masked_fill(ids == placeholder, IMAGE_TOKEN),
        "labels": batch.labels,
        "attention_mask": batch.attention_mask,
    }
    return [{name: column[index] for name, column in columns.items()} for index in range(len(batch))]


def _collate(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    batch["pixel_values"] = batch["pixel_values"].flatten(0, 1)
    return batch


class _Clock(TrainerCallback):
    """When each step has ended."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        wait(self.setting.device)
        self.ends.append(time.perf_counter())
