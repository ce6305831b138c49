"""What sets the bimamba resampler apart: order matters, and each token knows both sides of its view."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from panollava.model.resampler.bimamba import BimambaResampler


def build(**changes: int) -> BimambaResampler:
    torch.manual_seed(0)
    return BimambaResampler(
        **{"input_width": 6, "output_width": 8, "width": 16, "layers": 1, "state": 4, "head_width": 8} | changes
    )


def run(resampler: BimambaResampler, features: Tensor) -> Tensor:
    mask = torch.ones(features.shape[:2], dtype=torch.bool)
    return resampler(features, grid=(1, features.shape[2]), view_mask=mask, cameras=torch.zeros(*mask.shape, 11))


def test_depends_on_the_order_of_tokens():
    resampler, features = build(), torch.randn(1, 2, 9, 6)
    order = torch.tensor([3, 1, 0, 2, 4, 5, 8, 7, 6])
    gap = run(resampler, features[:, :, order]) - run(resampler, features)[:, :, order]
    assert gap.abs().max() > 1e-3


@pytest.mark.parametrize("length", [20, 150])
def test_every_token_hears_of_every_other(length):
    """One layer suffices: later tokens through the forward scan, earlier ones through the backward scan."""
    resampler, features = build(), torch.randn(1, 1, length, 6)
    changed = features.clone()
    changed[0, 0, length // 2] += 3
    heard = (run(resampler, changed) - run(resampler, features)).abs().amax(-1)[0, 0]
    assert (heard > 0).all()


@pytest.mark.parametrize("silent", [0, 1])
def test_each_direction_hears_one_side_only(silent):
    resampler, features = build(), torch.randn(1, 1, 11, 6)
    with torch.no_grad():
        resampler.layers[0].out_projection.weight.chunk(2, dim=1)[silent].zero_()
    changed = features.clone()
    changed[0, 0, 5] += 3
    heard = (run(resampler, changed) - run(resampler, features)).abs().amax(-1)[0, 0] > 0
    expected = [i <= 5 for i in range(11)] if silent == 0 else [i >= 5 for i in range(11)]
    assert heard.tolist() == expected


def test_views_do_not_see_each_other():
    resampler, features = build(layers=2), torch.randn(1, 3, 9, 6)
    alone = run(resampler, features[:, 1:2])
    torch.testing.assert_close(run(resampler, features)[:, 1:2], alone, rtol=0, atol=1e-6)


def test_heads_must_divide_the_inner_width():
    with pytest.raises(ValueError, match=r"head_width=12 does not divide the inner width 32 \(expand=2 x width=16\)"):
        build(head_width=12)
