"""Starting a stage from another run's weights: what fits is loaded, the rest is listed with its shapes."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from panollava.training.parallel import put

SHOWN = 6
"""Tensors of a kind that the note names; of a language model's adapter there are hundreds."""


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

    @property
    def is_long(self) -> bool:
        """Whether ``summary`` leaves some out."""
        return any(len(names) > SHOWN for names in (self.misfits, self.fresh, self.unused))

    def summary(self, source: Path, *, shown: int | None = SHOWN) -> str:
        """A note for the log: a line, and a line for each kind of leftover.

        Args:
            source: the checkpoint.
            shown: how many of a kind are named; None names all.
        """
        lines = [f"Starting from {source}: {len(self.loaded)} tensors loaded."]
        for what, names in (
            ("of another shape, left as they were", self.misfits),
            ("not in the checkpoint, left as they were", self.fresh),
            ("in the checkpoint only, not used", self.unused),
        ):
            if names:
                more = (
                    f" and {len(names) - shown} more (the log file names them)"
                    if shown is not None and len(names) > shown
                    else ""
                )
                lines.append(f"  {what}: {', '.join(names[:shown])}{more}")
        return "\n".join(lines)


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
