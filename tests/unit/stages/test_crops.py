"""Stage 1 on the views of every crop: rings are compared all the way round, and only rings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.processes import succeed

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
from panollava.training.distributed import DistributedContext, init_distributed
from panollava.training.loop import validate

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


def chosen(built: Build, *arguments: str) -> OverlapStage:
    """The stage as a crop that chooses its views has it."""
    stage = built("vision", *arguments).stage
    setattr(stage.objective.correspondences, "least_common", LEAST_COMMON)  # noqa: B010
    return stage


def pictures(*steps: float) -> Batch:
    pixels = torch.randint(0, 256, (len(steps), 2, 3, 32, 32), dtype=torch.uint8)
    every = torch.ones(len(steps), 2, dtype=torch.bool)
    return Batch([f"{step}" for step in steps], pixels, apart(steps), every)


RAYS = {
    "vicreg": ("objective=vicreg", "objective.pairing=rays"),
    "vicreg_batch": ("objective=vicreg_batch", "objective.pairing=rays"),
    "densecl": ("objective=densecl", "objective.pairing=rays"),
    "densecl_of_batch": ("objective=densecl", "objective.pairing=rays", "objective.negatives=batch"),
    "vicreg_pooled": ("objective=vicreg_pooled",),
}
"""Command lines of all objectives."""


def test_samples_without_a_pair_do_not_end_training_unless_all_are(built: Build) -> None:
    stage = chosen(built, *RAYS["vicreg"]).train()
    for _ in range(MOST_UNPAIRED - 1):
        output = stage(pictures(90.0, 180.0))
    assert float(output.losses["overlap"].detach()) == 0
    output.losses["overlap"].backward()
    assert not any(bool(one.grad.any()) for one in stage.head.parameters() if one.grad is not None)
    with pytest.raises(
        ValueError, match=rf"{MOST_UNPAIRED} micro-batches .*12\.5% of the smaller one in common.*crop\.views"
    ):
        stage(pictures(90.0, 180.0))
    assert stage.counts(pictures(10.0, 180.0)) == {"overlap": 1}
    assert float(stage(pictures(10.0, 180.0)).losses["overlap"].detach()) > 0
    for _ in range(MOST_UNPAIRED):
        assert float(stage(pictures(90.0, 180.0)).losses["overlap"].detach()) == 0


@pytest.mark.parametrize("name", RAYS)
@pytest.mark.parametrize("trains", [True, False])
def test_no_pair_counts_as_nothing_under_all_names(built: Build, name: str, trains: bool) -> None:
    """Processes add up numbers by their names, which must not depend on the samples that a process has."""
    stage = chosen(built, *RAYS[name]).train(trains)
    some, none = stage(pictures(10.0, 15.0)), stage(pictures(90.0, 180.0))
    assert some.metrics.keys() == none.metrics.keys()
    assert all(float(value.detach()) == 0 for value in {**none.losses, **none.metrics}.values())
    assert stage.counts(pictures(90.0, 180.0)) == {"overlap": 0}


def test_a_validation_split_without_a_pair_is_an_error(built: Build) -> None:
    """Its loss would be 0 in every epoch, and the first checkpoint the best one."""
    case = built("vision", *RAYS["vicreg"])
    stage = case.stage
    setattr(stage.objective.correspondences, "least_common", LEAST_COMMON)  # noqa: B010
    none, some = pictures(90.0, 180.0), pictures(10.0, 180.0)
    procs, compute = DistributedContext(), case.run.compute
    with pytest.raises(ValueError, match=r"stage\.vision: nothing in the split counts.*12\.5%.*crop\.views"):
        validate(stage, stage, case.run.data, compute, procs, batches=iter([none]))
    assert validate(stage, stage, case.run.data, compute, procs, batches=iter([none, some]))["loss"] > 0


def test_one_pair_of_whole_views_is_none(built: Build) -> None:
    """It has no variance; a crop that chooses its views may have it in any micro-batch."""
    stage = chosen(built, *RAYS["vicreg_pooled"]).train()
    assert stage.counts(pictures(10.0, 180.0)) == {"overlap": 0}
    assert float(stage(pictures(10.0, 180.0)).losses["overlap"].detach()) == 0


def one_part(stage: OverlapStage, parts: list[list[Batch]]) -> list[dict[str, float]]:
    """Sums over processes of what the stage makes of each process's batches, and of the head's gradient."""
    found = []
    with init_distributed(timeout_s=60.0) as procs:
        for batch in parts[procs.rank]:
            stage.zero_grad()
            output = stage(batch)
            output.losses["overlap"].backward()
            gradient = sum(float(one.grad.norm()) for one in stage.head.parameters() if one.grad is not None)
            values = {key: float(value.detach()) for key, value in {**output.losses, **output.metrics}.items()}
            found.append(procs.sum({**values, "gradient": gradient}))
    return found


@pytest.mark.parametrize("name", RAYS)
def test_a_process_may_have_no_pair_while_others_have(built: Build, name: str, tmp_path: Path) -> None:
    stage = chosen(built, *RAYS[name]).train()
    some, none = pictures(10.0, 15.0), pictures(90.0, 180.0)
    first, second = succeed(partial(one_part, stage, [[some, none, none], [none, some, none]]), tmp_path / "ranks")
    assert first == second
    alone = {key: float(value.detach()) for key, value in {**stage(some).losses, **stage(some).metrics}.items()}
    for found in first[:2]:
        assert found.pop("gradient") > 0
        assert found == pytest.approx(alone, rel=1e-5)
    assert set(first[2].values()) == {0.0}


@pytest.mark.parametrize(("views", "reason"), [(0, "crop.views=0"), (1, "crop.views=1"), (2, None)])
def test_chosen_views_need_no_ring(built: Build, views: int, reason: str | None) -> None:
    cameras = apart((90.0,))[0][:views]
    found = OverlapStage.obstacle(built("vision").stage.vision, cameras, is_adaptive=True)
    assert found is None if reason is None else reason in str(found)
