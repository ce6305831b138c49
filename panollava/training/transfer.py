"""Starting a stage from another run's weights: what fits is loaded, the rest is listed with its shapes."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from panollava.training.parallel import put


@dataclass
class Transfer:
    """What came of ``transfer``.

    Attributes:
        loaded: names of tensors taken over.
        misfits: ``name (its shape there) -> (its shape here)``.
        fresh: ``name (its shape)`` of those trained here that are not in the checkpoint.
        unused: ``name (its shape)`` of those in the checkpoint that are not in this model.
    """

    loaded: list[str]
    misfits: list[str]
    fresh: list[str]
    unused: list[str]

    def summary(self, source: Path) -> str:
        """A line for the log: where the weights come from, and how many."""
        counts = [f"{len(names)} {what}" for what, names in self._left() if names]
        return f"Starting from {source}: {', '.join([f'{len(self.loaded)} tensors loaded', *counts])}."

    def details(self) -> str:
        """What was not loaded, a line a kind; empty where all was."""
        return "\n".join(f"  {what}: {', '.join(names)}" for what, names in self._left() if names)

    def _left(self) -> list[tuple[str, list[str]]]:
        return [
            ("of another shape and left as they were", self.misfits),
            ("not in the checkpoint and left as they were", self.fresh),
            ("in the checkpoint only and not used", self.unused),
        ]


def transfer(
    tensors: Mapping[str, Tensor], targets: Mapping[str, nn.Parameter], *, kept: Container[str] = ()
) -> Transfer:
    """Copies every tensor whose name and shape fit.

    Args:
        tensors: of the checkpoint.
        targets: parameters of the model that may be filled.
        kept: names of tensors that are of use elsewhere.
    """
    result = Transfer([], [], [], [])
    for name, target in targets.items():
        if name not in tensors:
            result.fresh.append(f"{name} {tuple(target.shape)}")
        elif tensors[name].shape != target.shape:
            result.misfits.append(f"{name} {tuple(tensors[name].shape)} -> {tuple(target.shape)}")
        else:
            put(target, tensors[name])
            result.loaded.append(name)
    result.unused = [
        f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items() if name not in targets and name not in kept
    ]
    return result
