"""What every objective must do, whichever it is."""

from __future__ import annotations

import pytest
import torch
from support.processes import cost_of, objectives

from panollava.losses.objective.densecl import DenseclObjective, dense_pairs
from panollava.losses.objective.vicreg import VicregObjective, vicreg_batch, vicreg_pairs
from panollava.losses.objective.vicreg_batch import VicregBatchObjective
from panollava.losses.objective.vicreg_pooled import VicregPooledObjective

EVERY = objectives()
A, B = (torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
MASK = torch.tensor([[True] * 4, [True, True, False, False], [True, True, True, False]])


@pytest.mark.parametrize("name", EVERY)
def test_an_objective_costs_a_sum_over_pairs_in_float32(name: str) -> None:
    total, terms = EVERY[name](A, B, MASK, across_ranks=False)
    assert total.shape == ()
    assert total.dtype == torch.float32
    assert all(term.shape == () and not term.requires_grad for term in terms.values())
    twice, terms_twice = EVERY[name](torch.cat((A, A)), torch.cat((B, B)), torch.cat((MASK, MASK)), across_ranks=False)
    if not EVERY[name].coupled:
        assert float(twice) == pytest.approx(2 * float(total), rel=1e-5)
        assert {key: float(value) / 2 for key, value in terms_twice.items()} == pytest.approx(
            {key: float(value) for key, value in terms.items()}, rel=1e-5
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = EVERY[name](A, B, MASK, across_ranks=False).total
    assert float(inside) == float(total)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("level", [0.0, 2.0])
def test_collapsed_places_have_finite_gradients(name: str, level: float) -> None:
    point = torch.full((3, 4, 6), level)
    assert all(torch.isfinite(value).all() for value in cost_of(name, point, point, MASK).values())


@pytest.mark.parametrize("name", EVERY)
def test_an_objective_says_what_helps_against_collapse(name: str) -> None:
    assert "stage.vision." in EVERY[name].remedy
    assert bool(EVERY[name].coupled) == (name in ("vicreg_batch", "vicreg_pooled", "densecl_of_batch"))
    assert EVERY[name].correspondences.needs_grid == (name != "vicreg_pooled")


def test_options_reach_the_formula() -> None:
    weights = {"invariance": 2.0, "variance": 3.0, "covariance": 5.0}
    pairs, batch = vicreg_pairs(A, B, MASK, **weights), vicreg_batch(A, B, MASK, **weights)
    total, terms = VicregObjective(**weights)(A, B, MASK, across_ranks=False)
    assert float(total) == float(pairs.total.sum())
    assert float(terms["covariance"]) == float(pairs.covariance.sum())
    for kind in (VicregBatchObjective, VicregPooledObjective):
        total, terms = kind(**weights)(A, B, MASK, across_ranks=False)
        assert float(total) == pytest.approx(3 * float(batch.total))
        assert float(terms["variance"]) == pytest.approx(3 * float(batch.variance))
    forward, backward = dense_pairs(A, B, MASK, temperature=0.5)
    total, terms = DenseclObjective(temperature=0.5)(A, B, MASK, across_ranks=False)
    assert float(total) == pytest.approx(float((forward + backward).sum() / 2))
    assert float(terms["backward"]) == float(backward.sum())
