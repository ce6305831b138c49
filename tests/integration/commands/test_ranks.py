"""Several processes that train as one: DDP and FSDP, whole runs, resuming with others, and what may happen to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from support.processes import run_ranks, succeed
from support.runs import QUICK, UNTRACKED, assert_same_bits, backbones, run_train, stage_folder
from support.toy_training import before_step, power_cut
from torch import Tensor
from torch.testing import assert_close

from panollava.checkpoint import BEST, LAST, follow, read_state
from panollava.model.api import PanoLlava
from panollava.training.loop import OptimiserStep

Backbone = Callable[[str], Path]
GREY = np.full((32, 64, 3), 128, np.uint8)


@pytest.fixture
def arguments(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A quick run in a folder of its own, whose optimiser divides by no gradient near zero."""
    monkeypatch.chdir(tmp_path)
    return [*backbones(backbone), *QUICK, UNTRACKED, "optim.eps=1.0", "evaluation.max_samples=2"]


def together(*typed: str, count: int = 2) -> None:
    """Trains in several processes."""
    succeed(partial(run_train, *typed), Path("ranks"), count)


def weights(experiment: str, stage: str, link: str = LAST) -> dict[str, Tensor]:
    """What a stage has learnt."""
    checkpoint = follow(stage_folder(experiment, stage) / link)
    assert checkpoint is not None
    return load_file(checkpoint / "trained.safetensors")


def assert_alike(one: str, other: str, stage: str) -> None:
    """The same weights and validation loss, but for rounding."""
    losses = [read_state(stage_folder(name, stage) / LAST)["validation_loss"] for name in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    first, second = weights(one, stage), weights(other, stage)
    assert first.keys() == second.keys()
    for name in first:
        assert_close(second[name], first[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def cut(*typed: str, at: int) -> None:
    """Trains until the power fails."""
    OptimiserStep.__call__ = before_step(at, power_cut)  # type: ignore[method-assign]  # in a process of its own
    run_train(*typed)


SIZES = [f"stage.{stage}.batch_size" for stage in ("vision", "resampler", "finetune")]


BLOCKS = [f"stage.finetune.{part}_trainable_blocks=1" for part in ("vision", "language")]


@pytest.mark.parametrize(("parallel", "trains"), [("ddp", []), ("fsdp", BLOCKS)])
def test_two_processes_train_the_same_model(arguments: list[str], parallel: str, trains: list[str]) -> None:
    """Also with accumulation, activations that are recomputed, and beside the adapter blocks of both backbones."""
    asked = [*arguments, *trains, "lora.dropout=0.0"]
    run_train(*asked, "experiment_name=one", *(f"{size}=4" for size in SIZES))
    cut_up = [f"trainer.parallel={parallel}", "trainer.checkpoint_activations=true"]
    cut_up += [f"{size}=1" for size in SIZES] + [size.replace("batch_size", "accumulate") + "=2" for size in SIZES]
    together(*asked, "experiment_name=two", *cut_up)
    for stage in ("vision", "resampler", "finetune"):
        assert_alike("one", "two", stage)
    answers = [PanoLlava.from_pretrained(f"runs/{name}").generate(GREY, "what?") for name in ("one", "two")]
    assert answers[0] == answers[1]


def test_a_run_goes_on_with_other_processes_where_it_was(arguments: list[str]) -> None:
    """Two with copies, one, two with shares: together the steps of one process alone."""
    asked = [*arguments, "stage=finetune", "stage.finetune.epochs=2", "trainer.save_every_steps=1", "lora.dropout=0.0"]
    asked += ["evaluation.enabled=false"]
    run_train(*asked, "experiment_name=one", "stage.finetune.batch_size=4")
    many = [*asked, "experiment_name=many", "stage.finetune.batch_size=2"]
    ended = run_ranks(partial(cut, *many, at=3), Path("ranks"))
    assert [one.code for one in ended] == [1, 1]
    assert places("many") == (2, {"processes": 2, "batch_size": 2, "accumulate": 1})
    (alone,) = run_ranks(partial(cut, *many, at=3), Path("ranks"), count=1)
    assert "step has 4 samples as before" in alone.errors
    assert places("many") == (4, {"processes": 1, "batch_size": 2, "accumulate": 2})
    together(*many, "trainer.parallel=fsdp")
    assert places("many") == (6, {"processes": 2, "batch_size": 2, "accumulate": 1})
    assert_alike("one", "many", "finetune")
    # What plain peft opens holds what was learnt, put together.
    adapter = load_file(stage_folder("many", "finetune") / "lora_weights" / "adapter_model.safetensors")
    learnt = weights("many", "finetune", BEST)
    named = {name.replace(".default.", "."): value for name, value in learnt.items() if ".lora_" in name}
    assert_same_bits({f"language_model.{name}": value for name, value in adapter.items()}, named)


def places(experiment: str) -> tuple[int, dict[str, int]]:
    """Steps taken, and how they were shared, of the last checkpoint."""
    state = read_state(stage_folder(experiment, "finetune") / LAST)
    return state["progress"]["global_step"], state["share"]
