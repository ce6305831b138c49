"""What another run's weights give to a model: what fits is loaded, the rest is listed with its shapes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from panollava.training.checkpointer import transfer


def test_what_fits_is_loaded_and_the_rest_is_listed_with_its_shapes() -> None:
    targets = {
        "same.weight": nn.Parameter(torch.zeros(2, 3)),
        "wider.weight": nn.Parameter(torch.zeros(4, 3)),
        "new.scale": nn.Parameter(torch.zeros(())),
        "new.weight": nn.Parameter(torch.zeros(5)),
    }
    there = {"same.weight": torch.ones(2, 3), "wider.weight": torch.ones(2, 3), "gone.bias": torch.ones(7)}
    report = transfer({**there, "elsewhere": torch.ones(1)}, targets, kept=["elsewhere"])
    assert report.loaded == ["same.weight"]
    assert targets["same.weight"].eq(1).all()
    assert not any(target.any() for name, target in targets.items() if name != "same.weight")
    assert report.summary(Path("runs/x")) == (
        "Starting from runs/x: 1 tensors loaded, 1 of another shape and left as they were, "
        "2 not in the checkpoint and left as they were, 1 in the checkpoint only and not used."
    )
    assert report.details().splitlines() == [
        "  of another shape and left as they were: wider.weight (2, 3) -> (4, 3)",
        "  not in the checkpoint and left as they were: new.scale (), new.weight (5,)",
        "  in the checkpoint only and not used: gone.bias (7,)",
    ]
