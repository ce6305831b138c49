"""One optimiser step: the same objective however a batch is cut, and no step that is not finite."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from support.processes import STAGES, one_update, shared_update, succeed
from support.runs import QUICK, UNTRACKED, assert_same_bits, backbones
from support.toy_training import ALONE, CPU, ToyStage, batch
from torch import Tensor

from panollava.training.loop import MAX_OVERFLOWS, OptimiserStep, summarise
from panollava.training.precision import Compute

Backbone = Callable[[str], Path]


def arguments(backbone: Backbone, batch_size: int, accumulate: int) -> list[str]:
    """A run without dropout, whose optimiser divides by no gradient near zero."""
    sizes = [
        f"stage.{name}.{key}={value}"
        for name in STAGES
        for key, value in (("batch_size", batch_size), ("accumulate", accumulate))
    ]
    return [*backbones(backbone), *QUICK, UNTRACKED, "optim.eps=1.0", "lora.dropout=0.0", "experiment_name=cut", *sizes]


@pytest.fixture
def whole(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What one update with a batch of 8 in one piece does."""
    monkeypatch.chdir(tmp_path)
    result = one_update(arguments(backbone, 8, 1))
    assert sum(name.endswith(":loss") for name in result) == len(STAGES)
    return result


def assert_same_update(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=1e-4, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_accumulating_does_not_change_the_objective(backbone: Backbone, whole: dict[str, Tensor]) -> None:
    assert_same_update(one_update(arguments(backbone, 4, 2)), whole)
    other = one_update(arguments(backbone, 4, 1))
    assert float((other["vision:loss"] - whole["vision:loss"]).abs()) > 1e-3  # four samples are not eight


VISION = ("stage=vision", "crop.overlap=0.5")
PAIRS = [("pairing=rays",), ("type=densecl",), ("type=densecl", "pairing=rays")]
COUPLED = [("type=vicreg_batch",), ("type=vicreg_pooled",), ("type=densecl", "negatives=batch")]
"""Objectives of single pairs of views, and of batches."""


def objective(options: tuple[str, ...]) -> list[str]:
    """The arguments that choose it."""
    return [*VISION, *(f"stage.vision.loss.{option}" for option in options)]


@pytest.mark.parametrize("options", PAIRS, ids="-".join)
def test_accumulating_changes_no_objective_of_pairs(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = one_update([*arguments(backbone, 8, 1), *objective(options)])
    assert_same_update(one_update([*arguments(backbone, 4, 2), *objective(options), "experiment_name=two"]), whole)


@pytest.mark.parametrize("options", COUPLED, ids="-".join)
def test_accumulating_changes_an_objective_of_batches(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """As documented: each micro-batch is an objective of its own, and they are averaged."""
    monkeypatch.chdir(tmp_path)
    whole, cut = (
        one_update([*arguments(backbone, size, accumulate), *objective(options), f"experiment_name=by{size}"])
        for size, accumulate in ((8, 1), (4, 2))
    )
    assert float((cut["vision:loss"] - whole["vision:loss"]).abs()) > 1e-3


def together(folder: Path, *typed: str, count: int = 2) -> dict[str, Tensor]:
    """One update as several processes take it, of which each says the same."""
    first, *others = succeed(partial(shared_update, list(typed)), folder, count)
    for other in others:
        assert_same_bits(first, other)
    return first


@pytest.mark.parametrize("options", [(), ("lora=none", "stage=finetune")], ids=["all", "without adapter"])
def test_two_processes_do_not_change_the_objective(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = one_update([*arguments(backbone, 8, 1), *options])
    for parallel in ("ddp", "fsdp"):
        asked = [*arguments(backbone, 4, 1), *options, f"trainer.parallel={parallel}"]
        assert_same_update(together(tmp_path / parallel, *asked), whole)


def test_two_processes_share_an_objective_of_batches(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training; each process validates batches of its own, of which the first has two here and the second one."""
    monkeypatch.chdir(tmp_path)
    common = [*objective(("type=vicreg_batch",)), "data.val_scenes=9"]
    whole = one_update([*arguments(backbone, 8, 1), *common])
    parts = together(tmp_path, *arguments(backbone, 4, 1), *common, "experiment_name=two")
    for result in (whole, parts):
        del result["vision:validation"]
    assert_same_update(parts, whole)


def make_step(stage: ToyStage, *, clip_norm: float = 0.0, compute: Compute = CPU, scale: float = 0.0) -> OptimiserStep:
    optimizer = torch.optim.SGD(stage.trained().values(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale > 0)
    return OptimiserStep(stage, stage, optimizer, scaler, compute, ALONE, clip_norm)


def test_the_loss_is_the_mean_over_all_samples_of_the_window() -> None:
    stage = ToyStage()
    before = stage.weight.detach().sum()
    report = make_step(stage)([batch(1.0, 2.0, 3.0), batch(7.0)], lr=0.01)
    distances = torch.tensor([1.0, 2.0, 3.0, 7.0]) - before
    assert report["loss"] == pytest.approx(float(distances.square().mean()))
    assert report["pull/seen"] == pytest.approx(13 / 4)
    assert report["grad_norm"] == pytest.approx(2 * float(2 * distances.mean().abs()), rel=1e-5)  # four equal entries
    moved = stage.weight.detach().sum() - before
    assert float(moved) == pytest.approx(4 * 0.01 * 2 * float(distances.mean()), rel=1e-5)


def test_gradients_are_clipped_to_the_norm_and_not_scaled_up() -> None:
    stage = ToyStage()
    before = stage.weight.detach().clone()
    assert make_step(stage, clip_norm=0.5)([batch(100.0)], lr=1.0)["grad_norm"] > 100
    assert float((stage.weight.detach() - before).norm()) == pytest.approx(0.5, rel=1e-4)
    before = stage.weight.detach().clone()
    small = float(before.sum()) + 1e-3
    norm = make_step(stage, clip_norm=0.5)([batch(small)], lr=1.0)["grad_norm"]
    assert float((stage.weight.detach() - before).norm()) == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused_with_its_samples(value: float) -> None:
    stage = ToyStage()
    step = make_step(stage)
    before = stage.weight.detach().clone()
    with pytest.raises(ValueError, match=r"loss of stage 'toy' is not finite.*toy\.lr") as refused:
        step([batch(1.0, 2.0), batch(3.0, value)], lr=0.1)
    assert "sample 3" in str(refused.value)
    assert "sample 1" not in str(refused.value)
    assert torch.equal(stage.weight, before)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    stage = ToyStage()
    stage.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = stage.weight.detach().clone()
    with pytest.raises(ValueError, match=r"gradient of stage 'toy' is not finite.*sample 1, sample 2"):
        make_step(stage)([batch(1.0), batch(2.0)], lr=0.1)
    assert torch.equal(stage.weight, before)


def test_an_overflow_of_half_precision_is_skipped_and_the_scale_lowered() -> None:
    stage = ToyStage()
    step = make_step(stage, scale=2.0**127)
    before = stage.weight.detach().clone()
    step([batch(100.0)], lr=0.1)
    assert torch.equal(stage.weight, before)
    assert step.scaler.get_scale() == 2.0**126
    while step.overflows:
        step([batch(100.0)], lr=0.1)
    assert not torch.equal(stage.weight, before)


def test_overflow_after_overflow_is_refused() -> None:
    stage = ToyStage()
    stage.weight.register_hook(lambda gradient: gradient * float("inf"))
    step = make_step(stage, scale=2.0**16)
    for _ in range(MAX_OVERFLOWS):
        step([batch(1.0)], lr=0.1)
    with pytest.raises(ValueError, match=r"gradient .* not finite"):
        step([batch(1.0)], lr=0.1)


def test_a_loss_that_no_sample_has_is_zero() -> None:
    assert summarise({"language": 0.0}, {"language": 0.0}) == {"loss": 0.0, "language": 0.0}
    two = summarise({"a": 6.0, "b": 4.0, "b/term": 8.0}, {"a": 3.0, "b": 4.0})
    assert two == {"loss": 3.0, "a": 2.0, "b": 1.0, "b/term": 2.0}
