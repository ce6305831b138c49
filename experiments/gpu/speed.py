"""Views cut on the device, and steps of stages 1 to 3 beside transformers' Llava and Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.gpu.flops import step_flops
from experiments.gpu.hardware import device_peak
from experiments.gpu.models import (
    STRATEGY,
    VIEWS,
    Setting,
    composite,
    instruct_stage,
    median_ms,
    optimiser_step,
    overlap_stage,
    panoramas,
    tidy,
    with_texts,
)
from experiments.gpu.numerics import SHORT
from experiments.gpu.rows import Check, Row, compared
from panollava.batch import Batch
from panollava.crop.render import render_views
from panollava.crop.render_torch import render_batch
from panollava.model.vision import Encoding, VisionTower
from panollava.run.memory import is_out_of_memory
from panollava.stages.protocol import Stage
from panollava.store.catalogue import StoreOptions, open_store
from panollava.store.feature_maker import FeatureMaker, PartBatch


def views(setting: Setting) -> Iterator[Check]:
    """Cutting views of a panorama on the device, against the CPU's renderer."""
    yield "views", partial(_views, setting)


def _views(setting: Setting) -> list[Row]:
    size, cameras = setting.size, tuple(STRATEGY.cameras())
    side = (size.vision["image_size"],) * 2
    noise = np.random.default_rng(0).integers(0, 256, (size.picture[0] // 8, size.picture[1] // 8, 3), np.uint8)
    panorama = np.ascontiguousarray(noise.repeat(8, axis=0).repeat(8, axis=1))
    on_cpu = torch.from_numpy(panorama).permute(2, 0, 1)[None].contiguous()
    on_device = on_cpu.to(setting.device)
    cut = render_batch(on_device, cameras, side)[0].permute(0, 2, 3, 1).cpu().numpy()
    apart = np.abs(cut.astype(int) - render_views(panorama, cameras, side).astype(int))
    ways: dict[str, Callable[[], object]] = {
        "cut on the device": lambda: render_batch(on_device, cameras, side),
        "copied to the device, then cut": lambda: render_batch(on_cpu.to(setting.device), cameras, side),
        "cut by cv2 on the CPU": lambda: render_views(panorama, cameras, side),
    }
    height, width = size.picture
    note = f"{VIEWS} views of {side[0]} pixels from {width} x {height}"
    rows = [compared("views, largest difference", float(apart.max()), 1.0, "levels of 255, against cv2")]
    for name, way in ways.items():
        rows.append(Row(name, note=note, milliseconds=median_ms(way, setting.device, size.rounds)))
    return rows


def stage_1(setting: Setting) -> Iterator[Check]:
    """Stage 1 with features computed in each step, and with those of a store."""
    dtype, count = setting.compute.dtype, setting.size.batch[0]
    for resampler in (setting.size.resampler, {"type": "bimamba", **setting.size.bimamba}):
        make = partial(overlap_stage, setting, dtype, resampler)
        batch = partial(panoramas, setting.size)
        for store in (False, True):
            name = f"stage 1, {resampler['type']}, store {'on' if store else 'off'}"
            yield name, partial(_steps, setting, name, make, batch, count, store=store)


def stages_half_b(setting: Setting) -> Iterator[Check]:
    """Stages 2 and 3 with a language model of 0.5 B."""
    return _language_stages(setting, setting.size.half_b, "0.5 B", setting.size.batch[1])


def stages_7b(setting: Setting) -> Iterator[Check]:
    """Stages 2 and 3 with a language model of 7 B."""
    return _language_stages(setting, setting.size.seven_b, "7 B", setting.size.batch[2])


def _language_stages(setting: Setting, language: dict[str, Any], label: str, count: int) -> Iterator[Check]:
    batch = partial(with_texts, setting.size, language)
    for number, stage in ((2, "resampler"), (3, "finetune")):
        for store in (False, True):
            how = "with LoRA, " if number == 3 else ""
            name = f"stage {number}, {label}, {how}store {'on' if store else 'off'}"
            make = partial(_instruct, setting, language, stage)
            yield name, partial(_steps, setting, name, make, batch, count, store=store)


def _instruct(setting: Setting, language: dict[str, Any], name: str) -> Stage:
    return instruct_stage(composite(setting, language, dtype=setting.compute.dtype), name)


def _steps(
    setting: Setting,
    name: str,
    make: Callable[[], Stage],
    make_batch: Callable[[int], Batch],
    count: int,
    *,
    store: bool,
) -> Row:
    """A row about optimiser steps, with half of the panoramas while a step does not fit."""
    stage = make()
    while True:
        try:
            return _measured(setting, name, stage, make_batch(count), store=store)
        except Exception as error:
            if count == 1 or not is_out_of_memory(error):
                raise
        stage.zero_grad(set_to_none=True)
        count //= 2
        tidy()


def _measured(setting: Setting, name: str, stage: Stage, batch: Batch, *, store: bool) -> Row:
    size, device, compute = setting.size, setting.device, setting.compute
    step = optimiser_step(stage, stage, compute)
    batch = batch.pin_memory() if setting.on_gpu else batch
    part = _stored(setting, stage.vision.tower, batch) if store else None

    def ready() -> Batch:
        """The batch on the device, as the loader and the loop bring it there."""
        return (batch if part is None else part()).to(device, non_blocking=True)

    flops = step_flops(stage, ready(), compute)
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    milliseconds = median_ms(lambda: step([ready()], 1e-4), device, size.rounds)
    tokens = len(batch) * VIEWS * size.patches if batch.attention_mask is None else int(batch.attention_mask.sum())
    note = f"{len(batch)} panoramas, {tokens} tokens; {SHORT[compute.dtype]}, {flops / 1e12:.3g} TFLOP a step"
    return _rated(setting, Row(name, note=note, milliseconds=milliseconds), tokens, flops)


def _rated(setting: Setting, row: Row, tokens: int, flops: float | None) -> Row:
    """With tokens a second, the share of the GPU's peak, and memory."""
    assert row.milliseconds is not None
    row.tokens_per_second = 1000 * tokens / row.milliseconds
    if flops is not None:
        row.tflops = flops / row.milliseconds / 1e9
        peak = device_peak(setting.device)
        row.mfu = None if peak is None or setting.compute.dtype is torch.float32 else row.tflops / peak
    if setting.on_gpu:
        row.peak_gb = setting.compute.peak_memory_gb()
    return row


def _stored(setting: Setting, tower: VisionTower, batch: Batch) -> Callable[[], Batch]:
    """Reads the batch with its features from a full store on disk, which is written here."""
    encode = Encoding(tower)
    assert batch.pixel_values is not None
    shape = (VIEWS, setting.size.patches, tower.width)
    options = StoreOptions(dir=str(setting.folder / "cache"), max_gib=8.0)
    store = open_store(options, "check", {"tower": "random"}, shape=shape, dtype=tower.dtype)
    maker = FeatureMaker(store, encode, setting.device)
    digests = [store.identify(sample) for sample in batch.sample_ids]
    unseen = replace(batch, pixel_values=None)
    maker.complete(PartBatch(replace(unseen), digests, [False] * len(batch), None, batch.pixel_values))

    def read() -> Batch:
        """As a loader's worker and ``complete`` do for panoramas that the store has."""
        found = [store.get(digest) for digest in digests]
        features = torch.stack([each for each in found if each is not None])
        assert len(features) == len(digests)
        return maker.complete(PartBatch(replace(unseen), digests, [True] * len(digests), features, None))

    return read


def llava(setting: Setting) -> Iterator[Check]:
    """Stage 2 beside transformers' Llava and Trainer at equal shapes: a projector of two layers trains alone."""
    language, count = setting.size.half_b, max(1, setting.size.batch[1] // 2)
    batch = partial(with_texts, setting.size, language)
    make = partial(_projector_stage, setting, language)
    yield (
        "panollava, stage 2, projector alone",
        partial(_steps, setting, "panollava, stage 2, projector alone", make, batch, count, store=False),
    )
    yield "transformers' Llava and Trainer", partial(_trainer, setting, language, count)


def _projector_stage(setting: Setting, language: dict[str, Any]) -> Stage:
    model = composite(setting, language, dtype=setting.compute.dtype, resampler={"type": "identity"})
    return instruct_stage(model)


def _trainer(setting: Setting, language: dict[str, Any], count: int) -> Row:
    from experiments.gpu.llava import trainer_ms

    name = "transformers' Llava and Trainer"
    while True:
        batch = with_texts(setting.size, language, count)
        setting.compute.reset_peak_memory()
        try:
            milliseconds = trainer_ms(setting, language, batch)
            break
        except torch.OutOfMemoryError:
            if count == 1:
                raise
        count //= 2
        tidy()
    assert batch.attention_mask is not None
    tokens = int(batch.attention_mask.sum())
    note = f"{count} panoramas, {tokens} tokens; its step computes logits of all tokens; pixels come as float32"
    return _rated(setting, Row(name, note=note, milliseconds=milliseconds), tokens, None)


def as_floats(pixels: Tensor) -> Tensor:
    """Views as an image processor gives them: normalised, in float32, one below the other."""
    return (pixels.float() / 255 - 0.5).div(0.5).flatten(0, 1)
