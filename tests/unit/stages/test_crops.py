"""Stage 1 on the views of every crop: rings are compared all the way round, and only rings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from panollava.batch import Batch
from panollava.crop.crop import Crop
from panollava.crop.strategies import (
    AnyresCrop,
    AnyresMaxCrop,
    CropStrategy,
    CubemapCrop,
    E2pCrop,
    ResizeCrop,
    SlidingWindowCrop,
)
from panollava.stages.vision import OverlapStage

Build = Callable[..., Any]
WIDTH = 240
PANORAMA = np.random.default_rng(0).integers(0, 256, (WIDTH // 2, WIDTH, 3), dtype=np.uint8)


def batch_of(strategy: CropStrategy, view_size: tuple[int, int], shift: int = 0) -> Batch:
    """One panorama, turned by so many columns."""
    crop = Crop(strategy, view_size=view_size)
    views = crop.views(np.roll(PANORAMA, shift, axis=1))
    return Batch(["noise"], views[None], crop.camera_rows[None], torch.ones(1, len(views), dtype=torch.bool))


RINGS = [
    (SlidingWindowCrop(), 8, 8),
    (SlidingWindowCrop(fov_deg=180, overlap=0.0), 2, 2),
    (SlidingWindowCrop(fov_deg=120, overlap=0.25), 4, 4),
    (E2pCrop(overlap=0.0, pitch_rows_deg=(-45, 0, 45)), 12, 4),
    (AnyresCrop(), 8, 4),
    (AnyresMaxCrop(), 9, 3),
    (CubemapCrop(), 4, 4),
]
"""Crop, its pairs, the steps of one of its rings."""


@torch.no_grad()
@pytest.mark.parametrize(("strategy", "pairs", "steps"), RINGS, ids=lambda value: type(value).__name__)
def test_turning_the_panorama_by_a_step_of_the_ring_leaves_the_cost_as_it_is(
    built: Build, strategy: CropStrategy, pairs: int, steps: int
) -> None:
    """Then every pair is one place further, the one across the seam too; half a step shows other views."""
    case = built("vision")
    stage, view_size = case.stage.eval(), tuple(case.batch.pixel_values.shape[-2:])

    def cost(shift: int) -> float:
        return float(stage(batch_of(strategy, view_size, shift)).losses["overlap"])

    before = cost(0)
    assert stage.counts(batch_of(strategy, view_size)) == {"overlap": pairs}
    assert cost(WIDTH // steps) == pytest.approx(before, rel=1e-6)
    assert cost(WIDTH // steps // 2) != pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize(
    "strategy",
    [ResizeCrop(), SlidingWindowCrop(fov_deg=360, overlap=0.0), AnyresCrop(max_tiles=1)],
    ids=lambda strategy: type(strategy).__name__,
)
def test_a_crop_without_neighbours_is_an_obstacle(built: Build, strategy: CropStrategy) -> None:
    case = built("vision")
    cameras = batch_of(strategy, (32, 32)).cameras[0]
    reason = OverlapStage.obstacle(case.stage.vision, cameras)
    assert reason == "no view of this crop has a neighbour, so nothing overlaps"
