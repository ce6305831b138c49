"""What sets the identity resampler apart: it does nothing."""

from __future__ import annotations

import torch

from panollava.model.resampler.identity import IdentityResampler


def test_tokens_are_the_features():
    features = torch.randn(2, 3, 7, 6)
    mask = torch.ones(2, 3, dtype=torch.bool)
    resampler = IdentityResampler(input_width=6, output_width=6)
    order = torch.randperm(7)
    tokens = resampler(features[:, :, order], grid=(1, 7), view_mask=mask, cameras=torch.zeros(2, 3, 11))
    assert torch.equal(tokens, features[:, :, order])
    assert list(resampler.parameters()) == []
