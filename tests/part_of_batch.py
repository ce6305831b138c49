"""Every objective on pairs that processes share; a script that torchrun starts, and functions for one process."""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from panollava.component import component_names, find_component
from panollava.losses.protocol import Objective
from panollava.training.distributed import Processes, processes


def objectives() -> dict[str, Objective]:
    """One of each kind, by a name."""
    room = "losses.objective"
    result = {name: find_component(room, name, "Objective")() for name in component_names(room, "Objective")}
    return {**result, "densecl_of_batch": find_component(room, "densecl", "Objective")(negatives="batch")}


def cost_of(name: str, a: Tensor, b: Tensor, mask: Tensor, procs: Processes | None = None) -> dict[str, Tensor]:
    """Total, terms and gradients of an objective, as ``<name>:<what>``; numbers are added up over processes."""
    procs = procs or Processes()
    a, b = (side.clone().requires_grad_() for side in (a, b))
    total, terms = objectives()[name](a, b, mask, across_ranks=procs.world_size > 1)
    gradients = torch.autograd.grad(total, (a, b))
    values = procs.sum({"total": float(total.detach()), **{key: float(value) for key, value in terms.items()}})
    result = {f"{name}:{key}": torch.tensor(value) for key, value in values.items()}
    return {**result, f"{name}:a": gradients[0].contiguous(), f"{name}:b": gradients[1].contiguous()}


def main() -> None:
    """Takes this process's pairs, cut at the third argument, and writes its results to ``<second argument>.<rank>``."""
    torch.set_num_threads(1)
    tensors, cut = load_file(sys.argv[1]), int(sys.argv[3])
    with processes() as procs:
        part = slice(0, cut) if procs.is_main else slice(cut, None)
        a, b, mask = tensors["a"][part], tensors["b"][part], tensors["mask"][part] > 0
        result = {key: value for name in objectives() for key, value in cost_of(name, a, b, mask, procs).items()}
        save_file(result, f"{sys.argv[2]}.{procs.rank}")


if __name__ == "__main__":
    main()
