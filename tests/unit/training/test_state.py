"""Checkpoints: which are kept, that they bring everything back, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.toy_training import ALONE, Toy, ToyStage, steps
from torch import nn

from panollava.checkpoint import BEST, LAST, find_checkpoint, follow
from panollava.training.checkpointer import Checkpointer, Progress, load_random, random_states


def trained(folder: Path, count: int = 2) -> Toy:
    toy = Toy(folder)
    toy.fit(steps(count))
    return toy


def test_weights_optimiser_and_place_come_back(tmp_path: Path) -> None:
    first = trained(tmp_path)
    again = Toy(tmp_path)
    progress = again.checkpointer.restore(find_checkpoint(tmp_path))
    assert (progress.epoch, progress.step_in_epoch, progress.global_step) == (1, 0, 2)
    assert torch.equal(again.weight(), first.weight())
    for name, value in first.optimizer.state[first.stage.weight].items():
        assert torch.equal(again.optimizer.state[again.stage.weight][name], value), name
    # The two go on alike.
    assert first.fit(steps(2), Progress()).metrics == again.fit(steps(2), Progress()).metrics
    assert torch.equal(again.weight(), first.weight())


def test_the_random_state_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = random_states(ALONE)
    drawn = torch.rand(4)
    load_random(state)
    assert torch.equal(torch.rand(4), drawn)
    torch.manual_seed(5)
    toy = trained(tmp_path)
    expected = torch.rand(4)
    toy.checkpointer.restore(find_checkpoint(tmp_path))
    assert torch.equal(torch.rand(4), expected)


def test_the_scaler_comes_back(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)
    toy.checkpointer.scaler = scaler
    loss = scaler.scale(toy.stage.weight.sum())
    loss.backward()
    scaler.step(toy.optimizer)
    scaler.update(2.0**9)
    toy.checkpointer.save(Progress(), None, is_best=False)
    other = Toy(tmp_path)
    other.checkpointer.scaler = torch.amp.GradScaler("cpu")
    other.checkpointer.restore(find_checkpoint(tmp_path))
    assert other.checkpointer.scaler.state_dict()["scale"] == 2.0**9


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_the_random_state_of_a_gpu_comes_back(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state, after = torch.arange(4, dtype=torch.uint8), list[torch.Tensor]()
    monkeypatch.setattr("torch.cuda.is_available", lambda: kind == "cuda")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: kind == "mps")
    monkeypatch.setattr(f"torch.{kind}.get_rng_state", lambda: state)
    monkeypatch.setattr(f"torch.{kind}.set_rng_state", after.append)
    saved = random_states(ALONE)
    assert saved.keys() == {"cpu", kind}
    load_random(saved)
    assert [one.tolist() for one in after] == [state.tolist()]
    load_random({"cpu": saved["cpu"]})  # a checkpoint of version 0.2 has none of mps
    assert len(after) == 1


@pytest.mark.parametrize("best", [math.inf, 0.25])
def test_progress_survives_as_json(tmp_path: Path, best: float) -> None:
    toy = Toy(tmp_path, has_lora=False)
    toy.fit(steps(1))
    before = Progress(
        epoch=1, step_in_epoch=3, global_step=9, best_loss=best, validations_since_best=2, validation_due=True
    )
    saved = toy.checkpointer.save(before, None, is_best=False)
    state = json.loads((saved / "state.json").read_text(), parse_constant=pytest.fail)
    assert (state["stage"], state["has_lora"]) == ("toy", False)
    assert toy.checkpointer.restore(saved) == before


def test_best_and_last_are_kept_and_nothing_else(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    (tmp_path / ".tmp-toy_epoch09_loss1.0000.ckpt-x").mkdir()
    (tmp_path / ".old-toy_epoch09_loss1.0000.ckpt-1").mkdir()
    (tmp_path / "mine.ckpt").mkdir()
    for epoch, (loss, is_best) in enumerate([(3.0, True), (2.0, True), (5.0, False), (4.0, False)], start=1):
        progress = Progress(epoch=epoch, global_step=epoch)
        toy.checkpointer.save(progress, None, is_best=False)
        toy.checkpointer.save(progress, loss, is_best=is_best)
    assert toy.checkpoints() == ["mine.ckpt", "toy_epoch02_loss2.0000.ckpt", "toy_epoch04_loss4.0000.ckpt"]
    assert [path.name for path in tmp_path.glob(".*")] == []
    assert toy.saved == [(1, 3.0), (2, 2.0)]
    assert follow(tmp_path / BEST) == tmp_path / "toy_epoch02_loss2.0000.ckpt"
    assert follow(tmp_path / LAST) == tmp_path / "toy_epoch04_loss4.0000.ckpt"


def test_a_worse_checkpoint_never_takes_the_best_ones_place(tmp_path: Path) -> None:
    """Two validations of one epoch whose losses differ in the fifth place."""
    toy = Toy(tmp_path)
    toy.checkpointer.save(Progress(epoch=0, step_in_epoch=1, global_step=1), 1.00001, is_best=True)
    best = toy.weight()
    with torch.no_grad():
        toy.stage.weight.add_(1.0)
    toy.checkpointer.save(Progress(epoch=0, step_in_epoch=2, global_step=2), 1.00002, is_best=False)
    assert torch.equal(load_file(tmp_path / BEST / "trained.safetensors")["weight"], best)


def test_the_final_file_holds_the_best_weights(tmp_path: Path) -> None:
    toy = Toy(tmp_path)
    toy.checkpointer.save(Progress(epoch=1), 1.0, is_best=True)
    best = toy.weight()
    with torch.no_grad():
        toy.stage.weight.add_(1.0)
    toy.checkpointer.save(Progress(epoch=2), 2.0, is_best=False)
    for file in (tmp_path / "model_final.safetensors", tmp_path / BEST / "trained.safetensors"):
        tensors = load_file(file)
        assert set(tensors) == {"weight"}  # what does not train is not kept
        assert torch.equal(tensors["weight"], best)


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_the_best_checkpoints_stay(tmp_path: Path, keep: int) -> None:
    losses = [3.0, 1.00001, 2.0, 1.00002, 4.0, 2.5]
    toy = Toy(tmp_path, prefix="toy[1]", keep_best=keep)
    for number, loss in enumerate(losses, start=1):
        progress = Progress(epoch=number, global_step=number)
        toy.checkpointer.save(progress, loss, is_best=loss == min(losses[:number]))
        toy.checkpointer.save(Progress(epoch=number, step_in_epoch=1, global_step=number + 1), None, is_best=False)
        best = sorted(losses[:number])[:keep]
        states = [json.loads((tmp_path / name / "state.json").read_text()) for name in toy.checkpoints()]
        found = [state["validation_loss"] for state in states]
        assert sorted(loss for loss in found if loss is not None) == best
        assert found.count(None) == 1  # the last one, with which the run resumes
    assert json.loads((tmp_path / BEST / "state.json").read_text())["validation_loss"] == 1.00001


def test_a_checkpoint_of_another_stage_is_refused(tmp_path: Path) -> None:
    saved = trained(tmp_path).checkpointer.save(Progress(), None, is_best=False)
    other = Toy(tmp_path, ToyStage("finetune"))
    before = other.weight()
    with pytest.raises(ValueError, match=r"stage 'toy', not 'finetune'.*init_from="):
        other.checkpointer.restore(saved)
    assert torch.equal(other.weight(), before)


@pytest.mark.parametrize("parameters", [{"weight": (3, 2)}, {"weight": (2, 2), "more": (1,)}, {"other": (2, 2)}])
def test_a_checkpoint_of_other_weights_is_refused(tmp_path: Path, parameters: dict[str, tuple[int, ...]]) -> None:
    toy = trained(tmp_path)
    own = {name: nn.Parameter(torch.zeros(shape)) for name, shape in parameters.items()}
    other = Checkpointer(
        tmp_path,
        prefix="toy",
        stage_name="toy",
        parameters=own,
        optimizer=torch.optim.AdamW(own.values()),
        scaler=toy.scaler,
    )
    with pytest.raises(ValueError, match=r"holds other weights.*init_from="):
        other.restore(find_checkpoint(tmp_path))
    assert not any(parameter.any() for parameter in own.values())
