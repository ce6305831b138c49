"""A bidirectional state-space layer (Mamba-2 form), computed in chunks with plain matrix products."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

CHUNK = 64
"""Longest chunk: within one, cost grows with its length; between chunks, with their number."""


def chunked_scan(values: Tensor, log_decay: Tensor, write: Tensor, read: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """Run ``state_t = exp(log_decay_t) state_{t-1} + write_t value_tᵀ`` and read ``state_tᵀ read_t``.

    Sequences are cut into equal chunks of ``chunk`` steps at most. Inside a chunk, every step reads every
    earlier one through a matrix product; the states at the chunks' ends are carried on one by one. The sum of
    the log decays between two steps is accumulated from the first of them on: as a difference of running sums
    it would lose all digits behind a strong decay. No exponent is ever positive.

    Args:
        values: ``(n, L, heads, head_width)``.
        log_decay: ``(n, L, heads)``, none positive.
        write: ``(n, L, state)``, shared by the heads.
        read: ``(n, L, state)``, likewise.
        chunk: longest chunk.

    Returns:
        ``(n, L, heads, head_width)`` float32, also under autocast.

    Source: Dao and Gu 2024, Transformers are SSMs, section 6 and listing 1.
    """
    with torch.autocast(values.device.type, enabled=False):
        length, heads = log_decay.shape[1:]
        count = -(-length // chunk)
        size = -(-length // count)
        # (n, chunks, size, ...); log decays go heads first, to be summed along their last dimension.
        values, write, read = (_cut(x.float(), count, size) for x in (values, write, read))
        log_decay = _cut(log_decay.float(), count, size).transpose(2, 3)

        ones = torch.ones(size, size, device=values.device)
        # [j, i]: from step j to a later step i. Before j it is exp(0), and the product below takes that away.
        decay = (log_decay.unsqueeze(-2) * ones.triu(1)).cumsum(-1).exp_()
        weights = ((write @ read.mT) * ones.triu()).unsqueeze(2) * decay
        result = (weights.mT @ values.transpose(2, 3)).transpose(2, 3)
        if count > 1:
            since_start = log_decay.cumsum(-1)
            entering = _carry(values, write, log_decay, since_start[..., -1].exp())
            carried = (read @ entering).unflatten(-1, (heads, -1))
            result = result + carried * since_start.exp().transpose(2, 3).unsqueeze(-1)
        return result.flatten(1, 2)[:, :length]


def _cut(sequence: Tensor, count: int, size: int) -> Tensor:
    """``(n, L, ...)`` -> ``(n, count, size, ...)``, zeros behind the end, which nothing reads."""
    missing = count * size - sequence.shape[1]
    if missing:
        sequence = functional.pad(sequence, [0, 0] * (sequence.dim() - 2) + [0, missing])
    return sequence.unflatten(1, (count, size))


def _carry(values: Tensor, write: Tensor, log_decay: Tensor, through: Tensor) -> Tensor:
    """State on entering each chunk.

    Args:
        values: ``(n, chunks, size, heads, head_width)``.
        write: ``(n, chunks, size, state)``.
        log_decay: ``(n, chunks, heads, size)``.
        through: ``(n, chunks, heads)``, decay over each whole chunk.

    Returns:
        ``(n, chunks, state, heads * head_width)``.
    """
    after = functional.pad(log_decay[..., 1:], (0, 1)).flip(-1).cumsum(-1).flip(-1)
    left = values * after.exp().transpose(2, 3).unsqueeze(-1)
    # unbind, not indexing: the backward of each index would fill a tensor as large as all chunks.
    written = (write.mT @ left.flatten(3)).unflatten(-1, left.shape[3:]).unbind(1)
    factors = through[:, :, None, :, None].unbind(1)
    states = [torch.zeros_like(written[0]), written[0]]
    for state, factor in zip(written[1:-1], factors[1:-1], strict=True):
        states.append(torch.addcmul(state, states[-1], factor))
    return torch.stack(states, dim=1).flatten(3)


class BidirectionalStateSpace(nn.Module):
    """``x + ½(forward scan + flipped backward scan)`` of the normed tokens.

    Each direction has its own weights; both go through one batched call. Everything between the
    two linear maps is float32.

    Source: Dao and Gu 2024, section 7.1 (block), and its reference code's ranges of the first decays.
    """

    def __init__(self, *, width: int, state: int, conv: int, expand: int, head_width: int) -> None:
        """Build one layer.

        Args:
            width: of the tokens.
            state: numbers a head remembers for each of its channels.
            conv: taps of the causal depthwise convolution.
            expand: inner width over ``width``.
            head_width: channels of a head; they share one decay.
        """
        super().__init__()
        self.inner, self.state, self.head_width = expand * width, state, head_width
        self.heads = self.inner // head_width
        mixed = self.inner + 2 * state
        self.splits = [self.inner, mixed, self.heads]
        self.norm = nn.RMSNorm(width)
        self.in_projection = nn.Linear(width, 2 * sum(self.splits), bias=False)
        # Vectors are kept flat, the two directions one after the other: weight decay goes by dimension count.
        self.conv_weight = nn.Parameter(torch.empty(2, conv, mixed))
        self.conv_bias = nn.Parameter(torch.empty(2 * mixed))
        self.step_bias = nn.Parameter(torch.empty(2 * self.heads))
        self.log_rate = nn.Parameter(torch.empty(2 * self.heads))
        self.skip = nn.Parameter(torch.empty(2 * self.heads))
        self.gate_norm = nn.Parameter(torch.empty(2 * self.inner))
        self.out_projection = nn.Linear(2 * self.inner, width, bias=False)
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

    def forward(self, tokens: Tensor) -> Tensor:
        """Sequences ``(n, L, D)`` -> ``(n, L, D)``."""
        projected = self.in_projection(self.norm(tokens)).unflatten(-1, (2, -1))
        gate, mixed, step = projected.split(self.splits, dim=-1)
        with torch.autocast(tokens.device.type, enabled=False):
            mixed, step = (_turned(x).float() for x in (mixed, step))
            values, write, read = self._convolve(mixed).split([self.inner, self.state, self.state], dim=-1)
            step = functional.softplus(step + self._by_direction(self.step_bias))
            values = values.unflatten(-1, (self.heads, self.head_width))
            log_decay = -step * self._by_direction(self.log_rate).exp()
            scanned = chunked_scan(
                *(x.flatten(0, 1) for x in (values * step.unsqueeze(-1), log_decay, write, read))
            ).unflatten(0, (2, -1))
            scanned = torch.addcmul(scanned, values, self._by_direction(self.skip).unsqueeze(-1))
            forward, backward = scanned.flatten(-2).unbind(0)
            both = torch.stack([forward, backward.flip(1)], dim=2) * functional.silu(gate.float())
            normed = functional.rms_norm(both, (self.inner,), eps=1e-5).flatten(2) * self.gate_norm.float()
        return tokens + 0.5 * self.out_projection(normed.to(projected.dtype))

    def _by_direction(self, vector: Tensor) -> Tensor:
        """A parameter over both directions ``(2 * x)`` -> ``(2, 1, 1, x)``, against ``(2, n, L, x)``."""
        return vector.float().view(2, 1, 1, -1)

    def _convolve(self, mixed: Tensor) -> Tensor:
        """Causal depthwise convolution, tap by tap, and SiLU of ``(2, n, L, x)``."""
        length, taps = mixed.shape[2], self.conv_weight.shape[1]
        padded = functional.pad(mixed, (0, 0, taps - 1, 0))
        result = self._by_direction(self.conv_bias)
        for tap, weight in enumerate(self.conv_weight.float().unbind(1)):
            result = torch.addcmul(result, padded[:, :, tap : tap + length], weight[:, None, None])
        return functional.silu(result)


def _turned(sequences: Tensor) -> Tensor:
    """``(n, L, 2, x)`` -> ``(2, n, L, x)``, the second direction from the last step to the first."""
    forward, backward = sequences.unbind(2)
    return torch.stack([forward, backward.flip(1)])
