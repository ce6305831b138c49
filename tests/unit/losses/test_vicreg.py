"""VICReg against the formula written out loop by loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panollava.losses.objective.vicreg import vicreg_batch, vicreg_pairs


def slow_terms(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """Invariance, variance and covariance of one pair, entry by entry."""
    length, width = a.shape
    invariance = sum(float((a[i, d] - b[i, d]) ** 2) for i in range(length) for d in range(width)) / (length * width)
    variance = covariance = 0.0
    for side in (a, b):
        means = [float(side[:, d].mean()) for d in range(width)]
        for d in range(width):
            population = sum((float(x) - means[d]) ** 2 for x in side[:, d]) / length
            variance += max(0.0, 1 - math.sqrt(population + 1e-4)) / width / 2
            for e in range(width):
                if e != d:
                    products = [(float(x[d]) - means[d]) * (float(x[e]) - means[e]) for x in side]
                    covariance += (sum(products) / (length - 1)) ** 2 / width / 2
    return invariance, variance, covariance


@pytest.mark.parametrize(("length", "width"), [(2, 5), (4, 7), (9, 3), (5, 5), (3, 1)])
def test_equals_the_formula(length, width):
    generator = torch.Generator().manual_seed(length * width)
    a = 0.7 * torch.randn(3, length, width, generator=generator)
    b = a + 0.5 * torch.randn(3, length, width, generator=generator)
    terms = vicreg_pairs(a, b)
    for pair in range(3):
        invariance, variance, covariance = slow_terms(a[pair], b[pair])
        assert terms.invariance[pair].item() == pytest.approx(invariance, rel=1e-5)
        assert terms.variance[pair].item() == pytest.approx(variance, rel=1e-5, abs=1e-6)
        assert terms.covariance[pair].item() == pytest.approx(covariance, rel=1e-4, abs=1e-6)
        assert terms.total[pair].item() == pytest.approx(25 * invariance + 25 * variance + covariance, rel=1e-5)


def test_weights_scale_the_terms():
    a, b = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    terms = vicreg_pairs(a, b, invariance=2.0, variance=3.0, covariance=5.0)
    torch.testing.assert_close(terms.total, 2 * terms.invariance + 3 * terms.variance + 5 * terms.covariance)


def test_pairs_do_not_touch_each_other():
    a, b = torch.randn(4, 6, 5), torch.randn(4, 6, 5)
    torch.testing.assert_close(vicreg_pairs(a, b).total[1:3], vicreg_pairs(a[1:3], b[1:3]).total)


@pytest.mark.parametrize(("length", "width"), [(4, 6), (8, 3)])
def test_gradients_are_those_of_the_formula(length, width):
    a = (0.3 * torch.randn(2, length, width)).requires_grad_()
    b = (0.3 * torch.randn(2, length, width)).requires_grad_()
    vicreg_pairs(a, b).total.sum().backward()
    reference_a, reference_b = a.detach().double().requires_grad_(), b.detach().double().requires_grad_()
    total = 25 * (reference_a - reference_b).square().mean(dim=(1, 2)).sum()
    for side in (reference_a, reference_b):
        for pair in side:
            deviation = (pair.var(dim=0, correction=0) + 1e-4).sqrt()
            covariance = pair.T.cov()
            off_diagonal = covariance - torch.diag(covariance.diagonal())
            total = total + 12.5 * (1 - deviation).relu().mean() + 0.5 * off_diagonal.square().sum() / width
    total.backward()
    torch.testing.assert_close(a.grad.double(), reference_a.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b.grad.double(), reference_b.grad, rtol=1e-4, atol=1e-5)


def test_is_float32_under_autocast():
    a, b = torch.randn(2, 12, 9), torch.randn(2, 12, 9)
    plain = vicreg_pairs(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = vicreg_pairs(a, b)
    assert all(term.dtype == torch.float32 for term in terms)
    torch.testing.assert_close(terms.total, plain.total, rtol=0, atol=0)
    assert vicreg_pairs(a.bfloat16(), b.bfloat16()).total.dtype == torch.float32


def test_collapsed_tokens_have_finite_gradients():
    a = torch.ones(1, 4, 3, requires_grad=True)
    terms = vicreg_pairs(a, a.detach())
    terms.total.sum().backward()
    assert terms.variance.item() == pytest.approx(1 - 0.01)
    assert torch.isfinite(a.grad).all()


def test_one_token_a_pair_is_refused():
    with pytest.raises(ValueError, match="at least 2 matched tokens a pair"):
        vicreg_pairs(torch.randn(3, 1, 8), torch.randn(3, 1, 8))


def test_tokens_that_only_fill_up_count_for_nothing():
    a, b = torch.randn(2, 7, 5), torch.randn(2, 7, 5)
    mask = torch.tensor([[True] * 7, [True, False, True, True, False, False, True]])
    terms = vicreg_pairs(a, b, mask)
    for pair in range(2):
        alone = vicreg_pairs(a[pair, mask[pair]][None], b[pair, mask[pair]][None])
        for term, expected in zip(terms, alone, strict=True):
            torch.testing.assert_close(term[pair : pair + 1], expected, rtol=1e-5, atol=1e-6)


def test_a_pair_of_one_token_among_others_is_refused():
    mask = torch.tensor([[True, True, True], [False, True, False]])
    with pytest.raises(ValueError, match=r"at least 2 matched tokens a pair .* got 1"):
        vicreg_pairs(torch.randn(2, 3, 4), torch.randn(2, 3, 4), mask)


MASK = torch.tensor([[True] * 6, [True, False, True, True, False, False]])


@pytest.mark.parametrize("width", [3, 14])
def test_a_batch_equals_the_formula_over_all_its_tokens(width):
    a = (0.6 * torch.randn(2, 6, width)).requires_grad_()
    b = (0.6 * torch.randn(2, 6, width)).requires_grad_()
    terms = vicreg_batch(a, b, MASK)
    invariance, variance, covariance = slow_terms(a.detach()[MASK], b.detach()[MASK])
    assert terms.invariance.item() == pytest.approx(invariance, rel=1e-5)
    assert terms.variance.item() == pytest.approx(variance, rel=1e-5, abs=1e-6)
    assert terms.covariance.item() == pytest.approx(covariance, rel=1e-4, abs=1e-6)
    assert terms.total.item() == pytest.approx(25 * invariance + 25 * variance + covariance, rel=1e-5)
    terms.total.backward()
    reference_a, reference_b = a.detach().double().requires_grad_(), b.detach().double().requires_grad_()
    total = 25 * (reference_a[MASK] - reference_b[MASK]).square().mean()
    for side in (reference_a, reference_b):
        deviation = (side[MASK].var(dim=0, correction=0) + 1e-4).sqrt()
        covariance = side[MASK].T.cov()
        off_diagonal = covariance - torch.diag(covariance.diagonal())
        total = total + 12.5 * (1 - deviation).relu().mean() + 0.5 * off_diagonal.square().sum() / width
    total.backward()
    torch.testing.assert_close(a.grad.double(), reference_a.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b.grad.double(), reference_b.grad, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 2**16))
def test_one_pair_is_its_own_batch_and_tokens_may_move_between_pairs(length, width, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(1, 2 * length, width, generator=generator) for _ in range(2))
    batch = vicreg_batch(a, b)
    for term, expected in zip(batch, vicreg_pairs(a, b), strict=True):
        torch.testing.assert_close(term, expected[0], rtol=1e-4, atol=1e-5)
    order = torch.randperm(2 * length, generator=generator)
    cut = vicreg_batch(*(side[:, order].reshape(2, length, width) for side in (a, b)))
    torch.testing.assert_close(cut.total, batch.total, rtol=1e-4, atol=1e-5)


def test_pairs_that_are_each_a_point_are_no_collapse_of_a_batch():
    levels = torch.linspace(-3, 3, 8)[:, None, None] * torch.tensor([1.0, -1.0])
    a = levels.expand(8, 4, 2)
    assert vicreg_pairs(a, a).variance.min() > 0.98
    assert vicreg_batch(a, a).variance == 0


def test_a_batch_is_float32_under_autocast_and_finite_when_collapsed():
    a, b = torch.randn(2, 12, 9), torch.randn(2, 12, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = vicreg_batch(a, b)
    torch.testing.assert_close(inside.total, vicreg_batch(a, b).total, rtol=0, atol=0)
    assert vicreg_batch(a.bfloat16(), b.bfloat16()).total.dtype == torch.float32
    point = torch.ones(2, 4, 3, requires_grad=True)
    vicreg_batch(point, point.detach()).total.backward()
    assert torch.isfinite(point.grad).all()


def test_a_batch_of_one_token_is_refused():
    with pytest.raises(ValueError, match="at least 2 matched tokens a batch"):
        vicreg_batch(torch.randn(1, 1, 8), torch.randn(1, 1, 8))
