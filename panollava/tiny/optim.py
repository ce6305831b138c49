"""Optimisers and learning rate of the miniature backbones' training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

STATE = "state.pt"
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
    """Writes the state that ``resume`` goes on from, into the folder of whoever makes the backbones."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = [optimiser.state_dict() for optimiser in optimisers]
    torch.save({"model": model.state_dict(), "optimisers": saved, "step": step}, folder / STATE)


def resume(folder: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer]) -> int:
    """Puts the kept state back.

    Returns:
        The step to go on with; 0 where nothing was kept.
    """
    if not (folder / STATE).is_file():
        return 0
    state = torch.load(folder / STATE, weights_only=True)
    model.load_state_dict(state["model"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    return int(state["step"])


def cosine(peak: float, steps: int, warmup: int) -> Callable[[int], float]:
    """Learning rate of a step: a linear rise, then a cosine down to a hundredth."""

    def rate(step: int) -> float:
        progress = min(1.0, max(0.0, (step - warmup) / max(1, steps - warmup)))
        return peak * min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))

    return rate
