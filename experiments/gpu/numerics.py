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

from experiments.gpu.measure import SHORT, agreement, gap, loss_and_gradient, median_ms
from experiments.gpu.models import STRATEGY, VIEWS, Setting, about_one, instruct_stage, with_texts
from experiments.gpu.rows import NEEDS_GPU, NOT_INSTALLED, Check, Row, UnavailableError, compared
from panollava.batch import PREFIX
from panollava.crop.cameras import camera_tensor
from panollava.model.resampler.bimamba import BimambaResampler
from panollava.model.shared_prefix import packed_mask
from panollava.model.state_space.scan import CHUNK, state_space_scan

FLASH = "flash_attention_2"


def precision(setting: Setting) -> Iterator[Check]:
    """Each number format with each attention kernel, against fp32 with eager attention."""
    halves = (torch.bfloat16, torch.float16)
    expected = _logits_and_gradient(setting, torch.float32, "eager")
    ways = [(torch.float32, "sdpa"), *((dtype, kernel) for dtype in halves for kernel in ("eager", "sdpa", FLASH))]
    for dtype, kernel in ways:
        name = f"{SHORT[dtype]}, {kernel}"
        yield name, partial(_against, setting, name, dtype, kernel, expected)
    for dtype in halves:
        name = f"{SHORT[dtype]}, PyTorch's flash kernel"
        yield name, partial(_flash_alone, setting, name, dtype)


def _against(setting: Setting, name: str, dtype: torch.dtype, kernel: str, expected: dict[str, Tensor]) -> list[Row]:
    if kernel == FLASH:
        _require("flash_attn", setting)
    _check_format(setting, dtype)
    return agreement(name, _logits_and_gradient(setting, dtype, kernel), expected, dtype, "against fp32, eager")


def _require(package: str, setting: Setting) -> None:
    """Raises where a package with kernels for GPUs cannot be used."""
    if find_spec(package) is None:
        raise UnavailableError(NOT_INSTALLED, f"the package {package} is missing")
    if not setting.on_gpu:
        raise UnavailableError(NEEDS_GPU, f"{package} has no kernels for a CPU")


def _check_format(setting: Setting, dtype: torch.dtype) -> None:
    if dtype is torch.float16 and not setting.on_gpu:
        raise UnavailableError(NEEDS_GPU, "training in fp16 is for GPUs")
    if dtype is torch.bfloat16 and setting.on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UnavailableError(NEEDS_GPU, "this GPU has no bf16")


def _logits_and_gradient(setting: Setting, dtype: torch.dtype, kernel: str) -> dict[str, Tensor]:
    """Logits that predict the text, and gradients of stage 2, over two panoramas with texts of different lengths."""
    size, compute = setting.size, setting.in_dtype(dtype)
    stage = instruct_stage(setting, size.language, dtype, attention=kernel)
    batch = with_texts(size, size.language, 2).to(setting.device)
    assert batch.attention_mask is not None
    with torch.no_grad(), compute.autocast():
        last = stage.composite(**batch.model_inputs, use_cache=False, logits_to_keep=size.text).logits  # type: ignore[misc]
    logits = last[batch.attention_mask[:, -size.text :].bool()].float().cpu()
    return {"logits": logits, "gradients": loss_and_gradient(stage, stage, batch, compute)["gradients"]}


def _heads(setting: Setting, length: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values as the compared language model has them, each with its own head."""
    heads = setting.size.language["num_attention_heads"]
    shape = (1, heads, length, setting.size.language["hidden_size"] // heads)
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(setting.device, dtype) for _ in range(3)]


def _flash_alone(setting: Setting, name: str, dtype: torch.dtype) -> list[Row]:
    _check_format(setting, dtype)
    heads = _heads(setting, VIEWS * setting.size.patches, dtype)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        found = functional.scaled_dot_product_attention(*heads, is_causal=True)
    with sdpa_kernel(SDPBackend.MATH):
        expected = functional.scaled_dot_product_attention(*(head.float() for head in heads), is_causal=True)
    note = "causal attention alone, against fp32 without a fused kernel"
    return agreement(name, {"outputs": found}, {"outputs": expected}, dtype, note)


def mamba(setting: Setting) -> Iterator[Check]:
    """Our scan against the recurrence, and the kernels of mamba-ssm against our scan."""
    yield "scan against the recurrence", partial(_scan, setting)
    for scan in ("view", "ring"):
        yield f"mamba-ssm, scan={scan}", partial(_kernel, setting, scan)


def _scan(setting: Setting) -> list[Row]:
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
    return [compared("scan against the recurrence", gap(found, torch.stack(outputs, dim=1)), 1e-5, note)]


def _kernel(setting: Setting, scan: str) -> list[Row]:
    _require("mamba_ssm", setting)
    (tokens, slopes, ms), (kernel_tokens, kernel_slopes, kernel_ms) = (
        _bimamba(setting, scan, kernel) for kernel in ("torch", "mamba_ssm")
    )
    name, note = f"mamba-ssm, scan={scan}", "against kernel=torch in fp32; the kernels compute in TF32"
    return [
        compared(f"{name}: tokens", gap(kernel_tokens, tokens), 5e-3, note),
        compared(f"{name}: gradients", gap(kernel_slopes, slopes), 2e-2, note),
        Row(f"bimamba, scan={scan}, kernel=torch", note="forward and backward of a panorama", milliseconds=ms),
        Row(f"bimamba, scan={scan}, kernel=mamba_ssm", note="likewise", milliseconds=kernel_ms),
    ]


def _bimamba(setting: Setting, scan: str, kernel: str) -> tuple[Tensor, Tensor, float]:
    """Tokens of a panorama, gradients of the weights, and milliseconds of both."""
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
        name = f"{SHORT[dtype]}, {kernel}"
        yield name, partial(_shared, setting, name, dtype, kernel)
    yield "flex attention", partial(_flex, setting)


def _shared(setting: Setting, name: str, dtype: torch.dtype, kernel: str) -> list[Row]:
    language, compute = setting.size.language, setting.in_dtype(dtype)
    stage = instruct_stage(setting, language, dtype, attention=kernel)
    expected, found = (
        loss_and_gradient(stage, stage, batch.to(setting.device), compute)
        for batch in about_one(setting.size, language, 3)
    )
    return agreement(name, found, expected, dtype, "three texts in one row (our mask), against a row for each")


def _flex(setting: Setting) -> list[Row]:
    """Our code attends with SDPA and a mask and cannot use flex attention: this compares the two kernels alone."""
    dtype, device = setting.compute.dtype, setting.device
    _, together = about_one(setting.size, setting.size.language, 3)
    assert together.segments is not None
    segments = together.segments[0].to(device)
    length = len(segments)

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """The form of ``packed_mask``; there are no pads."""
        same = segments[query] == segments[key]
        return (same | (segments[key] == PREFIX)) & (key <= query)

    blocks = create_block_mask(visible, None, None, length, length, device=device)
    flex: Any = torch.compile(flex_attention, dynamic=False) if setting.on_gpu else flex_attention
    mask = packed_mask(segments[None])
    heads = [head.requires_grad_(setting.on_gpu) for head in _heads(setting, length, dtype)]

    def with_flex() -> dict[str, Tensor]:
        return with_gradients(flex(*heads, block_mask=blocks))

    def with_sdpa() -> dict[str, Tensor]:
        return with_gradients(functional.scaled_dot_product_attention(*heads, attn_mask=mask))

    def with_gradients(outputs: Tensor) -> dict[str, Tensor]:
        if not setting.on_gpu:  # on a CPU flex attention has no backward pass
            return {"outputs": outputs}
        slopes = torch.autograd.grad(outputs.float().square().sum(), heads)
        return {"outputs": outputs, "gradients": torch.cat([slope.flatten() for slope in slopes])}

    how = "compiled" if setting.on_gpu else "not compiled, forward only"
    note = f"kernels alone, {how}: flex attention against SDPA with our mask, which training uses"
    rows = agreement("flex attention", with_flex(), with_sdpa(), dtype, note)
    note = f"{length} tokens, {'forward and backward' if setting.on_gpu else 'forward'} of a layer's kernel"
    for name, way in (("flex attention", with_flex), ("SDPA with our mask", with_sdpa)):
        rows.append(Row(name, note=note, milliseconds=median_ms(way, device, setting.size.rounds)))
    return rows
