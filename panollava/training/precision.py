"""Where and in which number format a run computes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Compute:
    """Device and number format.

    Attributes:
        device: where tensors live.
        dtype: of frozen backbones and of autocast; float32 means no autocast.
    """

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of a forward pass."""
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """A gradient scaler; it only acts in fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)

    def reset_peak_memory(self) -> None:
        """Begins a new peak, on a GPU; a process's own peak cannot be reset."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory_gb(self) -> float:
        """Most memory used: of the GPU since the last reset, else of this process since it began (GB)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        return _process_peak_gb()


def choose_compute(device: str, precision: Precision, local_rank: int = 0, *, section: str = "trainer.") -> Compute:
    """Resolves ``trainer.device`` and ``trainer.precision``.

    Args:
        device: ``auto`` (CUDA, else Apple's MPS, else the CPU) or a torch device name.
        precision: ``auto`` is bf16 on a GPU that has it, else fp32.
        local_rank: which GPU of the machine.
        section: what precedes the keys in messages.

    Raises:
        ValueError: a device this machine does not have, or fp16 on the CPU.
    """
    if device == "auto":
        has_mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"{section}device={device}, but PyTorch sees no CUDA GPU. Use {section}device=cpu or auto.")
    try:
        place = torch.device(f"cuda:{local_rank}" if device == "cuda" else device)
    except RuntimeError as error:
        raise ValueError(f"{section}device={device} is not a torch device: auto, cpu, cuda, cuda:1, mps.") from error
    if precision == "auto":
        precision = "bf16" if place.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and place.type == "cpu":
        raise ValueError(f"{section}precision=fp16 needs a GPU; on the CPU use fp32 or bf16.")
    return Compute(place, {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def _process_peak_gb() -> float:
    try:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e9 if sys.platform == "darwin" else peak / 1e6
    except ImportError:  # Windows has no resource module
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e9
