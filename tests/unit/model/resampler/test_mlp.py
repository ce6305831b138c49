"""What sets the mlp resampler apart: each token comes from its own patch, at unit scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from panollava.model.resampler.mlp import MlpResampler


def run(resampler: MlpResampler, features: Tensor) -> Tensor:
    mask = torch.ones(features.shape[:2], dtype=torch.bool)
    return resampler(features, grid=(1, features.shape[2]), view_mask=mask, cameras=torch.zeros(*mask.shape, 11))


def test_is_equivariant_to_the_order_of_tokens():
    resampler, features = MlpResampler(input_width=6, output_width=8, width=16), torch.randn(2, 3, 7, 6)
    order = torch.randperm(7)
    torch.testing.assert_close(run(resampler, features[:, :, order]), run(resampler, features)[:, :, order])


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_tokens_have_unit_scale_whatever_the_encoders(scale):
    tokens = run(MlpResampler(input_width=6, output_width=32, width=16), scale * torch.randn(2, 3, 7, 6))
    torch.testing.assert_close(tokens.square().mean(-1), torch.ones(2, 3, 7), rtol=1e-2, atol=1e-2)


def test_defaults_are_the_documented_ones():
    linear = [m for m in MlpResampler(input_width=6, output_width=8).layers if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(6, 1536), (1536, 1536), (1536, 8)]


def test_with_the_layers_at_zero_a_linear_map_of_the_normed_features_is_left():
    resampler, features = MlpResampler(input_width=6, output_width=8, width=16), torch.randn(2, 3, 7, 6)
    with torch.no_grad():
        for weight in resampler.layers[-2].parameters():
            weight.zero_()
    shortcut = resampler.shortcut
    torch.testing.assert_close(shortcut.linear.weight.T @ shortcut.linear.weight, torch.eye(6))
    expected = resampler.layers[-1](shortcut.linear(shortcut.norm(features)))
    torch.testing.assert_close(run(resampler, features), expected)


def test_options_choose_the_layers():
    kinds = [type(m) for m in MlpResampler(input_width=6, output_width=8, norm="rms", activation="silu").layers]
    assert kinds == [nn.Linear, nn.RMSNorm, nn.SiLU] * 2 + [nn.Linear, nn.LayerNorm]
    assert [type(m) for m in MlpResampler(input_width=6, output_width=8, depth=1).layers] == [
        nn.Linear,
        nn.LayerNorm,
    ]
