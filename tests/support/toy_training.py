"""A stage of four weights and data of plain numbers: the loop without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from panollava.batch import Batch
from panollava.stages.protocol import StepOutput
from panollava.tracking.tracker import NullTracker, Tracker
from panollava.training.checkpointer import Checkpointer, Progress
from panollava.training.distributed import DistributedContext
from panollava.training.loop import FitResult, OptimiserStep, fit
from panollava.training.options import OptimOptions, StageOptions, TrainerOptions
from panollava.training.precision import Compute

CPU = Compute(torch.device("cpu"), torch.float32)
ALONE = DistributedContext()


def batch(*values: float) -> Batch:
    """A sample a value."""
    pixels = torch.tensor(values).view(-1, 1, 1, 1, 1).expand(-1, 1, 3, 2, 2)
    mask = torch.ones(len(values), 1, dtype=torch.bool)
    return Batch([f"sample {value:g}" for value in values], pixels, torch.zeros(len(values), 1, 11), mask)


def before_step(step: int, how: Callable[[], None]) -> Callable[..., dict[str, float]]:
    """``OptimiserStep.__call__``, which calls `how` where the step of that number (from 1) would begin."""
    original, taken = OptimiserStep.__call__, [0]

    def call(self: OptimiserStep, *args: Any) -> dict[str, float]:
        taken[0] += 1
        if taken[0] == step:
            how()
        return original(self, *args)

    return call


def power_cut() -> None:
    raise RuntimeError("power cut")


class ToyStage(nn.Module):
    """Pulls four weights towards the samples' values; the loss is a sum, its count the number of samples."""

    def __init__(self, name: str = "toy") -> None:
        super().__init__()
        self.name = name
        self.weight = nn.Parameter(torch.tensor([[0.5, -0.5], [0.25, 1.0]]))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def trained(self) -> dict[str, nn.Parameter]:
        """The weights."""
        return {"weight": self.weight}

    caveat = ""

    def concern(self, metrics: Mapping[str, float]) -> str | None:
        """None."""
        return None

    def counts(self, batch: Batch) -> dict[str, float]:
        """Samples."""
        return {"pull": float(len(batch))}

    def forward(self, batch: Batch) -> StepOutput:
        """Squared distances; a value of 1e30 makes the gradient infinite and the loss not."""
        values = batch.pixel_values[:, 0, 0, 0, 0]
        distance = (self.weight.sum() - values).square().sum()
        return StepOutput({"pull": distance}, {"pull/seen": values.sum()})


class ScriptedStage(ToyStage):
    """A stage whose validation losses are given."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.losses = iter(losses)

    def forward(self, batch: Batch) -> StepOutput:
        """The next loss of the script, outside training."""
        output = super().forward(batch)
        if not self.training:
            output.losses["pull"] = torch.tensor(next(self.losses) * len(batch))
        return output


class ToyData:
    """Windows and validation batches as they are given, the same in every epoch."""

    def __init__(self, windows: list[list[Batch]], validation: list[Batch]) -> None:
        self._windows, self._validation = windows, validation
        self.steps_per_epoch = len(windows)

    def windows(self, epoch: int, start: int) -> Iterator[list[Batch]]:
        """From optimiser step `start` on."""
        yield from self._windows[start:]

    def validation(self) -> Iterator[Batch]:
        """In order."""
        yield from self._validation


def steps(count: int) -> ToyData:
    """An epoch of `count` steps of two samples."""
    return ToyData([[batch(float(index), index + 0.5)] for index in range(count)], [batch(1.0)])


class Toy:
    """A run of a stage on the loop, with a folder of its own."""

    def __init__(
        self,
        folder: Path,
        stage: ToyStage | None = None,
        prefix: str = "toy",
        procs: DistributedContext = ALONE,
        keep_best: int = 1,
        **notes: Any,
    ) -> None:
        self.stage, self.procs = stage or ToyStage(), procs
        self.optimizer = torch.optim.AdamW(self.stage.trained().values(), lr=0.0)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.folder = folder
        self.saved: list[tuple[int, float]] = []  # epoch and loss of each best checkpoint
        self.checkpointer = Checkpointer(
            folder,
            prefix=prefix,
            stage_name=self.stage.name,
            parameters=self.stage.trained(),
            optimizer=self.optimizer,
            scaler=self.scaler,
            procs=procs,
            notes=notes,
            keep_best=keep_best,
            on_save=lambda progress, loss: self.saved.append((progress.epoch, loss)),
        )

    def fit(
        self,
        data: ToyData,
        progress: Progress | None = None,
        *,
        epochs: int = 1,
        lr: float = 0.1,
        tracker: Tracker | None = None,
        **trainer: Any,
    ) -> FitResult:
        """Trains to the end."""
        return fit(
            self.stage,
            data,
            optimizer=self.optimizer,
            scaler=self.scaler,
            optim=OptimOptions(),
            options=StageOptions(epochs=epochs, batch_size=2, accumulate=1, lr=lr, max_text_length=8),
            trainer=TrainerOptions(**trainer),
            compute=CPU,
            procs=self.procs,
            checkpointer=self.checkpointer,
            tracker=tracker or NullTracker(),
            progress=progress or Progress(),
        )

    def checkpoints(self) -> list[str]:
        """Names of the checkpoint folders, links left out."""
        return sorted(path.name for path in self.folder.glob("*.ckpt") if not path.is_symlink())

    def weight(self) -> Tensor:
        """A copy of what trains."""
        return self.stage.weight.detach().clone()
