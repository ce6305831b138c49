"""The gated norm against its parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional

from panollava.model.state_space.layer import gated_norm
from panollava.model.state_space.scan import ELEMENTS


def inputs(rows: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows)
    shapes = [(2, rows, 6), (2, rows, 6), (2, 6)]
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("elements", [1, 30, 10**9])
def test_equals_its_parts_and_their_gradients(elements, monkeypatch):
    monkeypatch.setitem(ELEMENTS, "cpu", elements)
    values, gate, gain = inputs()
    expected = functional.rms_norm(values * functional.silu(gate), (6,), eps=1e-5) * gain[:, None]
    torch.testing.assert_close(gated_norm(values, gate, gain), expected)
    assert gradcheck(gated_norm, (values, gate, gain))


def test_what_is_shut_stays_finite():
    values, gate, gain = (x.detach().float().requires_grad_() for x in inputs())
    result = gated_norm(values * 0, gate, gain)
    result.sum().backward()
    assert (result == 0).all()
    assert all(torch.isfinite(x.grad).all() for x in (values, gate, gain))


def test_computes_in_the_type_of_the_values_and_answers_in_the_gates():
    values, gate, gain = (x.detach().float() for x in inputs())
    low = gate.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = gated_norm(values, low, gain)
        result.sum().backward()
    assert (result.dtype, low.grad.dtype) == (torch.bfloat16, torch.bfloat16)
    torch.testing.assert_close(result.float(), gated_norm(values, low.float(), gain), rtol=1e-2, atol=1e-2)
