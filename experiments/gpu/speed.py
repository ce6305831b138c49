"""Views cut on the device, and steps of stages 1 to 3 beside transformers' Llava and Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from experiments.gpu.flops import step_flops
from experiments.gpu.hardware import device_peak
from experiments.gpu.measure import SHORT, median_ms, optimiser_step, tidy
from experiments.gpu.models import STRATEGY, VIEWS, Setting, instruct_stage, overlap_stage, panoramas, with_texts
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
    (height, width), side = size.picture, size.vision["image_size"]
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    panorama = np.ascontiguousarray(noise.repeat(8, axis=0).repeat(8, axis=1))
    on_cpu = torch.from_numpy(panorama).permute(2, 0, 1)[None].contiguous()
    on_device = on_cpu.to(setting.device)
    ways: dict[str, Callable[[], Any]] = {
        "cut on the device": lambda: render_batch(on_device, cameras, (side, side)),
        "copied to the device, then cut": lambda: render_batch(on_cpu.to(setting.device), cameras, (side, side)),
        "cut by cv2 on the CPU": lambda: render_views(panorama, cameras, (side, side)),
    }
    found, expected = ways["cut on the device"]()[0].permute(0, 2, 3, 1).cpu().numpy(), ways["cut by cv2 on the CPU"]()
    largest = float(np.abs(found.astype(int) - expected.astype(int)).max())
    note = f"{VIEWS} views of {side} pixels from {width} x {height}"
    rows = [compared("views, largest difference", largest, 1.0, "levels of 255, against cv2")]
    return rows + [Row(name, note=note, milliseconds=_ms(setting, way)) for name, way in ways.items()]


def _ms(setting: Setting, action: Callable[[], object]) -> float:
    return median_ms(action, setting.device, setting.size.rounds)


def stage_1(setting: Setting) -> Iterator[Check]:
    """Stage 1 with features computed in each step, and with those of a store."""
    for resampler in (setting.size.resampler, {"type": "bimamba", **setting.size.bimamba}):
        make = partial(overlap_stage, setting, setting.compute.dtype, resampler)
        batch = partial(panoramas, setting.size)
        yield from _with_and_without_store(setting, f"stage 1, {resampler['type']}", make, batch, setting.size.batch[0])


def stages_half_b(setting: Setting) -> Iterator[Check]:
    """Stages 2 and 3 with a language model of 0.5 B."""
    return _language_stages(setting, setting.size.half_b, "0.5 B", setting.size.batch[1])


def stages_7b(setting: Setting) -> Iterator[Check]:
    """Stages 2 and 3 with a language model of 7 B."""
    return _language_stages(setting, setting.size.seven_b, "7 B", setting.size.batch[2])


def _language_stages(setting: Setting, language: dict[str, Any], label: str, count: int) -> Iterator[Check]:
    batch = partial(with_texts, setting.size, language)
    for name, stage in ((f"stage 2, {label}", "resampler"), (f"stage 3, {label}, LoRA", "finetune")):
        make = partial(instruct_stage, setting, language, setting.compute.dtype, stage)
        yield from _with_and_without_store(setting, name, make, batch, count)


def _with_and_without_store(
    setting: Setting, name: str, make: Callable[[], Stage], batch: Callable[[int], Batch], count: int
) -> Iterator[Check]:
    for store in (False, True):
        row = f"{name}, store {'on' if store else 'off'}"
        yield row, partial(_steps, setting, row, make, batch, count, store=store)


def _steps(
    setting: Setting,
    name: str,
    make: Callable[[], Stage],
    make_batch: Callable[[int], Batch],
    count: int,
    *,
    store: bool = False,
) -> list[Row]:
    """A row about optimiser steps of a stage."""
    stage, compute = make(), setting.compute
    step = optimiser_step(stage, stage, compute)

    def measured(count: int) -> Row:
        stage.zero_grad(set_to_none=True)
        batch = make_batch(count)
        batch = batch.pin_memory() if setting.on_gpu else batch
        read = _stored(setting, stage.vision.tower, batch) if store else lambda: batch

        def ready() -> Batch:
            """The batch on the device, as the loader and the loop bring it there."""
            return read().to(setting.device, non_blocking=True)

        flops = step_flops(stage, ready(), compute)
        compute.reset_peak_memory()
        milliseconds = _ms(setting, lambda: step([ready()], 1e-4))
        note = f"{SHORT[compute.dtype]}, {flops / 1e12:.3g} TFLOP a step"
        return _rated(setting, name, batch, milliseconds, note, flops)

    return [_halved(measured, count)]


def _halved(measured: Callable[[int], Row], count: int) -> Row:
    """A row about that many panoramas, or about half of them while they do not fit into memory."""
    while True:
        try:
            return measured(count)
        except Exception as error:
            if count == 1 or not is_out_of_memory(error):
                raise
        count //= 2
        tidy()


def _rated(
    setting: Setting, name: str, batch: Batch, milliseconds: float, note: str, flops: float | None = None
) -> Row:
    """A row with tokens a second, the share of the GPU's peak, and memory."""
    tokens = len(batch) * VIEWS * setting.size.patches
    if batch.attention_mask is not None:
        tokens = int(batch.attention_mask.sum())
    row = Row(name, note=f"{len(batch)} panoramas, {tokens} tokens; {note}", milliseconds=milliseconds)
    row.tokens_per_second = 1000 * tokens / milliseconds
    peak = device_peak(setting.device)
    if flops is not None:
        row.tflops = flops / milliseconds / 1e9
        row.mfu = None if peak is None or setting.compute.dtype is torch.float32 else row.tflops / peak
    if setting.on_gpu:
        row.peak_gb = setting.compute.peak_memory_gb()
    return row


def _stored(setting: Setting, tower: VisionTower, batch: Batch) -> Callable[[], Batch]:
    """Reads the batch with its features from a full store on disk, which is written here."""
    shape = (VIEWS, setting.size.patches, tower.width)
    options = StoreOptions(dir=str(setting.folder / "cache"), max_gib=8.0)
    store = open_store(options, "check", {"tower": "random"}, shape=shape, dtype=tower.dtype)
    maker = FeatureMaker(store, Encoding(tower), setting.device)
    digests = [store.identify(sample) for sample in batch.sample_ids]
    unseen = replace(batch, pixel_values=None)
    maker.complete(PartBatch(replace(unseen), digests, [False] * len(batch), None, batch.pixel_values))

    def read() -> Batch:
        """As a loader's worker and ``complete`` do for panoramas that the store has."""
        features = torch.stack([each for each in map(store.get, digests) if each is not None])
        assert len(features) == len(digests)
        return maker.complete(PartBatch(replace(unseen), digests, [True] * len(digests), features, None))

    return read


def llava(setting: Setting) -> Iterator[Check]:
    """Stage 2 beside transformers' Llava and Trainer at equal shapes: a projector of two layers trains alone."""
    language, count = setting.size.half_b, max(1, setting.size.batch[1] // 2)
    batch, name = partial(with_texts, setting.size, language), "panollava, stage 2, projector alone"
    make = partial(instruct_stage, setting, language, setting.compute.dtype, resampler={"type": "identity"})
    yield name, partial(_steps, setting, name, make, batch, count)
    yield "transformers' Llava and Trainer", partial(_trainer, setting, language, count)


def _trainer(setting: Setting, language: dict[str, Any], count: int) -> list[Row]:
    from experiments.gpu.llava import trainer_ms

    def measured(count: int) -> Row:
        batch = with_texts(setting.size, language, count)
        setting.compute.reset_peak_memory()
        milliseconds = trainer_ms(setting, language, batch)
        note = "logits of all tokens, pixels as float32"
        return _rated(setting, "transformers' Llava and Trainer", batch, milliseconds, note)

    return [_halved(measured, count)]
