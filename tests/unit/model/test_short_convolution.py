"""The short convolution against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional

from panollava.model.state_space.layer import short_convolution
from panollava.model.state_space.scan import ELEMENTS


def inputs(length: int, *, taps: int = 4, n: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, n, length, 5), (2, taps, 5), (2, 5)]
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("elements", [1, 100, 10**9])
@pytest.mark.parametrize("taps", [1, 4])
def test_equals_a_depthwise_convolution(taps, elements, monkeypatch):
    monkeypatch.setitem(ELEMENTS, "cpu", elements)
    sequences, weight, bias = inputs(9, taps=taps)
    parts = short_convolution(sequences, weight, bias, splits=[3, 2])
    assert [part.shape for part in parts] == [(2, 3, 9, 3), (2, 3, 9, 2)]
    for direction in range(2):
        padded = functional.pad(sequences[direction].mT, (taps - 1, 0))
        summed = functional.conv1d(padded, weight[direction].T[:, None], bias[direction], groups=5).mT
        torch.testing.assert_close(torch.cat(parts, -1)[direction], functional.silu(summed))


@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_ring_hears_of_its_end_even_if_shorter_than_the_taps(length):
    sequences, weight, bias = inputs(length)
    (ring,) = short_convolution(sequences, weight, bias, splits=[5], periodic=True)
    (twice,) = short_convolution(sequences.repeat(1, 1, 5, 1), weight, bias, splits=[5])
    torch.testing.assert_close(ring, twice[:, :, -length:])


@pytest.mark.parametrize("elements", [40, 10**9])
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("length", [2, 7])
def test_gradients_against_finite_differences(length, periodic, elements, monkeypatch):
    monkeypatch.setitem(ELEMENTS, "cpu", elements)
    assert gradcheck(lambda *x: short_convolution(*x, splits=[3, 2], periodic=periodic), inputs(length, n=2))


def test_under_autocast_it_is_float32_and_gradients_keep_the_type_of_their_input():
    sequences, weight, bias = (x.detach().float().requires_grad_() for x in inputs(9))
    low = sequences.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (result,) = short_convolution(low, weight, bias, splits=[5])
        result.sum().backward()
    assert (result.dtype, low.grad.dtype, weight.grad.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    (expected,) = short_convolution(low.detach().float(), weight, bias, splits=[5])
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
