"""Floating point operations of a training step, counted from the shapes that its linear layers and attentions see."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from panollava.batch import Batch
from panollava.stages.protocol import Stage
from panollava.training.precision import Compute


def step_flops(stage: Stage, batch: Batch, compute: Compute) -> float:
    """Operations of a forward and backward pass, from one forward pass.

    A product of ``n`` rows with a weight ``(in, out)`` takes 2·n·in·out operations. The backward pass takes as many
    again for the gradient of the rows, if they have one, and as many for that of the weight, if it trains: 6 for each
    weight and token where everything trains, 2 in a frozen encoder. Attention over ``S`` tokens of width ``D`` takes
    4·S²·D in a layer, also with a causal mask, and twice that in the backward pass. Norms, activations, the optimiser
    and activations that are computed again do not count.

    Source: Chowdhery et al. 2022, PaLM, appendix B (6 N + 12 L H Q T for a token), here term by term.
    """
    counted = [0.0]
    with ExitStack() as hooks:
        for module in stage.modules():
            hook = _of_linear(counted) if isinstance(module, nn.Linear | nn.Conv2d) else None
            if hook is None and hasattr(module, "q_proj") and type(module).__name__.endswith("Attention"):
                hook = _of_attention(counted)
            if hook is not None:
                hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        with compute.autocast():
            stage(batch)
    return counted[0]


Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


def _of_linear(counted: list[float]) -> Hook:
    """Of linear layers, and of the convolution that makes patches."""

    def count(module: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
        (read,) = inputs or tuple(named.values())
        rows = output.numel() // module.weight.shape[0]
        passes = 1 + int(torch.is_grad_enabled() and read.requires_grad) + int(module.weight.requires_grad)
        counted[0] += 2.0 * rows * module.weight.numel() * passes

    return count


def _of_attention(counted: list[float]) -> Hook:
    def count(module: Any, inputs: tuple[Any, ...], named: dict[str, Any], _output: object) -> None:
        states = inputs[0] if inputs else named["hidden_states"]
        rows, length, width = *states.shape[:2], module.q_proj.out_features
        counted[0] += 4.0 * rows * length**2 * width * (3 if states.requires_grad else 1)

    return count
