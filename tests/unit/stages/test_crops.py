"""Stage 1 on the views of every crop: rings are compared all the way round, and only rings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from panollava.batch import Batch
from panollava.crop.cameras import PERSPECTIVE, Camera, camera_tensor
from panollava.crop.crop import Crop
from panollava.crop.matches import LEAST_COMMON
from panollava.crop.strategies import (
    AnyresCrop,
    AnyresMaxCrop,
    CropStrategy,
    CubemapCrop,
    E2pCrop,
    ResizeCrop,
    SlidingWindowCrop,
)
from panollava.stages.vision import MOST_UNPAIRED, OverlapStage

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


def apart(steps: tuple[float, ...]) -> torch.Tensor:
    """Cameras ``(1, 2, C)`` of two tiles for each step of yaw, in degrees, between them."""
    fov = np.radians(45)
    rows = [
        camera_tensor([Camera(PERSPECTIVE, np.radians(yaw), 0.2, 0.0, fov, fov) for yaw in (0, step)]) for step in steps
    ]
    return torch.stack(rows)


def test_samples_without_a_pair_do_not_end_training_unless_all_are(built: Build) -> None:
    stage = built("vision").stage.train()
    stage.objective.correspondences.pairing = "rays"
    stage.objective.correspondences.least_common = LEAST_COMMON
    pixels = torch.randint(0, 256, (2, 2, 3, 32, 32), dtype=torch.uint8)
    every = torch.ones(2, 2, dtype=torch.bool)

    def batch(*steps: float) -> Batch:
        return Batch(["a", "b"], pixels, apart(steps), every)

    for _ in range(MOST_UNPAIRED - 1):
        output = stage(batch(90.0, 180.0))
    assert float(output.losses["overlap"]) == 0
    output.losses["overlap"].backward()
    assert all(bool((one.grad == 0).all()) for one in stage.head.parameters())
    with pytest.raises(ValueError, match=rf"12\.5% of the smaller one in common, {MOST_UNPAIRED} times.*crop\.views"):
        stage(batch(90.0, 180.0))
    assert stage.counts(batch(10.0, 180.0)) == {"overlap": 1}
    assert float(stage(batch(10.0, 180.0)).losses["overlap"].detach()) > 0
    for _ in range(MOST_UNPAIRED):
        assert float(stage(batch(90.0, 180.0)).losses["overlap"].detach()) == 0


@pytest.mark.parametrize(("views", "reason"), [(0, "crop.views=0"), (1, "crop.views=1"), (2, None)])
def test_chosen_views_need_no_ring(built: Build, views: int, reason: str | None) -> None:
    cameras = apart((90.0,))[0][:views]
    found = OverlapStage.obstacle(built("vision").stage.vision, cameras, is_adaptive=True)
    assert found is None if reason is None else reason in str(found)
