"""trainer.checkpoint_activations: the same bits with less memory, whatever trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import checkpoint

Build = Callable[..., Any]
AUGMENTED = ("data.augment=true", "data.augment_brightness=0.3")
DROPS = "lora.dropout=0.3"
CASES = [
    pytest.param("vision", ["stage.vision.vision_trainable_blocks=2"], 2, id="stage 1, two blocks of the encoder"),
    pytest.param("vision", ["+experiment=trained_encoder"], 3, id="stage 1, the older variant"),
    pytest.param("resampler", [], 2, id="stage 2"),
    pytest.param("resampler", ["+experiment=trained_encoder", *AUGMENTED], 5, id="stage 2, the older variant"),
    pytest.param("finetune", [DROPS, *AUGMENTED], 2, id="adapter"),
    pytest.param("finetune", [DROPS, "lora.use_dora=true", "trainer.precision=bf16"], 2, id="adapter, bf16"),
    pytest.param(
        "finetune",
        [DROPS, *(f"stage.finetune.{part}_trainable_blocks=1" for part in ("vision", "language"))],
        3,
        id="adapter and a block of both",
    ),
    pytest.param(
        "finetune", ["lora=none", "stage.finetune.language_trainable_blocks=1"], 2, id="a block of the language model"
    ),
    pytest.param(
        "finetune",
        ["lora=none", *(f"stage.finetune.{part}_trainable_blocks=all" for part in ("vision", "language"))],
        5,
        id="everything",
    ),
]


@pytest.mark.parametrize(("stage", "arguments", "blocks"), CASES)
def test_recomputed_activations_are_the_same_bits(
    built: Build, monkeypatch: pytest.MonkeyPatch, stage: str, arguments: list[str], blocks: int
) -> None:
    results = []
    for recompute in (False, True):
        torch.manual_seed(1)  # as a run does before it builds a stage
        case = built(stage, f"trainer.checkpoint_activations={str(recompute).lower()}", *arguments)
        torch.manual_seed(3)
        case.train(steps=1)  # so that an adapter's second matrix is not zero any more
        results.append(loss_and_gradients(case, monkeypatch))
        assert results[-1][2] == (blocks if recompute else 0)
    (loss, gradients, _), (again, recomputed, _) = results
    assert torch.equal(loss, again)
    assert [name for name, value in gradients.items() if not torch.equal(value, recomputed[name])] == []


def loss_and_gradients(case: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, dict[str, Tensor], int]:
    """Of a batch in training mode, with a random state of their own; and how many blocks were recomputed."""
    starts: list[int] = []
    frame = checkpoint._CheckpointFrame

    class Counted(frame):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **options: Any) -> None:
            starts.append(1)
            super().__init__(*args, **options)

    case.stage.train()
    trained = case.stage.trained()
    torch.manual_seed(7)
    with monkeypatch.context() as patch, case.run.compute.autocast():
        patch.setattr(checkpoint, "_CheckpointFrame", Counted)
        (loss,) = case.stage(case.batch).losses.values()
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    named = dict(zip(trained, gradients, strict=True))
    return loss.detach(), {name: value for name, value in named.items() if value is not None}, len(starts)
