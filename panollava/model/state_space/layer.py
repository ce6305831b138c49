"""A bidirectional state-space layer (Mamba-2 form) over sequences of tokens, or over closed rings of them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from panollava.model.state_space.scan import Kernel, pieces, state_space_scan

_EPSILON = 1e-5


class BidirectionalStateSpace(nn.Module):
    """``x + ½(forward scan + flipped backward scan)`` of the normed tokens.

    Each direction has its own weights; both go through batched calls. Everything between the linear maps is
    float32, or float64 in a layer of that type.

    Source: Dao and Gu 2024, section 7.1 (block), and its reference code's ranges of the first decays.

    Args:
        width: of the tokens.
        state: numbers a head remembers for each of its channels.
        conv: taps of the causal depthwise convolution.
        expand: inner width over ``width``.
        head_width: channels of a head; they share one decay.
        kernel: see ``state_space_scan``.
    """

    def __init__(
        self, *, width: int, state: int, conv: int, expand: int, head_width: int, kernel: Kernel = "torch"
    ) -> None:
        super().__init__()
        self.kernel = kernel
        inner = expand * width
        heads, mixed = inner // head_width, inner + 2 * state
        self.splits = [inner, state, state]
        self.norm = nn.RMSNorm(width)
        # Each weight holds both directions, one after the other. Vectors are flat: weight decay depends on the number
        # of dimensions.
        self.gate_projection = nn.Linear(width, 2 * inner, bias=False)
        self.mixed_projection = nn.Linear(width, 2 * mixed, bias=False)
        self.step_projection = nn.Linear(width, 2 * heads, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(2, conv, mixed))
        self.conv_bias = nn.Parameter(torch.empty(2 * mixed))
        self.step_bias = nn.Parameter(torch.empty(2 * heads))
        self.log_rate = nn.Parameter(torch.empty(2 * heads))
        self.skip = nn.Parameter(torch.empty(2 * heads))
        self.gate_norm = nn.Parameter(torch.empty(2 * inner))
        self.out_projection = nn.Linear(inner, 2 * width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters that no submodule owns, through ``nn.init`` alone, which loading can guard."""
        bound = 1 / math.sqrt(self.conv_weight.shape[1])
        nn.init.uniform_(self.conv_weight, -bound, bound)
        nn.init.zeros_(self.conv_bias)
        # softplus of the bias is the step, between 0.001 and 0.1; the rate lies between 1 and 16.
        nn.init.uniform_(self.step_bias, math.log(math.expm1(0.001)), math.log(math.expm1(0.1)))
        nn.init.uniform_(self.log_rate, 0.0, math.log(16.0))
        nn.init.ones_(self.skip)
        nn.init.ones_(self.gate_norm)

    def forward(self, tokens: Tensor, *, periodic: bool = False) -> Tensor:
        """``(n, L, D)`` -> ``(n, L, D)``; in a periodic sequence the first token follows the last."""
        normed = self.norm(tokens)
        both = torch.stack([normed, normed.flip(1)]).flatten(1, 2)  # (2, n·L, D), one direction each
        gate, mixed, step = (  # (2, n·L, inner), (2, n·L, inner + 2·state), (2, n·L, heads)
            both @ _by_direction(linear.weight).mT
            for linear in (self.gate_projection, self.mixed_projection, self.step_projection)
        )
        shape = (len(tokens), tokens.shape[1])
        with torch.autocast(tokens.device.type, enabled=False):
            mixed, bias = mixed.unflatten(1, shape), _by_direction(self.conv_bias)
            inputs = mixed, self.conv_weight, bias
            values, write, read = short_convolution(*inputs, splits=self.splits, periodic=periodic)
            vectors = (self.step_bias, self.log_rate, self.skip)
            step_bias, log_rate, skip = (_by_direction(x).to(values.dtype) for x in vectors)
            step = functional.softplus(step.to(values.dtype) + step_bias[:, None]).unflatten(1, shape)
            values = values.unflatten(-1, (step.shape[-1], -1))  # (2, n, L, heads, head_width)
            scanned = state_space_scan(
                values, step, log_rate.exp(), write, read, skip, periodic=periodic, kernel=self.kernel
            )
            scanned = scanned.flatten(1, 2).flatten(2)  # (2, n·L, inner)
        opened = gated_norm(scanned, gate, _by_direction(self.gate_norm))
        forward, backward = (opened @ _by_direction(self.out_projection.weight).mT).unflatten(1, shape)
        return tokens + 0.5 * (forward + backward.flip(1))


def _by_direction(parameter: Tensor) -> Tensor:
    """``(2 * x, ...)`` -> ``(2, x, ...)``."""
    return parameter.unflatten(0, (2, -1))


def short_convolution(
    sequences: Tensor, weight: Tensor, bias: Tensor, *, splits: Sequence[int], periodic: bool = False
) -> tuple[Tensor, ...]:
    """``silu(bias + Σ_k weight_k x_{t - taps + 1 + k})`` for each channel, in float32 at least.

    ``(d, n, L, x)`` gives ``(d, n, L, split)`` for each split of ``x``. The weight is ``(d, taps, x)``, its last
    tap for the step itself, the bias ``(d, x)``. The step before the first is the last if ``periodic``, else zero.
    """
    with torch.autocast(sequences.device.type, enabled=False):
        dtype = torch.promote_types(sequences.dtype, torch.float32)
        inputs = sequences, weight.to(dtype), bias.to(dtype)
        results: tuple[Tensor, ...] = _ShortConvolution.apply(*inputs, tuple(splits), periodic)
        return results


class _ShortConvolution(torch.autograd.Function):
    """Saves the input alone; the sums before SiLU are computed again for the gradient."""

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
            piece = padded[:, rows, _with_taps(steps, taps)].to(weight.dtype)
            d_piece = d_padded[:, rows, _with_taps(steps, taps)]
            grad = torch.cat([part[:, rows, steps] for part in grads], dim=-1)
            grad = torch.ops.aten.silu_backward(grad, _summed(piece, weight, bias))
            d_bias += grad.sum((1, 2))
            for tap in range(taps):
                seen = slice(tap, tap + grad.shape[2])
                d_piece[:, :, seen].addcmul_(grad, weight[:, tap, None, None])
                d_weight[:, tap] += (grad * piece[:, :, seen]).sum((1, 2))
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
        for rows in pieces(count, sets * length * channels, sequences.device)
        for steps in pieces(length, sets * (rows.stop - rows.start) * channels, sequences.device)
    ]


def _before(length: int, taps: int, device: torch.device) -> Tensor:
    """The steps before the first of a ring, which may be shorter than the taps."""
    return torch.arange(1 - taps, 0, device=device).remainder(length)


def _with_taps(steps: slice, taps: int) -> slice:
    """The steps, and those before them that the taps reach, as a slice of a padded sequence."""
    return slice(steps.start, steps.stop + taps - 1)


def _summed(piece: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``(d, n, steps + taps - 1, x)`` -> ``(d, n, steps, x)``."""
    taps = weight.shape[1]
    size = piece.shape[2] - taps + 1
    result = torch.addcmul(bias[:, None, None], piece[:, :, :size], weight[:, 0, None, None])
    for tap in range(1, taps):
        result.addcmul_(piece[:, :, tap : tap + size], weight[:, tap, None, None])
    return result


def gated_norm(values: Tensor, gate: Tensor, gain: Tensor) -> Tensor:
    """``rms_norm(values * silu(gate)) * gain``, computed in the type of the values, returned in the gate's.

    Values, gate and result are ``(d, rows, x)``, the gain is ``(d, x)``.
    """
    with torch.autocast(values.device.type, enabled=False):
        result: Tensor = _GatedNorm.apply(values, gate, gain.to(values.dtype))
        return result


class _GatedNorm(torch.autograd.Function):
    """Saves the inputs alone; the rest is computed again for the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, gate: Tensor, gain: Tensor) -> Tensor:
        ctx.cuts = pieces(values.shape[1], values[:, 0].numel(), values.device)
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
    """A tensor divided by the root mean square of its last dimension, in place, and the factor."""
    scale = product.square().mean(-1, keepdim=True).add_(_EPSILON).rsqrt_()
    return product.mul_(scale), scale
