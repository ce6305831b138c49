"""What sets the qformer apart: queries hear each other and read features by attentions of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from panollava.model.resampler.qformer import QformerResampler


def run(resampler: QformerResampler, features: Tensor) -> Tensor:
    mask = torch.ones(features.shape[:2], dtype=torch.bool)
    return resampler(features, grid=(1, features.shape[2]), view_mask=mask, cameras=torch.zeros(*mask.shape, 11))


def test_features_come_in_by_cross_attention_and_queries_meet_in_self_attention():
    torch.manual_seed(0)
    resampler = QformerResampler(input_width=6, output_width=8, queries=3, layers=1, width=16, heads=2, shortcut=False)
    one, other = torch.randn(2, 1, 1, 7, 6)
    (layer,) = resampler.layers
    with torch.no_grad():
        layer.self_attention.out_projection.weight.zero_()
        before = run(resampler, one)
        resampler.queries[0] += torch.randn(16)
        assert (run(resampler, one) != before).any(-1)[0, 0].tolist() == [True, False, False]
        layer.cross_attention.out_projection.weight.zero_()
        assert torch.equal(run(resampler, one), run(resampler, other))


def test_defaults_are_the_documented_ones():
    with torch.device("meta"):
        resampler = QformerResampler(input_width=6, output_width=8)
    assert resampler.queries.shape == (64, 768)
    assert len(resampler.layers) == 6
    assert resampler.layers[0].feed_forward.expand.out_features == 4 * 768
