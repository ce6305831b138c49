"""A stage as the config builds it, with a first window of real batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import QUICK, UNTRACKED, backbones, opened
from torch import Tensor

from panollava.batch import Batch
from panollava.run.build_stage import build_stage
from panollava.training.distributed import DistributedContext
from panollava.training.loop import OptimiserStep


@dataclass
class Built:
    """A stage and batches for it."""

    stage: Any
    batches: list[Batch]
    run: Any

    @property
    def batch(self) -> Batch:
        """The first of them."""
        return self.batches[0]

    def tensors(self) -> dict[str, Tensor]:
        """A copy of every parameter and buffer of the whole model, buffers that are not saved included."""
        named = [*self.stage.named_parameters(), *self.stage.named_buffers()]
        return {name: value.detach().clone() for name, value in named}

    def train(self, steps: int) -> None:
        """Optimiser steps of plain SGD: what gets no gradient does not move."""
        parameters = list(self.stage.trained().values())
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        self.stage.train()
        procs, compute = DistributedContext(), self.run.compute
        step = OptimiserStep(self.stage, self.stage, optimizer, compute.scaler(), compute, procs, clip_norm=1.0)
        for index in range(steps):
            step([self.batches[index % len(self.batches)]], lr=0.1)


@pytest.fixture
def built(backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Built]:
    """``built(stage, *arguments)``: the stage of that config."""
    monkeypatch.chdir(tmp_path)

    def build(name: str, *arguments: str) -> Built:
        pixels = "store.enabled=false"
        with opened(*backbones(backbone), *QUICK, UNTRACKED, pixels, *arguments) as run:
            stage = build_stage(run, name)
            windows = run.batches(name, run.stage_options(name)).windows(0)
            return Built(stage, [batch for window in islice(windows, 2) for batch in window], run)

    return build
