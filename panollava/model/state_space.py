"""A bidirectional state-space layer (Mamba-2 form) over sequences of tokens, or over closed rings of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from panollava.model.gated_norm import gated_norm
from panollava.model.scan import Kernel, state_space_scan
from panollava.model.short_convolution import short_convolution


class BidirectionalStateSpace(nn.Module):
    """``x + ½(forward scan + flipped backward scan)`` of the normed tokens.

    Each direction has its own weights; both go through batched calls. Everything between the linear maps is
    float32, or float64 in a layer of that type.

    Source: Dao and Gu 2024, section 7.1 (block), and its reference code's ranges of the first decays.
    """

    def __init__(
        self, *, width: int, state: int, conv: int, expand: int, head_width: int, kernel: Kernel = "torch"
    ) -> None:
        """Build one layer.

        Args:
            width: of the tokens.
            state: numbers a head remembers for each of its channels.
            conv: taps of the causal depthwise convolution.
            expand: inner width over ``width``.
            head_width: channels of a head; they share one decay.
            kernel: see ``panollava.model.scan.state_space_scan``.
        """
        super().__init__()
        self.kernel = kernel
        inner = expand * width
        heads, mixed = inner // head_width, inner + 2 * state
        self.splits = [inner, state, state]
        self.norm = nn.RMSNorm(width)
        # Of both directions, one after the other, like all that follows. Vectors are kept flat: weight decay goes by
        # dimension count.
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
        """Draw the parameters that no submodule owns, through ``nn.init`` alone, which loading can guard."""
        bound = 1 / math.sqrt(self.conv_weight.shape[1])
        nn.init.uniform_(self.conv_weight, -bound, bound)
        nn.init.zeros_(self.conv_bias)
        # softplus of the bias is the step, between 0.001 and 0.1; the rate lies between 1 and 16.
        nn.init.uniform_(self.step_bias, math.log(math.expm1(0.001)), math.log(math.expm1(0.1)))
        nn.init.uniform_(self.log_rate, 0.0, math.log(16.0))
        nn.init.ones_(self.skip)
        nn.init.ones_(self.gate_norm)

    def forward(self, tokens: Tensor, *, periodic: bool = False) -> Tensor:
        """Mix along sequences.

        Args:
            tokens: ``(n, L, D)``.
            periodic: whether each sequence is a closed ring, whose first token follows its last.

        Returns:
            ``(n, L, D)``.
        """
        normed = self.norm(tokens)
        both = torch.stack([normed, normed.flip(1)]).flatten(1, 2)
        gate, mixed, step = (
            both @ _by_direction(linear.weight).mT
            for linear in (self.gate_projection, self.mixed_projection, self.step_projection)
        )
        shape = (len(tokens), tokens.shape[1])
        with torch.autocast(tokens.device.type, enabled=False):
            values, write, read = short_convolution(
                mixed.unflatten(1, shape),
                self.conv_weight,
                _by_direction(self.conv_bias),
                splits=self.splits,
                periodic=periodic,
            )
            step_bias, log_rate, skip = (
                _by_direction(x).to(values.dtype) for x in (self.step_bias, self.log_rate, self.skip)
            )
            step = functional.softplus(step.to(values.dtype) + step_bias[:, None]).unflatten(1, shape)
            values = values.unflatten(-1, (step.shape[-1], -1))
            scanned = state_space_scan(
                values, step, log_rate.exp(), write, read, skip, periodic=periodic, kernel=self.kernel
            )
            scanned = scanned.flatten(1, 2).flatten(2)
        opened = gated_norm(scanned, gate, _by_direction(self.gate_norm))
        forward, backward = (opened @ _by_direction(self.out_projection.weight).mT).unflatten(1, shape)
        return tokens + 0.5 * (forward + backward.flip(1))


def _by_direction(parameter: Tensor) -> Tensor:
    """``(2 * x, ...)`` -> ``(2, x, ...)``."""
    return parameter.unflatten(0, (2, -1))
