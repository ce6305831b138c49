"""The schedule is a function of the step, and only matrices decay."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from panollava.training.options import OptimOptions, make_optimizer


def test_warmup_rises_then_cosine_falls_to_zero() -> None:
    options = OptimOptions(warmup_ratio=0.1)
    rates = [options.learning_rate(1.0, step, 100) for step in range(101)]
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert rates[10] == pytest.approx(1.0)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert rates[55] == pytest.approx(0.5)


def test_linear_constant_steps_and_floor() -> None:
    linear = OptimOptions(warmup_steps=0, schedule="linear", final_ratio=0.1)
    assert linear.learning_rate(2.0, 50, 100) == pytest.approx(2.0 * 0.55)
    assert linear.learning_rate(2.0, 100, 100) == pytest.approx(0.2)
    constant = OptimOptions(warmup_steps=4, schedule="constant")
    assert [constant.learning_rate(1.0, step, 100) for step in (0, 3, 4, 99)] == [0.2, 0.8, 1.0, 1.0]


def test_only_matrices_decay() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimizer = make_optimizer(dict(module.named_parameters()), OptimOptions(weight_decay=0.5), lr=0.1)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer.step()
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"0.weight"}
