"""What a checkpoint holds for resuming is looked at before any of it is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.toy_training import Toy, steps

from panollava.checkpoint import STATE, TRAINED, find_checkpoint
from panollava.training.checkpointer import OPTIMIZER, RANDOM


def tensors(file: str, **changes: torch.Tensor | None) -> Callable[[Path], None]:
    """Changes tensors of a file; None removes one."""

    def change(folder: Path) -> None:
        kept = {**load_file(folder / file), **changes}
        save_file({name: value for name, value in kept.items() if value is not None}, folder / file)

    return change


def state(**changes: object) -> Callable[[Path], None]:
    """Changes ``state.json``."""

    def change(folder: Path) -> None:
        document = {**json.loads((folder / STATE).read_text()), **changes}
        (folder / STATE).write_text(json.dumps(document))

    return change


PLACE = {"epoch": 1, "step_in_epoch": 0, "global_step": 2, "best_loss": 1.0, "validations_since_best": 0}
MOMENT = "weight/exp_avg"
HOSTILE = {
    "weights of another type": (tensors(TRAINED, weight=torch.ones(2, 2, dtype=torch.float16)), "other weights"),
    "weights of another shape": (tensors(TRAINED, weight=torch.ones(4)), "other weights"),
    "weights that are NaN": (tensors(TRAINED, weight=torch.full((2, 2), torch.nan)), "NaN"),
    "moments of another shape": (tensors(OPTIMIZER, **{MOMENT: torch.ones(3)}), MOMENT),
    "moments that are NaN": (tensors(OPTIMIZER, **{MOMENT: torch.full((2, 2), torch.nan)}), MOMENT),
    "moments of whole numbers": (tensors(OPTIMIZER, **{MOMENT: torch.ones(2, 2, dtype=torch.int64)}), MOMENT),
    "moments of other weights": (tensors(OPTIMIZER, **{"other/exp_avg": torch.ones(1)}), "other/exp_avg"),
    "moments without a name": (tensors(OPTIMIZER, weight=torch.ones(1)), "not of these weights"),
    "no moments": (lambda folder: save_file({}, folder / OPTIMIZER), "optimiser state is empty"),
    "no random state": (tensors(RANDOM, cpu=None), "random state is none"),
    "a short random state": (tensors(RANDOM, cpu=torch.zeros(8, dtype=torch.uint8)), "of 8 bytes"),
    "a random state of numbers": (tensors(RANDOM, cpu=torch.ones(5056)), "random state is none"),
    "no place": (state(progress=None), "best_loss, epoch, global_step"),
    "a place in words": (state(progress={**PLACE, "epoch": "one"}), r"\(epoch\)"),
    "a place before the start": (state(progress={**PLACE, "global_step": -1}), r"\(global_step\)"),
    "a place with more to it": (state(progress={**PLACE, "__class__": 1}), "__class__"),
    "a time that is none": (state(progress={**PLACE, "seconds": "long"}), r"\(seconds\)"),
    "a time before the start": (state(progress={**PLACE, "step_seconds": -1.0}), r"\(step_seconds\)"),
    "a curve that is none": (state(progress={**PLACE, "curve": {"points": [[0]], "validations": []}}), r"\(curve\)"),
    "a best loss that is none": (state(progress={**PLACE, "best_loss": "low"}), r"\(best_loss\)"),
    "no scaler": (state(scaler=[1]), r"\(scaler\)"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_it_is_refused_and_nothing_changes(tmp_path: Path, kind: str) -> None:
    change, said = HOSTILE[kind]
    Toy(tmp_path).fit(steps(2))
    checkpoint = find_checkpoint(tmp_path)
    change(checkpoint)
    toy = Toy(tmp_path)
    before, random = toy.weight(), torch.get_rng_state()
    with pytest.raises(ValueError, match=said) as refused:
        toy.checkpointer.restore(checkpoint)
    assert str(checkpoint) in str(refused.value)
    assert torch.equal(toy.weight(), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert not toy.optimizer.state


def test_a_checkpoint_from_before_measures_were_kept_goes_on(tmp_path: Path) -> None:
    Toy(tmp_path).fit(steps(2))
    checkpoint = find_checkpoint(tmp_path)
    state(progress=PLACE)(checkpoint)
    progress = Toy(tmp_path).checkpointer.restore(checkpoint)
    assert (progress.global_step, progress.seconds, progress.samples) == (2, 0, 0)
    assert progress.whole_curve is None  # a curve that begins here lacks two steps
