"""Optimisers and learning rate of the miniature backbones' training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from panollava.checkpoint import TRAINED, read_state, read_tensors, write_checkpoint
from panollava.training.checkpointer import OPTIMIZER, load_optimizer, optimizer_tensors

KEPT, KIND = "last.ckpt", "backbone"
SHARPNESS_SPEED = 8.0
"""Query and key norms set how sharply attention can choose; at the common rate they grow too slowly."""


def make_optimisers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest; ``set_rate`` gives them their rate.

    Source: Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.
    """
    inner, sharpness, rest = [], [], []
    for name, parameter in model.named_parameters():
        if "q_norm" in name or "k_norm" in name:
            sharpness.append(parameter)
        elif parameter.dim() == 2 and ".layers." in name:
            inner.append(parameter)
        else:
            rest.append(parameter)
    muon = torch.optim.Muon(inner, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    groups: list[dict[str, Any]] = [{"params": rest, "speed": 1.0}]
    if sharpness:
        groups.append({"params": sharpness, "speed": SHARPNESS_SPEED})
    return [muon, torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.98))]


def set_rate(optimisers: list[torch.optim.Optimizer], rate: float) -> None:
    """Sets the learning rate of the next step."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate * group.get("speed", 1.0)


def keep(folder: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer], step: int) -> None:
    """Writes the state that ``resume`` continues from."""
    parameters = dict(model.named_parameters())  # each once, also where two layers share it
    moments = [optimizer_tensors(parameters, optimiser) for optimiser in optimisers]
    tensors: dict[str, Mapping[str, Tensor]] = {
        TRAINED: parameters,
        OPTIMIZER: {key: value for each in moments for key, value in each.items()},
    }
    write_checkpoint(folder / KEPT, tensors, {"stage": KIND, "step": step})


def resume(folder: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer]) -> int:
    """Puts the kept state back; what the optimisers are set to is not part of it.

    Returns:
        The step to continue with; 0 where no state was saved.

    Raises:
        ValueError: what was kept is of another model.
    """
    kept = folder / KEPT
    if not kept.is_dir():
        return 0
    parameters = dict(model.named_parameters())
    state, tensors, moments = read_state(kept), read_tensors(kept / TRAINED), read_tensors(kept / OPTIMIZER)
    shapes = [{name: value.shape for name, value in each.items()} for each in (tensors, parameters)]
    if state["stage"] != KIND or shapes[0] != shapes[1]:
        raise ValueError(f"{kept} is of another model than is trained now. Give another --work folder, or remove it.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    for optimiser in optimisers:
        own = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
        names = {name for name, parameter in parameters.items() if id(parameter) in own}
        load_optimizer(parameters, optimiser, {k: v for k, v in moments.items() if k.rsplit("/", 1)[0] in names})
    return int(state["step"])


def cosine(peak: float, steps: int, warmup: int) -> Callable[[int], float]:
    """Learning rate of a step: a linear rise, then a cosine down to a hundredth."""

    def rate(step: int) -> float:
        progress = min(1.0, max(0.0, (step - warmup) / max(1, steps - warmup)))
        return peak * min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))

    return rate
