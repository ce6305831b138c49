"""The bidirectional layer against its definition, written out one direction at a time, and around rings."""

from __future__ import annotations

import pytest
import torch
from support.models import ROUNDS, step_by_step
from torch import Tensor
from torch.nn import functional

from panollava.model.state_space.layer import BidirectionalStateSpace


def small_layer() -> BidirectionalStateSpace:
    torch.manual_seed(0)
    layer = BidirectionalStateSpace(width=8, state=4, conv=3, expand=2, head_width=4)
    for vector in (layer.conv_bias, layer.gate_norm, layer.skip, layer.step_bias):
        torch.nn.init.normal_(vector)
    return layer


def by_definition(layer: BidirectionalStateSpace, tokens: Tensor, *, periodic: bool) -> Tensor:
    """x + ½(forward + backward), with torch's own convolution; of a ring, what it settles to round after round."""
    result = tokens.clone()
    rounds = ROUNDS if periodic else 1
    for direction in range(2):
        gate_map, mixed_map, step_map, out_map, conv_bias, step_bias, log_rate, skip, gain = (
            parameter.chunk(2)[direction]
            for parameter in (
                layer.gate_projection.weight, layer.mixed_projection.weight, layer.step_projection.weight,
                layer.out_projection.weight, layer.conv_bias, layer.step_bias, layer.log_rate, layer.skip,
                layer.gate_norm,
            )
        )  # fmt: skip
        x = layer.norm(tokens).flip(1) if direction else layer.norm(tokens)
        mixed = (x @ mixed_map.T).mT
        mixed = functional.pad(mixed, (2, 0), mode="circular" if periodic else "constant")
        mixed = functional.conv1d(mixed, layer.conv_weight[direction].T[:, None], conv_bias, groups=24).mT
        values, write, read = functional.silu(mixed).split([16, 4, 4], dim=-1)
        step = functional.softplus(x @ step_map.T + step_bias)
        scanned = step_by_step(
            values.unflatten(-1, (4, 4)), step, -step * log_rate.exp(), write, read, skip.expand(2, 4), rounds=rounds
        )
        scanned = scanned.flatten(2) * functional.silu(x @ gate_map.T)
        scanned = scanned / (scanned.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain
        scanned = scanned @ out_map.T
        result = result + 0.5 * (scanned.flip(1) if direction else scanned)
    return result


@pytest.mark.parametrize("periodic", [False, True])
def test_layer_equals_its_definition(periodic):
    layer, tokens = small_layer().double(), torch.randn(2, 70, 8, dtype=torch.float64)
    expected = by_definition(layer, tokens, periodic=periodic)
    torch.testing.assert_close(layer(tokens, periodic=periodic), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_where_a_ring_starts_does_not_matter(dtype, tolerance):
    layer, tokens = small_layer().to(dtype), torch.randn(2, 150, 8, dtype=dtype)
    expected = layer(tokens, periodic=True).roll(37, dims=1)
    torch.testing.assert_close(layer(tokens.roll(37, dims=1), periodic=True), expected, rtol=0, atol=tolerance)


def test_gradients_against_finite_differences():
    layer, tokens = small_layer().double(), torch.randn(1, 5, 8, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(tokens: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, named, (tokens,), {"periodic": True})

    assert torch.autograd.gradcheck(run, (tokens, *layer.parameters()), fast_mode=True)


def test_only_matrices_and_convolutions_have_two_dimensions_or_more():
    """Weight decay goes by that: rates, steps and norms must not be drawn to zero."""
    decayed = {name for name, parameter in small_layer().named_parameters() if parameter.dim() > 1}
    linear = {f"{name}_projection.weight" for name in ("gate", "mixed", "step", "out")}
    assert decayed == linear | {"conv_weight"}


def test_parameters_can_be_drawn_again():
    layer = small_layer()
    with torch.no_grad():
        for parameter in layer.parameters(recurse=False):
            parameter.fill_(torch.nan)
    layer.reset_parameters()
    assert all(torch.isfinite(parameter).all() for parameter in layer.parameters())
    steps = functional.softplus(layer.step_bias)
    assert 0.0009 < steps.min() <= steps.max() < 0.11
