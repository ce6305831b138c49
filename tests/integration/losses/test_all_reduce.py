"""Two processes that share a batch, against one that has it whole."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support.processes import cost_of, costs_of_part, objectives, succeed
from torch import Tensor

from panollava.losses.all_reduce import all_gather_rows, all_reduce_sum

PAIRS, CUT = 5, 2


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """Pairs with unlike numbers of places."""
    generator = torch.Generator().manual_seed(1)
    a, b = (0.8 * torch.randn(PAIRS, 6, 7, generator=generator) for _ in range(2))
    mask = torch.arange(6) < torch.tensor([6, 3, 5, 2, 6])[:, None]
    return {"a": a, "b": b, "mask": mask.float()}


@pytest.fixture(scope="module", params=[CUT, PAIRS])
def ranks(
    request: pytest.FixtureRequest, batch: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Tensor]]:
    """What each of two processes found, of two and three pairs, or of all and none."""
    return succeed(partial(costs_of_part, batch, request.param), tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", objectives())
def test_values_and_gradients_are_those_of_the_whole_batch(
    name: str, batch: dict[str, Tensor], ranks: list[dict[str, Tensor]]
) -> None:
    whole = cost_of(name, batch["a"], batch["b"], batch["mask"] > 0)
    for key, value in whole.items():
        parts = [rank[key] for rank in ranks]
        together = torch.cat(parts) if value.dim() else parts[0]
        torch.testing.assert_close(together, value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_parts_that_do_not_know_of_each_other_differ(batch: dict[str, Tensor]) -> None:
    """Else the test above would prove nothing about objectives that couple a batch."""
    mask = batch["mask"] > 0
    for name, objective in objectives().items():
        whole, *parts = (
            float(cost_of(name, batch["a"][part], batch["b"][part], mask[part])[f"{name}:total"])
            for part in (slice(None), slice(0, CUT), slice(CUT, None))
        )
        assert (sum(parts) == pytest.approx(whole, rel=1e-4)) is not bool(objective.coupled), name


def test_a_process_by_itself_has_all_there_is() -> None:
    rows = torch.randn(3, 2)
    assert all_reduce_sum(rows) is rows
    assert all_gather_rows(rows) is rows
