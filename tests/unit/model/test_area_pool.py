"""Area pooling against the mean over a grid so fine that every edge lies between its points."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from panollava.model.layers import area_pool

SIDE = st.integers(1, 9)


@given(SIDE, SIDE, SIDE, SIDE)
def test_is_the_mean_over_each_rectangle(height: int, width: int, rows: int, columns: int) -> None:
    patches = torch.randn(2, height * width, 3, dtype=torch.float64)
    fine = patches.unflatten(1, (height, width)).repeat_interleave(rows, 1).repeat_interleave(columns, 2)
    means = functional.avg_pool2d(fine.permute(0, 3, 1, 2), (height, width)).flatten(2).mT
    torch.testing.assert_close(area_pool(patches, (height, width), (rows, columns)), means, rtol=0, atol=1e-12)


def test_is_adaptive_pooling_where_the_sides_divide() -> None:
    patches = torch.randn(2, 8 * 6, 3)
    pooled = functional.adaptive_avg_pool2d(patches.mT.unflatten(2, (8, 6)), (4, 2)).flatten(2).mT
    torch.testing.assert_close(area_pool(patches, (8, 6), (4, 2)), pooled)


@given(SIDE, SIDE)
def test_a_token_is_centred_where_its_place_in_the_grid_says(patches: int, pooled: int) -> None:
    """Down to fewer tokens, the centre of what is averaged and that of the token are less than 1/8 patch apart."""
    pooled = min(pooled, patches)
    places = (torch.arange(patches, dtype=torch.float64) + 0.5)[:, None]
    centres = (torch.arange(pooled, dtype=torch.float64) + 0.5)[:, None] * patches / pooled
    assert (area_pool(places, (1, patches), (1, pooled)) - centres).abs().max() <= 0.125 + 1e-9
