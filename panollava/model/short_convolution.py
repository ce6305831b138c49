"""A causal depthwise convolution over a few steps, and SiLU, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from panollava.model.blocks import blocks


def short_convolution(
    sequences: Tensor, weight: Tensor, bias: Tensor, *, splits: Sequence[int], periodic: bool = False
) -> tuple[Tensor, ...]:
    """``silu(bias + Σ_k weight_k x_{t - taps + 1 + k})`` for each channel, in float32 at least.

    Args:
        sequences: ``(d, n, L, x)``.
        weight: ``(d, taps, x)``, the last tap for the step itself.
        bias: ``(d, x)``.
        splits: channels of each of the results.
        periodic: whether the step before the first is the last; else it is zero.

    Returns:
        ``(d, n, L, split)`` for each split.
    """
    with torch.autocast(sequences.device.type, enabled=False):
        dtype = torch.promote_types(sequences.dtype, torch.float32)
        results: tuple[Tensor, ...] = _ShortConvolution.apply(
            sequences, weight.to(dtype), bias.to(dtype), tuple(splits), periodic
        )
        return results


class _ShortConvolution(torch.autograd.Function):
    """Kept is the input alone; the sums before SiLU are made once more for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, sequences: Tensor, weight: Tensor, bias: Tensor, splits: tuple[int, ...], periodic: bool
    ) -> tuple[Tensor, ...]:
        taps = weight.shape[1]
        head = sequences[:, :, _before(sequences.shape[2], taps, sequences.device)]
        padded = torch.cat([head if periodic else torch.zeros_like(head), sequences], dim=2)
        results = [weight.new_empty(*sequences.shape[:3], split) for split in splits]
        cuts = _cuts(sequences)
        for rows, steps in cuts:
            summed = _summed(padded[:, rows, _with_taps(steps, taps)], weight, bias)
            for result, part in zip(results, summed.split(splits, dim=-1), strict=True):
                result[:, rows, steps] = functional.silu(part)
        ctx.save_for_backward(padded, weight, bias)
        ctx.periodic, ctx.cuts = periodic, cuts
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        padded, weight, bias = ctx.saved_tensors
        taps = weight.shape[1]
        d_padded = torch.zeros(padded.shape, dtype=weight.dtype, device=padded.device)
        d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for rows, steps in ctx.cuts:
            block = padded[:, rows, _with_taps(steps, taps)].to(weight.dtype)
            d_block = d_padded[:, rows, _with_taps(steps, taps)]
            grad = torch.cat([part[:, rows, steps] for part in grads], dim=-1)
            grad = torch.ops.aten.silu_backward(grad, _summed(block, weight, bias))
            d_bias += grad.sum((1, 2))
            for tap in range(taps):
                seen = slice(tap, tap + grad.shape[2])
                d_block[:, :, seen].addcmul_(grad, weight[:, tap, None, None])
                d_weight[:, tap] += (grad * block[:, :, seen]).sum((1, 2))
        d_sequences = d_padded[:, :, taps - 1 :]
        if ctx.periodic:
            before = _before(d_sequences.shape[2], taps, padded.device)
            d_sequences.index_add_(2, before, d_padded[:, :, : taps - 1])
        return d_sequences.to(padded.dtype), d_weight, d_bias, None, None


def _cuts(sequences: Tensor) -> list[tuple[slice, slice]]:
    """Pieces of ``(d, n, L, x)`` along n and, where one sequence is too large already, along L."""
    sets, count, length, channels = sequences.shape
    return [
        (rows, steps)
        for rows in blocks(count, sets * length * channels, sequences.device)
        for steps in blocks(length, sets * (rows.stop - rows.start) * channels, sequences.device)
    ]


def _before(length: int, taps: int, device: torch.device) -> Tensor:
    """The steps before the first of a ring, which may be shorter than the taps."""
    return torch.arange(1 - taps, 0, device=device).remainder(length)


def _with_taps(steps: slice, taps: int) -> slice:
    """Where the steps and those that they hear of lie in a padded sequence."""
    return slice(steps.start, steps.stop + taps - 1)


def _summed(block: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``(d, n, steps + taps - 1, x)`` -> ``(d, n, steps, x)``."""
    taps = weight.shape[1]
    size = block.shape[2] - taps + 1
    result = torch.addcmul(bias[:, None, None], block[:, :, :size], weight[:, 0, None, None])
    for tap in range(1, taps):
        result.addcmul_(block[:, :, tap : tap + size], weight[:, tap, None, None])
    return result
