"""Stage 1: what trains, what a step costs, and which views are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from panollava.batch import Batch
from panollava.crop.cameras import Column
from panollava.crop.matches import ray_matches
from panollava.stages.vision import OverlapStage

Build = Callable[..., Any]
BIMAMBA = ("resampler=bimamba", "resampler.width=16", "resampler.state=4", "resampler.head_width=8")


def cost(stage: OverlapStage, batch: Batch) -> float:
    return stage(batch).losses["overlap"].item()


@torch.no_grad()
def reference_cost(stage: OverlapStage, batch: Batch, overlap: float) -> tuple[float, int]:
    """The sum over pairs of DESIGN's formula, in loops, and the number of pairs."""
    height, width = stage.vision.token_grid or (0, 0)
    columns = max(1, math.floor(width * overlap + 1e-6))
    total, count = 0.0, 0
    for sample in range(len(batch)):
        views = batch.pixel_values[sample : sample + 1]
        tokens = stage.head(stage.vision(views, cameras=batch.cameras[sample : sample + 1]))[0]
        images = tokens.unflatten(1, (height, width)).double()
        yaw = batch.cameras[sample, :, Column.YAW]
        tiles = [view for view in range(len(yaw)) if not batch.cameras[sample, view, Column.IS_GLOBAL]]
        tiles.sort(key=lambda view: float(yaw[view]))
        for view, neighbour in zip(tiles, tiles[1:] + tiles[:1], strict=True):
            a = images[view, :, width - columns :].flatten(0, 1)
            b = images[neighbour, :, :columns].flatten(0, 1)
            total += float(25 * (a - b).square().mean() + _half(a) + _half(b))
            count += 1
    return total, count


def _half(x: Tensor) -> Tensor:
    variance = x.var(dim=0, correction=0)
    hinge = (1 - (variance + 1e-4).sqrt()).relu().mean()
    covariance = x.T.cov()
    off_diagonal = covariance - covariance.diag().diag()
    return 25 * hinge / 2 + off_diagonal.square().sum() / x.shape[1] / 2


@pytest.mark.parametrize("resampler", [(), BIMAMBA], ids=["mlp", "bimamba"])
def test_resampler_and_head_train_and_nothing_else(built: Build, resampler: tuple[str, ...]) -> None:
    case = built("vision", *resampler)
    before = case.tensors()
    case.train(steps=2)
    after = case.tensors()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {name for name in before if name.startswith(("vision.resampler.", "head."))}
    # Differences and centred values do not see a constant, so the last bias gets a gradient of rounding alone.
    assert changed | {"head.3.bias"} == trained
    assert set(case.stage.trained()) == trained
    assert any(name.startswith("vision.tower.") for name in before)


@pytest.mark.parametrize("resampler", [(), BIMAMBA], ids=["mlp", "bimamba"])
def test_every_trained_parameter_gets_a_gradient(built: Build, resampler: tuple[str, ...]) -> None:
    case = built("vision", *resampler)
    case.stage.train()(case.batch).losses["overlap"].backward()
    missing = [name for name, p in case.stage.trained().items() if p.grad is None or not p.grad.any()]
    assert missing in ([], ["head.3.bias"])
    assert [name for name, p in case.stage.named_parameters() if not p.requires_grad and p.grad is not None] == []


@pytest.mark.parametrize(("asked", "effective", "tiles"), [(0.0, 0.0, 4), (0.25, 1 / 3, 6), (0.5, 0.5, 8)])
@pytest.mark.parametrize("mode", [True, False], ids=["training", "validation"])
def test_loss_and_count_are_those_of_a_slow_loop(
    built: Build, asked: float, effective: float, tiles: int, mode: bool
) -> None:
    case = built("vision", f"crop.overlap={asked}")
    case.stage.train(mode)
    total, pairs = reference_cost(case.stage, case.batch, effective)
    assert pairs == tiles * len(case.batch)
    assert case.stage.counts(case.batch) == {"overlap": pairs}
    assert cost(case.stage, case.batch) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_rays_cost_the_formula_of_each_pair_by_itself(built: Build, overlap: float) -> None:
    case = built("vision", f"crop.overlap={overlap}", "stage.vision.loss.pairing=rays")
    stage, batch = case.stage.eval(), case.batch
    matches = ray_matches(batch.cameras, batch.view_mask, stage.vision.token_grid)
    with torch.no_grad():
        sides = matches.take(stage.head(stage.vision(batch.pixel_values, cameras=batch.cameras)))
    total = 0.0
    for pair, mask in enumerate(matches.mask):
        a, b = (side[pair, mask].double() for side in sides)
        total += float(25 * (a - b).square().mean() + _half(a) + _half(b))
    assert stage.counts(batch) == {"overlap": len(matches.pairs)}
    assert cost(stage, batch) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("pairing", ["columns", "rays"])
def test_metrics_are_sums_over_pairs(built: Build, pairing: str) -> None:
    case = built("vision", "crop.overlap=0.5", f"stage.vision.loss.pairing={pairing}")
    case.stage.eval()
    together = case.stage(case.batch).metrics
    halves = [case.stage(rows(case.batch, part)).metrics for part in (slice(0, 2), slice(2, 4))]
    terms = ["overlap/invariance", "overlap/variance", "overlap/covariance"]
    for name in [*terms, "overlap/neighbour_cosine", "overlap/retrieval"]:
        assert float(together[name]) == pytest.approx(sum(float(half[name]) for half in halves), rel=1e-5)
    weights = (25.0, 25.0, 1.0)
    weighted = sum(weight * float(together[name]) for weight, name in zip(weights, terms, strict=True))
    assert cost(case.stage, case.batch) == pytest.approx(weighted, rel=1e-5)


def rows(batch: Batch, part: slice) -> Batch:
    views = (batch.pixel_values[part], batch.cameras[part], batch.view_mask[part])
    return Batch(batch.sample_ids[part], *views)


def test_the_global_view_is_in_no_pair_and_every_tile_is(built: Build) -> None:
    case = built("vision", "crop.overlap=0.5")
    before = cost(case.stage, case.batch)
    for view in range(case.batch.pixel_values.shape[1]):
        pixels = case.batch.pixel_values.clone()
        pixels[:, view] = 255 - pixels[:, view]
        is_global = bool(case.batch.cameras[0, view, Column.IS_GLOBAL])
        assert (cost(case.stage, replace(case.batch, pixel_values=pixels)) == before) is is_global
    assert case.batch.cameras[:, 0, Column.IS_GLOBAL].all()


def test_views_that_pad_a_batch_cost_nothing(built: Build) -> None:
    case = built("vision")
    batch = case.batch
    padded = replace(
        batch,
        pixel_values=torch.cat([batch.pixel_values, batch.pixel_values[:, 1:2]], dim=1),
        cameras=torch.cat([batch.cameras, batch.cameras[:, 1:2]], dim=1),
        view_mask=nn.functional.pad(batch.view_mask, (0, 1), value=False),
    )
    assert case.stage.counts(padded) == case.stage.counts(batch)
    assert cost(case.stage, padded) == pytest.approx(cost(case.stage, batch), rel=1e-6)


def test_the_encoder_stays_as_at_inference(built: Build) -> None:
    case = built("vision")
    case.stage.train()
    assert not any(module.training for module in case.stage.vision.tower.modules())
    assert all(module.training for module in case.stage.vision.resampler.modules())
    assert all(module.training for module in case.stage.head.modules())


class Gridless(nn.Module):
    """A resampler whose tokens keep no grid."""

    def token_grid(self, grid: tuple[int, int]) -> None:
        """None."""

    def token_count(self, grid: tuple[int, int]) -> int:
        """One."""
        return 1


def test_obstacles_say_what_is_in_the_way(built: Build) -> None:
    case = built("vision")
    stage, cameras = case.stage, case.batch.cameras[0]
    assert OverlapStage.obstacle(stage.vision, cameras) is None
    no_neighbour = OverlapStage.obstacle(stage.vision, cameras[:1])
    assert no_neighbour is not None
    assert "neighbour" in no_neighbour
    stage.vision.resampler = Gridless()
    no_parameters = OverlapStage.obstacle(stage.vision, cameras)
    assert no_parameters is not None
    assert "no parameters" in no_parameters


@torch.no_grad()
def test_tokens_are_compared_before_they_are_pooled(built: Build) -> None:
    """Two of four columns line up with the neighbour's at overlap 0.5; of three, one and a half would."""
    costs = []
    for side, grid in ((4, (4, 4)), (3, (3, 3))):
        torch.manual_seed(1)  # as a run does before it builds a stage
        case = built("vision", "crop.overlap=0.5", f"model.tokens_per_side={side}")
        assert (case.stage.vision.token_grid, case.stage.grid) == (grid, (4, 4))
        costs.append(cost(case.stage, case.batch))
    assert costs[0] == costs[1]
