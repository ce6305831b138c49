"""The state-space scan: a linear recurrence over tokens, computed in chunks with plain matrix products."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

Kernel = Literal["torch", "mamba_ssm"]

CHUNK = 64  # longest chunk: within one, cost grows with its length; between chunks, with their number
_KERNEL_CHUNK = 256  # chunk length for which the authors of the Triton kernels tuned them
# Elements of a piece: few enough that a CPU's caches hold several, enough to keep an accelerator busy.
ELEMENTS = {"cpu": 2**17, "other": 2**26}


def state_space_scan(
    values: Tensor,
    step: Tensor,
    rate: Tensor,
    write: Tensor,
    read: Tensor,
    skip: Tensor,
    *,
    periodic: bool = False,
    kernel: Kernel = "torch",
) -> Tensor:
    """``chunked_scan`` with log decays of ``-step * rate``, for several sets of rates at once.

    Args:
        values: ``(d, n, L, heads, head_width)``, as the result.
        step: ``(d, n, L, heads)``, positive.
        rate: ``(d, heads)``, positive.
        write: ``(d, n, L, state)``, and ``read``.
        skip: ``(d, heads)``.
        kernel: ``torch``, or ``mamba_ssm`` (see ``mamba_scan``), on a CUDA device only.
    """
    if kernel == "mamba_ssm":
        if values.device.type != "cuda":
            raise ValueError(
                f"model.resampler.kernel=mamba_ssm runs on CUDA alone, and the model is on {values.device}: use "
                "trainer.device=cuda, or kernel=torch, which takes the same weights."
            )
        each = zip(values, step, rate, write, read, skip, strict=True)
        return torch.stack([mamba_scan(*of_one, periodic=periodic) for of_one in each])
    sets, sequences = values.shape[:2]
    log_decay = -step * rate[:, None, None]
    row_skip = skip.unsqueeze(1).expand(-1, sequences, -1)
    flat = (x.flatten(0, 1) for x in (values, step, log_decay, write, read, row_skip))
    return chunked_scan(*flat, periodic=periodic).unflatten(0, (sets, sequences))


def check_mamba_ssm() -> None:
    """Raises ValueError where the Triton kernels cannot run: without a CUDA device or their package."""
    way_out = "kernel=torch computes the same anywhere, with the same weights."
    if not torch.cuda.is_available():
        raise ValueError(f"model.resampler.kernel=mamba_ssm needs a CUDA device, and there is none here; {way_out}")
    if find_spec("mamba_ssm") is None:
        raise ValueError(
            "model.resampler.kernel=mamba_ssm needs the package mamba-ssm, which is not installed "
            f"(pip install mamba-ssm --no-build-isolation); {way_out}"
        )


def mamba_scan(
    values: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor, skip: Tensor, *, periodic: bool
) -> Tensor:
    """``state_space_scan`` for one set of rates (no dimension ``d``) by the Triton kernels, at their precision (TF32).

    A periodic sequence is scanned twice: from a zero state, for its end, and from the state that continues itself.
    """
    scan = import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    arguments = (values, step, -rate, write.unsqueeze(2), read.unsqueeze(2), _KERNEL_CHUNK)
    start = None
    if periodic:
        _, last = scan(*arguments, return_final_states=True)
        start = last / _lost(-step.sum(1) * rate)
    result: Tensor = scan(*arguments, D=skip, initial_states=start)
    return result


def chunked_scan(
    values: Tensor,
    step: Tensor,
    log_decay: Tensor,
    write: Tensor,
    read: Tensor,
    skip: Tensor,
    *,
    chunk: int = CHUNK,
    periodic: bool = False,
) -> Tensor:
    """``state_tᵀ read_t + skip value_t`` of ``state_t = exp(log_decay_t) state_{t-1} + write_t (step_t value_t)ᵀ``.

    Sequences are cut into equal chunks of ``chunk`` steps at most. Inside a chunk, every step reads every earlier
    one through a matrix product; the states at the chunks' ends are passed on one by one. Time and memory are
    linear in the length. The sum of the log decays between two steps is accumulated from the first of them on: as a
    difference of running sums it would lose all digits behind a strong decay. No exponent is ever positive.

    In a periodic sequence, the state before the first step is the one after the last. With the decay p over the whole
    period and the last state of a sequence that starts from zero, it is last / (1 - p).

    Args:
        values: ``(n, L, heads, head_width)``.
        step: ``(n, L, heads)``, weight with which each value is written.
        log_decay: ``(n, L, heads)``, none positive; in a periodic sequence not all zero.
        write: ``(n, L, state)``, shared by the heads, and ``read``.
        skip: ``(n, heads)``.

    Returns:
        ``(n, L, heads, head_width)``, float32 also under autocast, or float64 if that is what came in.

    Source: Dao and Gu 2024, Transformers are SSMs, section 6 and listing 1.
    """
    with torch.autocast(values.device.type, enabled=False):
        dtype = torch.promote_types(values.dtype, torch.float32)
        sequences, length = values.shape[:2]
        count = -(-length // chunk)
        size = -(-length // count)
        cut = [_cut(x.to(dtype), count, size) for x in (values, step, log_decay, write, read)]
        result: Tensor = _Scan.apply(*cut, skip.to(dtype), periodic)
        return result.view(sequences, count * size, *values.shape[2:])[:, :length]


def _cut(sequence: Tensor, count: int, size: int) -> Tensor:
    """``(n, L, ...)`` -> ``(n * count, size, ...)``; zeros after the end write nothing and let nothing decay."""
    missing = count * size - sequence.shape[1]
    if missing:
        sequence = functional.pad(sequence, [0, 0] * (sequence.dim() - 2) + [0, missing])
    return sequence.reshape(-1, size, *sequence.shape[2:])


class _Scan(torch.autograd.Function):
    """The scan over chunks, with a gradient of its own.

    For one head of one chunk, with X the values (steps, head_width), V the values times their steps, S the entering
    state (state, head_width), and decay(j, i) over the steps after j up to i:

        W[j, i] = write_j · read_i decay(j, i) for j ≤ i
        output = Wᵀ V + R S + skip X                      with R[i] = decay(start, i) read_i
        leaving state = decay(start, end) S + Bᵀ V        with B[j] = decay(j, end) write_j

    Only the inputs and the entering states are saved. All else is computed piece by piece, so that it stays in a CPU's
    cache, and again for the gradient. The gradient of the states is the same recurrence, backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        step: Tensor,
        log_decay: Tensor,
        write: Tensor,
        read: Tensor,
        skip: Tensor,
        periodic: bool,
    ) -> Tensor:
        rows, size, heads, width = values.shape
        cuts = pieces(rows, heads * size * max(size, width), values.device)
        through = log_decay.sum(1)
        states = values.new_empty(rows, heads, write.shape[-1], width)
        for cut in cuts:
            rest = functional.pad(log_decay[cut, 1:], (0, 0, 0, 1)).flip(1).cumsum(1).flip(1)
            left = _heads_first(values[cut], rest.exp_().mul_(step[cut]))
            torch.matmul(write[cut].mT.unsqueeze(1), left, out=states[cut])
        _pass_on(states, through, len(skip), periodic=periodic)

        result = torch.empty_like(values, memory_format=torch.contiguous_format)
        row_skip = skip.repeat_interleave(rows // len(skip), dim=0)[:, None, :, None]
        for cut in cuts:
            value = _heads_first(values[cut], step[cut])
            since, within = _decays(log_decay[cut])
            weights = within.mul_((write[cut] @ read[cut].mT).triu_().unsqueeze(1))
            out = weights.flatten(0, 1).mT @ value.flatten(0, 1)
            out.baddbmm_((since * read[cut].unsqueeze(1)).flatten(0, 1), states[cut].flatten(0, 1))
            torch.mul(values[cut], row_skip[cut], out=result[cut])
            result[cut] += out.view_as(value).transpose(1, 2)
        ctx.save_for_backward(values, step, log_decay, write, read, skip, through, states)
        ctx.cuts, ctx.periodic = cuts, periodic
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, step, log_decay, write, read, skip, through, states = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            leaving = torch.empty_like(states)
            for cut in ctx.cuts:
                seen = _heads_first(grad[cut], log_decay[cut].cumsum(1).exp_())
                torch.matmul(read[cut].mT.unsqueeze(1), seen, out=leaving[cut])
            _pass_on(leaving, through, len(skip), periodic=ctx.periodic, backward=True)

            inputs = (values, step, log_decay, write, read)
            results = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
            row_skip = skip.repeat_interleave(len(values) // len(skip), dim=0)[:, None, :, None]
            d_skip = torch.empty_like(through)
            for cut in ctx.cuts:
                given = (*inputs, row_skip, states, leaving, grad, results[0])
                for result, part in zip((*results[1:], d_skip), _gradients(*(x[cut] for x in given)), strict=True):
                    result[cut] = part
        return (*results, d_skip.unflatten(0, (len(skip), -1)).sum(1), None)


def _gradients(
    values: Tensor,
    step: Tensor,
    log_decay: Tensor,
    write: Tensor,
    read: Tensor,
    skip: Tensor,
    entering: Tensor,
    leaving: Tensor,
    grad: Tensor,
    out: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of some chunks' steps, log decays, writes, reads and skips; that of their values goes into ``out``.

    ``entering`` are the states that enter the chunks, ``leaving`` the gradient of those that leave them.
    """
    value, d_out = _heads_first(values, step), _heads_first(grad)
    since, within = _decays(log_decay)
    after = within[..., -1:]
    kernel = (write @ read.mT).triu_()

    d_value = (within * kernel.unsqueeze(1)).flatten(0, 1) @ d_out.flatten(0, 1)
    d_value.baddbmm_((after * write.unsqueeze(1)).flatten(0, 1), leaving.flatten(0, 1))
    d_value = d_value.view_as(value)

    # Of the weights: times the decays they sum to the kernel's over the heads; times the weights themselves they are
    # the gradient of the sum of log decays from j to i, in which the step t takes part for j < t <= i.
    d_weights = (value @ d_out.mT).mul_(within)
    d_kernel = d_weights.sum(1).triu_()
    until = torch.ones_like(kernel[0]).tril_()
    from_before = d_weights.mul_(kernel.unsqueeze(1)) @ until
    d_decay = from_before.triu_(1).sum(-2)

    d_written = (value @ leaving.mT).mul_(after)
    d_write = d_written.sum(1).baddbmm_(d_kernel, read)
    d_decay[..., 1:] += d_written.mul_(write.unsqueeze(1)).sum(-1).cumsum(-1)[..., :-1]

    d_seen = (d_out @ entering.mT).mul_(since)
    d_read = d_seen.sum(1).baddbmm_(d_kernel.mT, write)
    d_decay += d_seen.mul_(read.unsqueeze(1)).sum(-1).flip(-1).cumsum(-1).flip(-1)
    d_decay += since[..., -1, :] * (entering * leaving).sum((-1, -2)).unsqueeze(-1)

    by_head = values.transpose(1, 2)
    d_step = (d_value * by_head).sum(-1)
    d_skip = (d_out * by_head).sum((-1, -2))
    torch.mul(grad, skip, out=out)
    out += d_value.mul_(step.mT.unsqueeze(-1)).transpose(1, 2)
    return d_step.mT, d_decay.mT, d_write, d_read, d_skip


def _decays(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Of log decays ``(r, size, heads)``: decays from a chunk's start to step i, ``(r, heads, i, 1)``, and from j to i.

    The latter are ``(r, heads, j, i)``; for i < j they are exp(0), and ``triu_`` of the other factor removes them.
    """
    by_head = log_decay.mT
    size = by_head.shape[-1]
    later = torch.ones(size, size, dtype=by_head.dtype, device=by_head.device).triu_(1)
    return by_head.cumsum(-1).exp_().unsqueeze(-1), (by_head.unsqueeze(-2) * later).cumsum(-1).exp_()


def _pass_on(written: Tensor, log_through: Tensor, sequences: int, *, periodic: bool, backward: bool = False) -> None:
    """Replaces, in place, what each chunk adds to the state by the state that enters it; ``backward`` from the last.

    ``written`` is ``(sequences * chunks, heads, state, head_width)``, ``log_through`` the log decay over whole chunks.
    """
    written, log_through = (x.unflatten(0, (sequences, -1)) for x in (written, log_through))
    through = log_through.exp()[..., None, None]
    order = range(written.shape[1])[:: -1 if backward else 1]
    state = torch.zeros_like(written[:, 0])
    for chunk in order:
        left = (state * through[:, chunk]).add_(written[:, chunk])
        written[:, chunk] = state
        state = left
    if periodic:
        state /= _lost(log_through.sum(1))
        for chunk in order:
            written[:, chunk] += state
            state *= through[:, chunk]


def _lost(log_decay: Tensor) -> Tensor:
    """``1 - exp(log_decay)`` ``(..., 1, 1)``, the share of a state that a whole period loses; never 0."""
    lost = -torch.expm1(log_decay)
    return lost.clamp(min=torch.finfo(lost.dtype).tiny)[..., None, None]


def _heads_first(sequence: Tensor, scale: Tensor | None = None) -> Tensor:
    """``(r, size, heads, width)``, times ``(r, size, heads)`` -> ``(r, heads, size, width)``, laid out so."""
    by_head = sequence.transpose(1, 2)
    result = torch.empty(by_head.shape, dtype=by_head.dtype, device=by_head.device)
    if scale is None:
        return result.copy_(by_head)
    return torch.mul(by_head, scale.mT.unsqueeze(-1), out=result)


def pieces(rows: int, row_elements: int, device: torch.device) -> list[slice]:
    """Slices that cover so many rows, each of as many rows as ``ELEMENTS`` allows, one at least."""
    size = max(1, ELEMENTS.get(device.type, ELEMENTS["other"]) // row_elements)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
