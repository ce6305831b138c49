"""Diagnostics on tokens whose rank, agreement and collapse are known."""

from __future__ import annotations

import pytest
import torch

from panollava.losses.diagnostics import (
    MAX_ROWS,
    collapse_metrics,
    dead_share,
    effective_rank,
    neighbour_cosine,
    retrieval_accuracy,
    view_retrieval,
)


def orthonormal(rows: int, columns: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(rows, columns))[0]


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_counts_equal_directions(rank):
    spread = torch.cat([torch.eye(rank), -torch.eye(rank)]) @ orthonormal(16, rank).T
    assert effective_rank(5 + spread[None]).item() == pytest.approx(rank, rel=1e-3)


def test_effective_rank_weighs_unequal_directions():
    tokens = torch.cat([torch.eye(2), -torch.eye(2)]) * torch.tensor([3.0, 1.0])
    entropy = -(0.75 * torch.tensor(0.75).log() + 0.25 * torch.tensor(0.25).log())
    assert effective_rank(tokens).item() == pytest.approx(entropy.exp().item(), rel=1e-4)


def test_effective_rank_of_a_point_is_zero():
    assert effective_rank(torch.full((2, 8, 5), 0.3)).item() == 0


def test_effective_rank_of_many_tokens_uses_evenly_spaced_ones():
    tokens = torch.randn(2 * MAX_ROWS + 2, 4)
    tokens[1::3] = tokens[2::3] = 0
    assert effective_rank(tokens).item() == pytest.approx(effective_rank(tokens[::3]).item())


def test_cosine_per_pair():
    a = torch.randn(3, 6, 4)
    b = torch.stack([a[0], -2 * a[1], a[2]])
    torch.testing.assert_close(neighbour_cosine(a, b), torch.tensor([1.0, -1.0, 1.0]))


def test_retrieval_finds_the_match():
    a = torch.randn(2, 10, 32)
    noisy = 7 + a + 0.01 * torch.randn_like(a)
    assert retrieval_accuracy(a, noisy).tolist() == [1, 1]
    shifted = a.roll(1, dims=1)
    assert retrieval_accuracy(a, shifted).tolist() == [0, 0]


def test_retrieval_among_equal_tokens_is_chance():
    a = torch.ones(1, 10, 4)
    assert retrieval_accuracy(a, a).item() == pytest.approx(0.1)


def test_masked_tokens_are_as_if_they_were_not_there():
    a, b = torch.randn(1, 9, 6), torch.randn(1, 9, 6)
    b[:, 6:] = a[:, :3]
    mask = torch.arange(9)[None] < 6
    assert neighbour_cosine(a, b, mask).item() == pytest.approx(neighbour_cosine(a[:, :6], b[:, :6]).item(), abs=1e-6)
    assert retrieval_accuracy(a, b, mask).item() == pytest.approx(retrieval_accuracy(a[:, :6], b[:, :6]).item())


def test_dead_share():
    tokens = torch.randn(2, 50, 8)
    tokens[..., :2] = 1.5
    assert dead_share(tokens).item() == pytest.approx(0.25)
    assert dead_share(torch.ones(4, 8)).item() == 1
    assert dead_share(1e-6 * torch.randn(50, 8)).item() == 0


def test_collapse_is_flagged():
    assert collapse_metrics(torch.ones(20, 8) + 1e-5 * torch.randn(20, 8))["collapsed"]
    assert collapse_metrics(torch.randn(20, 1) * torch.randn(8))["collapsed"]
    assert not collapse_metrics(torch.randn(200, 8))["collapsed"]


def test_few_or_narrow_tokens_are_not_judged_by_their_rank():
    assert not collapse_metrics(torch.randn(2, 64))["collapsed"]  # two points are a line, whatever they are
    assert not collapse_metrics(torch.randn(50, 1))["collapsed"]
    assert collapse_metrics(torch.ones(2, 64))["collapsed"]
    assert collapse_metrics(torch.ones(30, 8)) == {"effective_rank": 0, "dead_share": 1, "collapsed": 1}


def test_the_nearest_other_view_is_a_neighbour():
    angle = torch.arange(8) / 8 * 2 * torch.pi
    ring = 5 + torch.stack((angle.cos(), angle.sin()), dim=1)
    step = (torch.arange(8)[:, None] - torch.arange(8)).abs()
    beside, opposite = (step == 1) | (step == 7), step == 4
    assert view_retrieval(ring, beside).item() == 1
    assert view_retrieval(ring, opposite).item() == 0
    assert view_retrieval(ring, step == 1).item() == pytest.approx(7 / 8)  # half for the first and the last
    assert view_retrieval(torch.ones(8, 4), beside).item() == pytest.approx(2 / 7)


def test_nothing_is_kept_for_a_backward_pass():
    a = torch.randn(2, 6, 4, requires_grad=True)
    results = [
        effective_rank(a),
        neighbour_cosine(a, a),
        retrieval_accuracy(a, a),
        dead_share(a),
        view_retrieval(a[0], torch.eye(6) > 0),
        *collapse_metrics(a).values(),
    ]
    assert not any(result.requires_grad for result in results)
