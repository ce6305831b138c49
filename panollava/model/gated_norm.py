"""A gate and the RMS norm of what it lets through, block by block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from panollava.model.blocks import blocks

EPSILON = 1e-5


def gated_norm(values: Tensor, gate: Tensor, gain: Tensor) -> Tensor:
    """``rms_norm(values * silu(gate)) * gain``, computed in the type of the values.

    Args:
        values: ``(d, rows, x)``.
        gate: ``(d, rows, x)``.
        gain: ``(d, x)``.

    Returns:
        ``(d, rows, x)``, of the gate's type.
    """
    with torch.autocast(values.device.type, enabled=False):
        result: Tensor = _GatedNorm.apply(values, gate, gain.to(values.dtype))
        return result


class _GatedNorm(torch.autograd.Function):
    """Kept are the inputs alone; the rest is made once more for the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, gate: Tensor, gain: Tensor) -> Tensor:
        ctx.cuts = blocks(values.shape[1], values[:, 0].numel(), values.device)
        ctx.save_for_backward(values, gate, gain)
        result = torch.empty_like(gate, memory_format=torch.contiguous_format)
        for cut in ctx.cuts:
            normed, _ = _normed(values[:, cut] * functional.silu(gate[:, cut].to(values.dtype)))
            result[:, cut] = normed.mul_(gain[:, None])
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        values, gate, gain = ctx.saved_tensors
        d_values, d_gate, d_gain = torch.empty_like(values), torch.empty_like(gate), torch.zeros_like(gain)
        for cut in ctx.cuts:
            value, opening, d_out = values[:, cut], gate[:, cut].to(values.dtype), grad[:, cut].to(values.dtype)
            opened = functional.silu(opening)
            normed, scale = _normed(value * opened)
            d_normed = d_out * gain[:, None]
            d_gain += d_out.mul(normed).sum(1)
            along = (d_normed * normed).mean(-1, keepdim=True)
            d_product = d_normed.sub_(normed.mul_(along)).mul_(scale)
            torch.mul(d_product, opened, out=d_values[:, cut])
            d_gate[:, cut] = torch.ops.aten.silu_backward(d_product.mul_(value), opening)
        return d_values, d_gate, d_gain


def _normed(product: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor over the root mean square of its last dimension, in place, and the factor that did it."""
    scale = product.square().mean(-1, keepdim=True).add_(EPSILON).rsqrt_()
    return product.mul_(scale), scale
