"""DenseCL against its formula written out place by place."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panollava.losses.objective import densecl as dense
from panollava.losses.objective.densecl import dense_batch, dense_pairs

MASK = torch.tensor([[True, True, True, True], [True, False, True, False], [False, True, True, True]])


def slow_side(a: Tensor, b: Tensor, mask: Tensor, temperature: float, everywhere: bool) -> Tensor:
    """Cross-entropy ``(P,)`` of finding b from a: one logit after the other."""
    means = []
    for pair in range(len(a)):
        terms = []
        for place in range(a.shape[1]):
            if not mask[pair, place]:
                continue
            sums = torch.zeros((), dtype=torch.float64)
            for other in range(len(b)) if everywhere else [pair]:
                for key in range(b.shape[1]):
                    if mask[other, key]:
                        sums = sums + (cosine(a[pair, place], b[other, key]) / temperature).exp()
            terms.append(sums.log() - cosine(a[pair, place], b[pair, place]) / temperature)
        means.append(torch.stack(terms).mean())
    return torch.stack(means)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()


def fast(a: Tensor, b: Tensor, mask: Tensor, temperature: float, everywhere: bool) -> tuple[Tensor, Tensor]:
    if everywhere:
        return dense_batch(a, b, mask, temperature=temperature, across_ranks=False)
    return dense_pairs(a, b, mask, temperature=temperature)


@pytest.mark.parametrize("everywhere", [False, True], ids=["pair", "batch"])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_values_and_gradients_are_those_of_the_formula(everywhere: bool, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 4, 5, generator=generator).requires_grad_() for _ in range(2))
    weights = torch.tensor([1.0, 2.0, 0.5])
    slow_a, slow_b = (side.detach().double().requires_grad_() for side in (a, b))
    forward, backward = fast(a, b, MASK, temperature, everywhere)
    slow = (
        slow_side(slow_a, slow_b, MASK, temperature, everywhere),
        slow_side(slow_b, slow_a, MASK, temperature, everywhere),
    )
    torch.testing.assert_close(forward.double(), slow[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(backward.double(), slow[1], rtol=1e-5, atol=1e-6)
    ((forward + 3 * backward) * weights).sum().backward()
    ((slow[0] + 3 * slow[1]) * weights).sum().backward()
    torch.testing.assert_close(a.grad.double(), slow_a.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(b.grad.double(), slow_b.grad, rtol=1e-4, atol=1e-6)
    assert not a.grad[~MASK].any()


def test_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (torch.randn(3, 4, 5, requires_grad=True) for _ in range(2))
    results = []
    for most in (2**24, 1, 20):
        monkeypatch.setattr(dense, "MAX_LOGITS", most)
        total = sum(side.sum() for side in fast(a, b, MASK, 0.07, True))
        results.append((total, *torch.autograd.grad(total, (a, b))))
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 2**16), st.floats(0.05, 2))
def test_scale_and_order_do_not_count_and_batches_are_harder(pairs: int, places: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(pairs, places, 6, generator=generator) for _ in range(2))
    mask = torch.ones(pairs, places, dtype=torch.bool)
    order = torch.randperm(places, generator=generator)
    pair, batch = (fast(a, b, mask, 0.1, everywhere)[0] for everywhere in (False, True))
    torch.testing.assert_close(fast(scale * a, 3 * b, mask, 0.1, False)[0], pair, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast(a[:, order], b[:, order], mask, 0.1, True)[0], batch, rtol=1e-4, atol=1e-5)
    assert bool((batch >= pair - 1e-5).all())
    if pairs == 1:
        torch.testing.assert_close(batch, pair, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("everywhere", [False, True], ids=["pair", "batch"])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_collapsed_places_cost_chance_and_have_finite_gradients(everywhere: bool, level: float) -> None:
    a, b = (torch.full((3, 4, 5), level, requires_grad=True) for _ in range(2))
    forward, backward = fast(a, b, MASK, 0.07, everywhere)
    counts = MASK.sum().expand(3) if everywhere else MASK.sum(dim=1)
    torch.testing.assert_close(forward, counts.float().log())
    (forward.sum() + backward.sum()).backward()
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()


@pytest.mark.parametrize("everywhere", [False, True], ids=["pair", "batch"])
def test_is_float32_under_autocast(everywhere: bool) -> None:
    a, b = torch.randn(2, 8, 16), torch.randn(2, 8, 16)
    mask = torch.ones(2, 8, dtype=torch.bool)
    plain = fast(a, b, mask, 0.07, everywhere)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = fast(a, b, mask, 0.07, everywhere)
    torch.testing.assert_close(inside, plain, rtol=0, atol=0)
    assert fast(a.bfloat16(), b.bfloat16(), mask, 0.07, everywhere)[0].dtype == torch.float32


def test_one_place_a_pair_has_nothing_to_be_told_from() -> None:
    a, b = torch.randn(3, 1, 4), torch.randn(3, 1, 4)
    mask = torch.ones(3, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"at least 2 matched tokens a pair.*negatives=batch"):
        fast(a, b, mask, 0.07, False)
    assert math.isfinite(float(fast(a, b, mask, 0.07, True)[0].sum()))
