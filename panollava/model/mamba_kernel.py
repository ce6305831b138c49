"""The state-space scan by the Triton kernels of mamba-ssm, for CUDA alone and only where they are asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

CHUNK = 256
"""Chunk length for which the kernels were tuned by their authors."""


def check_mamba_ssm() -> None:
    """Refuse the kernels where they cannot run.

    Raises:
        ValueError: there is no CUDA device, or the package is not installed.
    """
    way_out = "kernel=torch computes the same anywhere, with the same weights."
    if not torch.cuda.is_available():
        raise ValueError(f"model.resampler.kernel=mamba_ssm needs a CUDA device, and there is none here; {way_out}")
    if find_spec("mamba_ssm") is None:
        raise ValueError(
            "model.resampler.kernel=mamba_ssm needs the package mamba-ssm, which is not installed "
            f"(pip install mamba-ssm --no-build-isolation); {way_out}"
        )


def check_on_cuda(device: torch.device) -> None:
    """Refuse the kernels for tensors that are elsewhere.

    Raises:
        ValueError: the device is another.
    """
    if device.type != "cuda":
        raise ValueError(
            f"model.resampler.kernel=mamba_ssm runs on CUDA alone, and the model is on {device}: use "
            "trainer.device=cuda, or kernel=torch, which takes the same weights."
        )


def mamba_scan(
    values: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor, skip: Tensor, *, periodic: bool
) -> Tensor:
    """The scan of ``panollava.model.scan`` for one set of rates, at the precision of the kernels (TF32).

    A periodic sequence is scanned twice: once from nothing, for the state at its end, and once from the state that
    is its own continuation.

    Args:
        values: ``(n, L, heads, head_width)``.
        step: ``(n, L, heads)``.
        rate: ``(heads)``.
        write: ``(n, L, state)``.
        read: ``(n, L, state)``.
        skip: ``(heads)``.
        periodic: whether each sequence is a closed ring.
    """
    scan = import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    arguments = (values, step, -rate, write.unsqueeze(2), read.unsqueeze(2), CHUNK)
    start = None
    if periodic:
        _, last = scan(*arguments, return_final_states=True)
        lost = -torch.expm1(-step.sum(1) * rate)
        start = last / lost.clamp(min=torch.finfo(lost.dtype).tiny)[..., None, None]
    result: Tensor = scan(*arguments, D=skip, initial_states=start)
    return result
