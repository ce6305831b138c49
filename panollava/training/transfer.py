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
        fresh: trained here, not in the checkpoint.
        unused: in the checkpoint, not in this model.
    """

    loaded: list[str]
    misfits: list[str]
    fresh: list[str]
    unused: list[str]

    def summary(self, source: Path) -> str:
        """A note for the log: a line, and a line for each kind of leftover."""
        lines = [f"Starting from {source}: {len(self.loaded)} tensors loaded."]
        for what, names in (
            ("of another shape, left as initialised", self.misfits),
            ("not in the checkpoint, left as initialised", self.fresh),
            ("in the checkpoint only, not used", self.unused),
        ):
            if names:
                shown = ", ".join(names[:6]) + (f", … ({len(names)} in all)" if len(names) > 6 else "")
                lines.append(f"  {what}: {shown}")
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
            result.fresh.append(name)
        elif tensors[name].shape != target.shape:
            result.misfits.append(f"{name} {tuple(tensors[name].shape)} -> {tuple(target.shape)}")
        else:
            put(target, tensors[name])
            result.loaded.append(name)
    result.unused = [name for name in tensors if name not in targets and name not in kept]
    return result
