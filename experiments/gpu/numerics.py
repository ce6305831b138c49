"""Number formats and attention kernels against fp32, the state-space kernel and shared prefixes against ours."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from experiments.gpu.models import (
    STRATEGY,
    VIEWS,
    Setting,
    about_one,
    composite,
    gap,
    gradient,
    instruct_stage,
    median_ms,
    with_texts,
)
from experiments.gpu.rows import Check, NotHereError, NotInstalledError, Row, compared
from panollava.batch import PREFIX, Batch
from panollava.crop.cameras import camera_tensor
from panollava.model.resampler.bimamba import BimambaResampler
from panollava.model.shared_prefix import packed_mask
from panollava.model.state_space.scan import CHUNK, state_space_scan

LIMITS = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (5e-2, 0.15), torch.float16: (1e-2, 5e-2)}
"""Largest error of logits and of gradients. A number of bf16 has 8 binary digits, one of fp16 has 11."""

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
SCALE = 1024.0
"""Of the loss before the backward pass, so that fp16 resolves its gradients."""


def precision(setting: Setting) -> Iterator[Check]:
    """Each number format with each attention kernel, against fp32 with eager attention."""
    expected: list[tuple[Tensor, Tensor]] = []

    def reference() -> list[Row]:
        expected.append(_logits_and_gradient(setting, torch.float32, "eager"))
        return []

    yield "fp32, eager", reference
    ways = [(torch.float32, "sdpa")]
    ways += [
        (dtype, kernel)
        for dtype in (torch.bfloat16, torch.float16)
        for kernel in ("eager", "sdpa", "flash_attention_2")
    ]
    for dtype, kernel in ways:
        yield f"{SHORT[dtype]}, {kernel}", partial(_against, setting, dtype, kernel, expected)
    for dtype in (torch.bfloat16, torch.float16):
        yield f"{SHORT[dtype]}, PyTorch's flash kernel", partial(_flash_alone, setting, dtype)


def _against(setting: Setting, dtype: torch.dtype, kernel: str, expected: list[tuple[Tensor, Tensor]]) -> list[Row]:
    _check_here(setting, dtype, kernel)
    found = _logits_and_gradient(setting, dtype, kernel)
    names, note = ("logits", "gradients"), "against fp32, eager"
    pairs = zip(names, found, expected[0], LIMITS[dtype], strict=True)
    return [compared(f"{SHORT[dtype]}, {kernel}: {name}", gap(a, b), limit, note) for name, a, b, limit in pairs]


def _check_here(setting: Setting, dtype: torch.dtype, kernel: str = "") -> None:
    if kernel == "flash_attention_2" and find_spec("flash_attn") is None:
        raise NotInstalledError("the package flash-attn is missing")
    if dtype is torch.float16 and not setting.on_gpu:
        raise NotHereError("fp16 needs a GPU")
    if kernel == "flash_attention_2" and not setting.on_gpu:
        raise NotHereError("flash-attn needs a GPU")
    if dtype is torch.bfloat16 and setting.on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise NotHereError("this GPU has no bf16")


def _logits_and_gradient(setting: Setting, dtype: torch.dtype, kernel: str) -> tuple[Tensor, Tensor]:
    """Logits that predict the text, and gradients of stage 2, over two panoramas with texts of different lengths."""
    size = setting.size
    model = composite(setting, size.language, dtype=dtype, attention=kernel, exact=True)
    stage, batch = instruct_stage(model), with_texts(size, size.language, 2).to(setting.device)
    with torch.no_grad(), setting.in_dtype(dtype).autocast():
        last = model(**batch.model_inputs, use_cache=False, logits_to_keep=size.text).logits
    assert batch.attention_mask is not None
    logits = last[batch.attention_mask[:, -size.text :].bool()].float().cpu()
    _backward(setting.in_dtype(dtype), stage, batch)
    return logits, gradient(stage)


def _backward(compute: Any, stage: Any, batch: Batch) -> float:
    with compute.autocast():
        (loss,) = stage(batch).losses.values()
    mean = loss / sum(stage.counts(batch).values())
    (SCALE * mean).backward()
    return float(mean.detach())


def _heads(setting: Setting, length: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Queries, keys and values as the compared language model has them, each with its own head."""
    language = setting.size.language
    heads = language["num_attention_heads"]
    generator = torch.Generator().manual_seed(seed)
    shape = (1, heads, length, language["hidden_size"] // heads)
    return [torch.randn(shape, generator=generator).to(setting.device, dtype) for _ in range(3)]


def _flash_alone(setting: Setting, dtype: torch.dtype) -> Row:
    _check_here(setting, dtype)
    heads = _heads(setting, VIEWS * setting.size.patches, dtype)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        found = functional.scaled_dot_product_attention(*heads, is_causal=True)
    with sdpa_kernel(SDPBackend.MATH):
        expected = functional.scaled_dot_product_attention(*(head.float() for head in heads), is_causal=True)
    note = "causal attention alone, against fp32 without a fused kernel"
    return compared(f"{SHORT[dtype]}, PyTorch's flash kernel", gap(found, expected), LIMITS[dtype][0], note)


def mamba(setting: Setting) -> Iterator[Check]:
    """Our scan against the recurrence, and the kernels of mamba-ssm against our scan."""
    yield "scan against the recurrence", partial(_scan, setting)
    for scan in ("view", "ring"):
        yield f"mamba-ssm, scan={scan}", partial(_kernel, setting, scan)


def _scan(setting: Setting) -> Row:
    generator = torch.Generator().manual_seed(0)
    length, heads, width, state = 2 * CHUNK + 5, 4, 16, 8

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(setting.device)

    values, step = draw(1, 2, length, heads, width), functional.softplus(draw(1, 2, length, heads))
    write, read, skip = draw(1, 2, length, state), draw(1, 2, length, state), draw(1, heads)
    rate = functional.softplus(draw(1, heads))
    found = state_space_scan(values, step, rate, write, read, skip)[0]
    values, step, write, read = (x[0].double() for x in (values, step, write, read))
    at, outputs = values.new_zeros(2, heads, width, state), []
    for t in range(length):
        at = at * torch.exp(-step[:, t] * rate.double())[..., None, None]
        at = at + (values * step[..., None])[:, t, :, :, None] * write[:, t, None, None, :]
        outputs.append((at * read[:, t, None, None, :]).sum(-1) + values[:, t] * skip[0].double()[:, None])
    note = "ours in fp32, against the loop over steps in fp64"
    return compared("scan against the recurrence", gap(found, torch.stack(outputs, dim=1)), 1e-5, note)


def _kernel(setting: Setting, scan: str) -> list[Row]:
    if find_spec("mamba_ssm") is None:
        raise NotInstalledError("the package mamba-ssm is missing")
    if not setting.on_gpu:
        raise NotHereError("the kernels of mamba-ssm need a GPU")
    found = {kernel: _bimamba(setting, scan, kernel) for kernel in ("torch", "mamba_ssm")}
    (tokens, slopes, ms), (kernel_tokens, kernel_slopes, kernel_ms) = found["torch"], found["mamba_ssm"]
    name, note = f"mamba-ssm, scan={scan}", "against kernel=torch in fp32; the kernels compute in TF32"
    return [
        compared(f"{name}: tokens", gap(kernel_tokens, tokens), 5e-3, note),
        compared(f"{name}: gradients", gap(kernel_slopes, slopes), 2e-2, note),
        Row(f"bimamba, scan={scan}, kernel=torch", note="forward and backward of a panorama", milliseconds=ms),
        Row(f"bimamba, scan={scan}, kernel=mamba_ssm", note="likewise", milliseconds=kernel_ms),
    ]


def _bimamba(setting: Setting, scan: Any, kernel: Any) -> tuple[Tensor, Tensor, float]:
    """Tokens, gradients and milliseconds of a resampler, whose weights do not depend on the kernel."""
    size, device = setting.size, setting.device
    torch.manual_seed(0)
    widths = {"input_width": size.vision["hidden_size"], "output_width": size.latent}
    resampler = BimambaResampler(**widths, **size.bimamba, scan=scan, kernel=kernel).to(device)
    features = torch.randn(1, VIEWS, size.patches, widths["input_width"]).to(device)
    cameras = camera_tensor(STRATEGY.cameras())[None].to(device)
    mask = torch.ones(1, VIEWS, dtype=torch.bool, device=device)
    side = round(size.patches**0.5)

    def step() -> Tensor:
        resampler.zero_grad()
        tokens = resampler(features, grid=(side, side), view_mask=mask, cameras=cameras)
        tokens.square().mean().backward()
        return tokens

    tokens = step().detach()
    slopes = torch.cat([weight.grad.flatten() for weight in resampler.parameters() if weight.grad is not None])
    return tokens, slopes, median_ms(step, device, size.rounds)


def prefix(setting: Setting) -> Iterator[Check]:
    """Texts that share their panorama's tokens against separate rows, and flex attention against our mask."""
    ways = [(torch.float32, "eager"), (torch.float32, "sdpa"), (setting.compute.dtype, "sdpa")]
    for dtype, kernel in dict.fromkeys(ways):
        yield f"{SHORT[dtype]}, {kernel}", partial(_shared, setting, dtype, kernel)
    yield "flex attention", partial(_flex, setting)


def _shared(setting: Setting, dtype: torch.dtype, kernel: str) -> list[Row]:
    size, compute = setting.size, setting.in_dtype(dtype)
    stage = instruct_stage(composite(setting, size.language, dtype=dtype, attention=kernel))
    apart, together = (batch.to(setting.device) for batch in about_one(size, size.language, 3))
    loss = _backward(compute, stage, apart)
    expected = gradient(stage)
    shared_loss = _backward(compute, stage, together)
    slopes = gradient(stage)
    name, note = f"{SHORT[dtype]}, {kernel}", "three texts in one row (our mask), against a row for each"
    limits = LIMITS[dtype]
    return [
        compared(f"{name}: loss", abs(shared_loss - loss) / abs(loss), limits[0], note),
        compared(f"{name}: gradients", gap(slopes, expected), limits[1], note),
    ]


def _flex(setting: Setting) -> list[Row]:
    """Our code attends with SDPA and a mask and cannot use flex attention: this compares the two kernels alone."""
    _, together = about_one(setting.size, setting.size.language, 3)
    assert together.segments is not None
    segments, dtype, device = together.segments[0].to(setting.device), setting.compute.dtype, setting.device
    length = len(segments)

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """The form of ``packed_mask``; there are no pads."""
        same = segments[query] == segments[key]
        return (same | (segments[key] == PREFIX)) & (key <= query)

    blocks = create_block_mask(visible, None, None, length, length, device=device)  # type: ignore[arg-type]
    flex: Any = torch.compile(flex_attention, dynamic=False) if setting.on_gpu else flex_attention
    mask = packed_mask(segments[None])
    heads = [head.requires_grad_(setting.on_gpu) for head in _heads(setting, length, dtype)]
    how = "compiled" if setting.on_gpu else "not compiled, forward only"
    note = f"kernels alone, {how}: a block mask of the form of ours, against SDPA with ours; training uses the latter"

    def forward(function: Any) -> tuple[Tensor, list[Tensor]]:
        output = function()
        return output, list(torch.autograd.grad(output.float().square().sum(), heads)) if setting.on_gpu else []

    ways = {
        "flex attention": lambda: flex(*heads, block_mask=blocks),
        "SDPA with our mask": lambda: functional.scaled_dot_product_attention(*heads, attn_mask=mask),
    }
    (found, slopes), (expected, expected_slopes) = (forward(way) for way in ways.values())
    rows = [compared("flex attention: outputs", gap(found, expected), LIMITS[dtype][0], note)]
    if setting.on_gpu:
        error = gap(torch.cat([s.flatten() for s in slopes]), torch.cat([s.flatten() for s in expected_slopes]))
        rows.append(compared("flex attention: gradients", error, LIMITS[dtype][1], note))
        for name, way in ways.items():
            ms = median_ms(partial(forward, way), device, setting.size.rounds)
            rows.append(Row(name, note=f"{length} tokens, forward and backward of a layer's kernel", milliseconds=ms))
    return rows
