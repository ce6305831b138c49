"""What the training loop asks of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from panollava.batch import Batch


@dataclass
class StepOutput:
    """What one micro-batch costs.

    Attributes:
        losses: name -> weighted *sum* over the micro-batch's targets (scalar, fp32). The loop divides each by
            its count over the whole accumulation window and all processes, so that cutting a batch
            differently does not change the objective.
        metrics: ``<loss>/<term>`` -> detached sum over the same count as the loss, logged only.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Stage(Protocol):
    """A module that knows what trains and what a step costs; the loop knows no stage by name."""

    name: str

    @property
    def caveat(self) -> str:
        """What its numbers must be read with, printed beside them; empty where there is nothing to say."""
        ...

    @property
    def coupled(self) -> str:
        """What its loss takes over a whole micro-batch, so that its size is part of the objective; empty: nothing."""
        ...

    def counts(self, batch: Batch) -> dict[str, float]:
        """Denominator of each loss, and of its metrics, without a forward pass."""
        ...

    def __call__(self, batch: Batch) -> StepOutput:
        """Weighted loss sums and metrics of a micro-batch."""
        ...

    def concern(self, metrics: Mapping[str, float]) -> str | None:
        """What in a validation's means, by name, says that nothing worth having is learnt, and what to do about it.

        Returns:
            What was measured, what it means and what to change, for the user; None where nothing is wrong.
        """
        ...

    def train(self, mode: bool = True) -> Any:
        """Training mode for what trains, inference mode for what is frozen."""
        ...

    def eval(self) -> Any:
        """Inference mode for everything."""
        ...

    def trained(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything that trains, names as in checkpoints."""
        ...

    def frozen_backbone(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of a named backbone that does not train here, though an earlier stage may have."""
        ...
