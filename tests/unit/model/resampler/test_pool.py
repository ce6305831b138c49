"""What sets the pool resampler apart: each token is a mean of its own part of the view, and nothing is learnt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from panollava.model.resampler.pool import PoolResampler


def run(features: Tensor, grid: tuple[int, int], tokens_per_side: int) -> Tensor:
    resampler = PoolResampler(input_width=5, output_width=5, tokens_per_side=tokens_per_side)
    assert list(resampler.parameters()) == []
    mask = torch.ones(features.shape[:2], dtype=torch.bool)
    return resampler(features, grid=grid, view_mask=mask, cameras=torch.zeros(*mask.shape, 11))


def test_averages_rows_and_columns():
    features = torch.randn(2, 3, 16 * 12, 5)
    expected = functional.adaptive_avg_pool2d(features.flatten(0, 1).mT.unflatten(2, (16, 12)), (4, 4)).flatten(2).mT
    torch.testing.assert_close(run(features, (16, 12), 4), expected.unflatten(0, (2, 3)))


@pytest.mark.parametrize(
    ("patch", "hears"),
    [
        ((0, 0), {(0, 0)}),
        ((2, 4), {(1, 1), (1, 2), (2, 1), (2, 2)}),  # in the middle of a view of five rows and nine columns
        ((4, 8), {(3, 3)}),
        ((1, 8), {(0, 3), (1, 3)}),
    ],
)
def test_a_patch_reaches_only_the_tokens_whose_part_it_touches(patch, hears):
    """Parts are 5/4 patches high and 9/4 wide."""
    features = torch.zeros(1, 1, 5 * 9, 5)
    features[0, 0, patch[0] * 9 + patch[1]] = 1
    reached = run(features, (5, 9), 4)[0, 0].unflatten(0, (4, 4)).amax(-1)
    assert {tuple(place) for place in reached.nonzero().tolist()} == hears


def test_as_many_tokens_as_patches_are_the_patches():
    features = torch.randn(1, 2, 16, 5)
    torch.testing.assert_close(run(features, (4, 4), 4), features)
