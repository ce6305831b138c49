"""The chunked scan against the recurrence itself, step by step in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from panollava.model.state_space import BidirectionalStateSpace, chunked_scan


def step_by_step(values: Tensor, log_decay: Tensor, write: Tensor, read: Tensor) -> Tensor:
    state = values.new_zeros(*values[:, 0].shape, write.shape[-1])
    outputs = []
    for step in range(values.shape[1]):
        written = values[:, step, :, :, None] * write[:, step, None, None, :]
        state = state * log_decay[:, step].exp()[..., None, None] + written
        outputs.append((state * read[:, step, None, None, :]).sum(-1))
    return torch.stack(outputs, dim=1)


def sequences(length: int, *, n: int = 2, heads: int = 3, head_width: int = 5, state: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    log_decay = -torch.rand(n, length, heads, generator=generator)
    values = torch.randn(n, length, heads, head_width, generator=generator)
    write, read = (torch.randn(n, length, state, generator=generator) for _ in range(2))
    return [values, log_decay, write, read]


def compare(inputs: list[Tensor], *, chunk: int = 64, tolerance: float = 1e-5) -> None:
    """Outputs and all gradients, relative to the largest entry of each."""
    results = []
    for function, dtype in (
        (lambda *x: chunked_scan(*x, chunk=chunk), torch.float32),
        (step_by_step, torch.float64),
    ):
        leaves = [x.detach().clone().to(dtype).requires_grad_() for x in inputs]
        output = function(*leaves)
        weights = torch.linspace(-1, 1, output.numel(), dtype=dtype).view_as(output).sin()
        (output * weights).sum().backward()
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for ours, reference in zip(*results, strict=True):
        assert torch.isfinite(ours).all()
        assert (ours.double() - reference).abs().max() <= tolerance * reference.abs().max()


@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize("length", [1, 2, 16, 37])
def test_equals_the_recurrence(length, chunk):
    compare(sequences(length), chunk=chunk)


@pytest.mark.parametrize("length", [64, 65, 196, 256])
def test_equals_the_recurrence_over_several_chunks(length):
    compare(sequences(length))


def test_digits_survive_behind_a_strong_decay():
    """One step forgets everything; the slow decays around it must keep their own precision."""
    inputs = sequences(150)
    inputs[1] *= 0.01
    inputs[1][:, ::20] = -3e4
    compare(inputs)


def test_a_long_memory_neither_grows_nor_fades():
    inputs = sequences(3000, n=1, heads=1, head_width=2, state=2)
    inputs[1] *= 1e-4
    compare(inputs, tolerance=1e-4)


@pytest.mark.parametrize("rate", [0.0, 1.0, 1e4, 1e30])
def test_extreme_decays_stay_finite(rate):
    inputs = sequences(100)
    inputs[1] = torch.full_like(inputs[1], -rate)
    compare(inputs)


def test_is_float32_under_autocast():
    inputs = sequences(70)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = chunked_scan(*inputs)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, chunked_scan(*inputs), rtol=0, atol=0)
    assert chunked_scan(*(x.bfloat16() for x in inputs)).dtype == torch.float32


def small_layer() -> BidirectionalStateSpace:
    return BidirectionalStateSpace(width=8, state=4, conv=3, expand=2, head_width=4)


def test_layer_equals_its_definition():
    """x + ½(forward + backward) written out for one direction at a time, with torch's own convolution."""
    torch.manual_seed(0)
    layer, tokens = small_layer().double(), torch.randn(2, 11, 8, dtype=torch.float64)
    torch.nn.init.normal_(layer.conv_bias)
    torch.nn.init.normal_(layer.gate_norm)
    torch.nn.init.normal_(layer.skip)
    expected = tokens.clone()
    projections = layer.in_projection.weight.chunk(2)
    for direction in range(2):
        part = [vector.chunk(2)[direction] for vector in (layer.conv_bias, layer.step_bias, layer.log_rate)]
        skip, gain = layer.skip.chunk(2)[direction], layer.gate_norm.chunk(2)[direction]
        x = layer.norm(tokens).flip(1) if direction else layer.norm(tokens)
        gate, mixed, step = (x @ projections[direction].T).split([16, 24, 4], dim=-1)
        kernel = layer.conv_weight[direction].T[:, None]
        mixed = torch.nn.functional.conv1d(mixed.mT, kernel, part[0], padding=2, groups=24)[..., :11].mT
        values, write, read = torch.nn.functional.silu(mixed).split([16, 4, 4], dim=-1)
        step = torch.nn.functional.softplus(step + part[1])
        values = values.unflatten(-1, (4, 4))
        scanned = step_by_step(values * step[..., None], -step * part[2].exp(), write, read)
        scanned = (scanned + values * skip[:, None]).flatten(2) * torch.nn.functional.silu(gate)
        scanned = scanned / (scanned.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain
        scanned = scanned @ layer.out_projection.weight.chunk(2, dim=1)[direction].T
        expected = expected + 0.5 * (scanned.flip(1) if direction else scanned)
    torch.testing.assert_close(layer(tokens), expected, rtol=1e-4, atol=1e-5)


def test_only_matrices_and_convolutions_have_two_dimensions_or_more():
    """Weight decay goes by that: rates, steps and norms must not be drawn to zero."""
    decayed = {name for name, parameter in small_layer().named_parameters() if parameter.dim() > 1}
    assert decayed == {"conv_weight", "in_projection.weight", "out_projection.weight"}


def test_parameters_can_be_drawn_again():
    layer = small_layer()
    with torch.no_grad():
        for parameter in layer.parameters(recurse=False):
            parameter.fill_(torch.nan)
    layer.reset_parameters()
    assert all(torch.isfinite(parameter).all() for parameter in layer.parameters())
    steps = torch.nn.functional.softplus(layer.step_bias)
    assert 0.0009 < steps.min() <= steps.max() < 0.11
