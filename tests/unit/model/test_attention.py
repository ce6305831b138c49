"""Attention against PyTorch's own module, and weights whose outputs have one scale at every width."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from panollava.model.layers import Attention, FeedForward, draw


def test_is_multi_head_attention() -> None:
    torch.manual_seed(0)
    attention = Attention(width=12, context_width=7, heads=3, residuals=1)
    oracle = nn.MultiheadAttention(12, 3, bias=False, kdim=7, vdim=7, batch_first=True)
    keys, values = attention.context_projection.weight.chunk(2)
    with torch.no_grad():
        oracle.q_proj_weight.copy_(attention.query_projection.weight)
        oracle.k_proj_weight.copy_(keys)
        oracle.v_proj_weight.copy_(values)
        oracle.out_proj.weight.copy_(attention.out_projection.weight)
    tokens, context = torch.randn(2, 5, 12), torch.randn(2, 9, 7)
    torch.testing.assert_close(attention(tokens, context), oracle(tokens, context, context)[0])


@pytest.mark.parametrize("width", [96, 768])
def test_a_linear_layer_keeps_one_scale_at_every_width(width: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(width, 512)
    draw(linear)
    outputs = linear(torch.randn(512, width))
    # A normal cut off at two deviations has 0.880 of its deviation.
    assert outputs.std().item() == pytest.approx(0.880 * 0.02 * 768**0.5, rel=0.02)
    assert linear.bias.abs().max() == 0


def test_branches_share_one_variance() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(64, 9, 96)
    for module in (FeedForward, lambda **kw: Attention(**kw, context_width=96, heads=3)):
        torch.manual_seed(1)
        alone = module(width=96, residuals=1)
        torch.manual_seed(1)
        of_nine = module(width=96, residuals=9)
        arguments = [tokens] if module is FeedForward else [tokens, tokens]
        torch.testing.assert_close(of_nine(*arguments), alone(*arguments) / 3)
