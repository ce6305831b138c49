"""The miniature backbones' optimisers go on from what was kept as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from experiments.tiny.optim import KEPT, cosine, keep, make_optimisers, resume, set_rate
from panollava.checkpoint import read_tensors


class Small(nn.Module):
    """A layer for Muon, norms and an embedding for AdamW, and an output layer that is the embedding once more."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, width)
        self.layers = nn.ModuleList([nn.Linear(width, width, bias=False)])
        self.q_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.q_norm(self.layers[0](self.embed(ids))))


def made(seed: int) -> tuple[Small, list[torch.optim.Optimizer]]:
    torch.manual_seed(seed)
    model = Small()
    # make_optimisers tells layers by their names within a model.
    return model, make_optimisers(nn.ModuleDict({"model": model}))


def step(model: Small, optimisers: list[torch.optim.Optimizer], number: int) -> None:
    ids = torch.randint(12, (5, 7), generator=torch.Generator().manual_seed(number))
    nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(1).flatten()).backward()
    set_rate(optimisers, cosine(1e-2, 8, warmup=2)(number))
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad()


def test_steps_after_a_resume_are_the_same_bits(tmp_path: Path) -> None:
    model, optimisers = made(0)
    assert [type(one).__name__ for one in optimisers] == ["Muon", "AdamW"]
    assert all(group["params"] for one in optimisers for group in one.param_groups)
    for number in range(3):
        step(model, optimisers, number)
    keep(tmp_path, model, optimisers, 3)
    kept = {name.rpartition("/")[2] for name in read_tensors(tmp_path / KEPT / "optimizer.safetensors")}
    assert kept == {"momentum_buffer", "step", "exp_avg", "exp_avg_sq"}
    again, others = made(1)
    assert resume(tmp_path, again, others) == 3
    assert again.head.weight is again.embed.weight
    for number in range(3, 7):
        step(model, optimisers, number)
        step(again, others, number)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, again.get_parameter(name)), name


def test_what_is_not_there_or_of_another_model(tmp_path: Path) -> None:
    model, optimisers = made(0)
    assert resume(tmp_path, model, optimisers) == 0
    keep(tmp_path, model, optimisers, 1)
    wide = Small(width=16)
    with pytest.raises(ValueError, match=r"last\.ckpt is of another model"):
        resume(tmp_path, wide, make_optimisers(nn.ModuleDict({"model": wide})))
