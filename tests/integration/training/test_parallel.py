"""The loop on several processes: what they leave to resume from, how they stop, and what ends them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.processes import run_ranks, succeed
from support.toy_training import CPU, Toy, ToyData, ToyStage, batch, before_step, power_cut
from torch import Tensor, nn
from torch.nn.functional import dropout

from panollava.batch import Batch
from panollava.checkpoint import LAST, follow, read_state
from panollava.stages.protocol import StepOutput
from panollava.training.checkpointer import Progress
from panollava.training.distributed import catch_signals, init_distributed
from panollava.training.loop import OptimiserStep
from panollava.training.parallel import full_tensor, is_sharded, repeated_blocks, shard

STEPS, EPOCHS = 4, 2


class Block(nn.Module):
    """A layer with something frozen, in another type, beside what trains."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(5, 5)
        self.frozen = nn.Linear(5, 5).to(torch.bfloat16).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 5)`` to the same."""
        return self.linear(torch.relu(x)) + self.frozen(x.to(torch.bfloat16)).float()


class Deep(ToyStage):
    """A stage of blocks with dropout, whose output and input share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(1), Block(2)])
        self.tied = nn.ModuleDict({"one": nn.Linear(5, 5, bias=False), "other": nn.Linear(5, 5, bias=False)})
        self.tied["other"].weight = self.tied["one"].weight
        nn.init.eye_(self.tied["one"].weight)

    def trained(self) -> dict[str, nn.Parameter]:
        """What is not frozen."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def forward(self, batch: Batch) -> StepOutput:
        """A distance that depends on every weight and on what is dropped."""
        values = batch.pixel_values[:, 0, 0, 0, 0].float()
        x = self.tied["one"](values[:, None] * torch.ones(5))
        for block in self.blocks:
            x = dropout(block(x), 0.3, self.training)
        x = self.tied["other"](x).mean(dim=1) * self.weight.sum()
        return StepOutput({"pull": (x - values).square().sum()}, {"pull/seen": values.sum()})


def toy(folder: Path, procs: Any, parallel: str) -> Toy:
    """The stage of one of several processes."""
    stage = Deep()
    if parallel == "fsdp":
        shard(stage, procs, CPU.device)
    torch.manual_seed(procs.rank)
    return Toy(folder, stage, procs=procs)


def data(procs: Any) -> ToyData:
    """Its part of the samples: two a step; of the three for validation the first process may have one more."""
    values = [[index + 0.1 * sample for sample in range(2 * procs.world_size)] for index in range(STEPS)]
    windows = [[batch(*step[procs.rank :: procs.world_size])] for step in values]
    return ToyData(windows, [batch(value) for value in (1.0, 2.0, 3.0, 4.0)[procs.rank :: procs.world_size]])


def train(
    folder: Path, parallel: str, *, cut_at: int = 0, how: Callable[[], None] = power_cut, only: int | None = None
) -> dict[str, Any]:
    """Trains from where the folder stands; something happens before one step, to all processes or to one.

    ``cut_at=-1``: in every batch of a validation.
    """
    with init_distributed(timeout_s=20.0) as procs:
        run = toy(folder, procs, parallel)
        assert is_sharded(run.stage) is (parallel == "fsdp")
        last = follow(folder / LAST)
        progress = run.checkpointer.restore(last) if last else Progress()
        if cut_at == -1 and only in (None, procs.rank):
            run.stage.register_forward_pre_hook(lambda stage, _: None if stage.training else how())
        elif cut_at and only in (None, procs.rank):
            OptimiserStep.__call__ = before_step(cut_at, how)  # type: ignore[method-assign]  # a process of the test's own
        result = run.fit(data(procs), progress, epochs=EPOCHS, save_every_steps=1, lr=0.01)
        weights = {name: full_tensor(value.detach()).clone() for name, value in run.stage.trained().items()}
        return {"weights": weights, "progress": result.progress, "interrupted": result.interrupted}


def assert_same(one: Path, other: Path) -> None:
    """The last checkpoints of two folders hold the same bits."""
    files = ("trained.safetensors", "optimizer.safetensors", "random.safetensors")
    for name in files:
        first, second = (load_file(follow(folder / LAST) / name) for folder in (one, other))  # type: ignore[operator]
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.parametrize(("parallel", "count"), [("ddp", 3), ("fsdp", 2)])
def test_resuming_with_as_many_processes_is_exact_to_the_bit(tmp_path: Path, parallel: str, count: int) -> None:
    """Three, since a sum of two does not depend on its order; each drops units of its own."""
    whole_run, cut = tmp_path / "whole", tmp_path / "cut"
    results = succeed(partial(train, whole_run, parallel), tmp_path / "a", count)
    for other in results[1:]:
        assert all(torch.equal(value, other["weights"][name]) for name, value in results[0]["weights"].items())
    ended = run_ranks(partial(train, cut, parallel, cut_at=6), tmp_path / "b", count)
    assert [one.code for one in ended] == [1] * count
    assert read_state(cut / LAST)["progress"]["global_step"] == 5
    states = load_file(cut / LAST / "random.safetensors")
    assert sorted(states) == ["cpu", *(f"rank{rank}/cpu" for rank in range(1, count))]
    assert not torch.equal(states["cpu"], states["rank1/cpu"])
    succeed(partial(train, cut, parallel), tmp_path / "c", count)
    assert_same(whole_run, cut)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exhausted() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


SILENT = "ProcessLost: Another of the 2 processes ended without an error message"
EXHAUSTED = "ProcessLost: Process 1 stopped the run: OutOfMemoryError: CUDA out of memory."


@pytest.mark.parametrize(
    ("parallel", "how", "rank", "message"),
    [
        ("ddp", killed, 0, SILENT),
        ("ddp", killed, 1, SILENT),
        ("ddp", exhausted, 1, EXHAUSTED),
        ("fsdp", killed, 1, SILENT),
    ],
    ids=["first killed", "second killed", "second out of memory", "second killed with fsdp"],
)
def test_what_happens_to_one_ends_all_and_is_gone_on_from(
    tmp_path: Path, parallel: str, how: Callable[[], None], rank: int, message: str
) -> None:
    folder = tmp_path / "run"
    ended = run_ranks(partial(train, folder, parallel, cut_at=4, how=how, only=rank), tmp_path / "a")
    assert ended[rank].code == (-9 if how is killed else 1)
    assert ended[1 - rank].code == 1
    assert message in ended[1 - rank].errors
    assert read_state(folder / LAST)["progress"]["global_step"] == 3
    (first, _) = succeed(partial(train, folder, parallel), tmp_path / "b")
    assert first["progress"].global_step == STEPS * EPOCHS


@pytest.mark.parametrize(
    ("parallel", "number", "cut_at"),
    [("ddp", signal.SIGINT, 6), ("ddp", signal.SIGTERM, -1), ("fsdp", signal.SIGINT, 6), ("fsdp", signal.SIGTERM, -1)],
)
def test_a_signal_to_one_stops_all_after_the_same_step(
    tmp_path: Path, parallel: str, number: signal.Signals, cut_at: int
) -> None:
    step = STEPS if cut_at == -1 else cut_at
    folder = tmp_path / "run"
    how = partial(_signal_me, number)
    results = succeed(partial(train, folder, parallel, cut_at=cut_at, how=how, only=1), tmp_path / "a")
    assert [one["interrupted"] for one in results] == [True, True]
    assert [one["progress"].global_step for one in results] == [step, step]
    assert read_state(folder / LAST)["progress"]["global_step"] == step
    assert read_state(folder / LAST)["progress"]["validation_due"] is (cut_at == -1)
    succeed(partial(train, folder, parallel), tmp_path / "b")
    succeed(partial(train, tmp_path / "whole", parallel), tmp_path / "c")
    assert_same(tmp_path / "whole", folder)


def _signal_me(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def spoilt(folder: Path, parallel: str, value: float) -> None:
    """Trains on samples of which the second process has a bad one in the third step."""
    with init_distributed(timeout_s=20.0) as procs:
        run, samples = toy(folder, procs, parallel), data(procs)
        if not procs.is_main:
            samples._windows[2] = [batch(7.0), batch(value)]
        else:
            samples._windows[2] = [batch(5.0), batch(6.0)]
        run.fit(samples, epochs=EPOCHS, save_every_steps=1)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_loss_that_is_not_finite_names_the_samples_of_the_process_that_has_it(tmp_path: Path, parallel: str) -> None:
    ended = run_ranks(partial(spoilt, tmp_path / "run", parallel, float("nan")), tmp_path)
    assert [one.code for one in ended] == [1, 1]
    (told,) = [one.errors for one in ended if "not finite" in one.errors]  # once
    assert "The loss of stage 'toy' is not finite in the step with samples sample nan;" in told
    assert read_state(tmp_path / "run" / LAST)["progress"]["global_step"] == 2


def test_the_blocks_of_a_model_are_its_rows_of_one_kind() -> None:
    stage = Deep()
    assert repeated_blocks(stage) == list(stage.blocks)
    leaves = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert repeated_blocks(leaves) == []
    assert repeated_blocks(nn.ModuleList([leaves, leaves, nn.ModuleList([Block(1), Block(1)])])) != []


def test_quantised_weights_are_not_shared(tmp_path: Path) -> None:
    stage = ToyStage()
    stage.packed = nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"trainer\.parallel=fsdp.*packed.*trainer\.parallel=ddp"):
        shard(stage, Toy(tmp_path).procs, CPU.device)


def test_signals_of_one_process_and_of_several() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with catch_signals() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with catch_signals(world_size=2) as received:
        for _ in range(3):  # a launcher may hand on what the terminal has sent already
            os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT] * 3
    assert signal.getsignal(signal.SIGTERM) is before
