"""The chunked scan against the recurrence itself, step by step in float64, around rings too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import ROUNDS, step_by_step
from torch import Tensor
from torch.autograd import gradcheck

from panollava.model.state_space.scan import ELEMENTS, chunked_scan, state_space_scan


def sequences(length: int, *, n: int = 2, heads: int = 3, head_width: int = 5, state: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    values = torch.randn(n, length, heads, head_width, generator=generator)
    step, log_decay = (torch.rand(n, length, heads, generator=generator) for _ in range(2))
    write, read = (torch.randn(n, length, state, generator=generator) for _ in range(2))
    return [values, step, -log_decay, write, read, torch.randn(n, heads, generator=generator)]


def compare(
    inputs: list[Tensor], *, chunk: int = 64, tolerance: float = 1e-5, periodic: bool = False, rounds: int = 1
) -> None:
    """Outputs and all gradients, relative to the largest entry of each."""
    results = []
    for function, dtype in (
        (lambda *x: chunked_scan(*x, chunk=chunk, periodic=periodic), torch.float32),
        (lambda *x: step_by_step(*x, rounds=rounds), torch.float64),
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


@pytest.mark.parametrize("length", [64, 65, 131, 196, 256])
def test_equals_the_recurrence_over_several_chunks(length):
    compare(sequences(length))


@settings(deadline=None, max_examples=25)
@given(length=st.integers(1, 40), chunk=st.integers(1, 12), n=st.integers(1, 3), periodic=st.booleans())
def test_equals_the_recurrence_at_any_length(length, chunk, n, periodic):
    inputs = [x.double() for x in sequences(length, n=n)]
    inputs[2] -= 1
    ours = chunked_scan(*inputs, chunk=chunk, periodic=periodic)
    reference = step_by_step(*inputs, rounds=ROUNDS if periodic else 1)
    torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("blocks", [1, 10**9])
def test_the_size_of_the_pieces_does_not_matter(blocks, monkeypatch):
    monkeypatch.setitem(ELEMENTS, "cpu", blocks)
    compare(sequences(150))


@pytest.mark.parametrize("periodic", [False, True])
def test_gradients_against_finite_differences(periodic):
    inputs = [x.double().requires_grad_() for x in sequences(7, heads=2, head_width=2, state=3)]
    assert gradcheck(lambda *x: chunked_scan(*x, chunk=3, periodic=periodic), inputs)


def test_digits_survive_behind_a_strong_decay():
    """One step forgets everything; the slow decays around it must keep their own precision."""
    inputs = sequences(150)
    inputs[2] *= 0.01
    inputs[2][:, ::20] = -3e4
    compare(inputs)


def test_a_long_memory_neither_grows_nor_fades():
    inputs = sequences(3000, n=1, heads=1, head_width=2, state=2)
    inputs[2] *= 1e-4
    compare(inputs, tolerance=1e-4)


@pytest.mark.parametrize("rate", [0.0, 1.0, 1e4, 1e30])
def test_extreme_decays_stay_finite(rate):
    inputs = sequences(100)
    inputs[2] = torch.full_like(inputs[2], -rate)
    compare(inputs)


def test_in_bfloat16_the_error_is_that_of_rounding_the_inputs():
    inputs = [x.bfloat16() for x in sequences(300)]
    ours, exact = chunked_scan(*inputs), step_by_step(*(x.double() for x in inputs))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4)


def test_is_float32_under_autocast_forward_and_backward():
    plain, mixed = ([x.requires_grad_() for x in sequences(70)] for _ in range(2))
    chunked_scan(*plain).square().sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = chunked_scan(*mixed)
        result.square().sum().backward()
    assert result.dtype == torch.float32
    for ours, expected in zip(mixed, plain, strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=0, atol=0)


@pytest.mark.parametrize("length", [1, 5, 100])
def test_a_ring_is_the_sequence_walked_for_ever(length):
    inputs = sequences(length)
    inputs[2] -= 1.0
    compare(inputs, periodic=True, rounds=ROUNDS)


@pytest.mark.parametrize("decay", [1e-30, 1e-9, 1e-3, 1.0, 1e4])
def test_where_a_ring_starts_does_not_matter(decay):
    """From a ring that remembers nearly all (the sum of its decays vanishes beside 1) to one that forgets at once."""
    inputs = sequences(100)
    inputs[1], inputs[2] = inputs[1] * min(decay, 1.0), inputs[2] * decay
    turned = [x.roll(33, dims=1) for x in inputs[:-1]] + inputs[-1:]
    ours, expected = chunked_scan(*turned, periodic=True), chunked_scan(*inputs, periodic=True).roll(33, dims=1)
    assert torch.isfinite(ours).all()
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_ring_that_hardly_decays_holds_the_mean_of_what_is_written():
    """In the limit every token reads the same state: values weighted by their steps, over the rate."""
    inputs = sequences(100, n=1, heads=1)
    values, step, _, write, read, _ = inputs
    inputs[2], inputs[5] = -1e-6 * step, torch.zeros(1, 1)
    state = torch.einsum("nthp,nth,nts->nps", values, step, write) / (1e-6 * step.sum())
    expected = torch.einsum("nps,nts->ntp", state, read)[:, :, None]
    ours = chunked_scan(*inputs, periodic=True)
    assert (ours - expected).abs().max() < 1e-3 * expected.abs().max()


def test_a_ring_without_any_step_is_empty_and_finite():
    inputs = [x.requires_grad_() for x in sequences(20)]
    result = chunked_scan(inputs[0], 0 * inputs[1], 0 * inputs[2], *inputs[3:], periodic=True)
    torch.testing.assert_close(result, inputs[0] * inputs[5][:, None, :, None])


@pytest.mark.parametrize("periodic", [False, True])
def test_sets_of_rates_are_scanned_each_with_its_own(periodic):
    values, step, _, write, read, _ = (torch.stack([x, x.flip(1)]) for x in sequences(40))
    rate, skip = torch.rand(2, 3) + 0.5, torch.randn(2, 3)
    ours = state_space_scan(values, step, rate, write, read, skip, periodic=periodic)
    for index in range(2):
        x, s, w, r = (tensor[index].double() for tensor in (values, step, write, read))
        expected = step_by_step(
            x, s, -s * rate[index], w, r, skip[index].expand(2, 3), rounds=ROUNDS if periodic else 1
        )
        torch.testing.assert_close(ours[index].double(), expected, rtol=1e-5, atol=1e-5)


def test_memory_kept_for_the_gradient_is_linear_in_the_length():
    def kept(length: int) -> int:
        sizes = []
        inputs = [x.requires_grad_() for x in sequences(length, heads=2, head_width=8, state=8)]
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            chunked_scan(*inputs)
        return sum(sizes)

    assert kept(2048) < 4.1 * kept(512)
