"""Where and in which number format a run computes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch

from panollava.logs import LOG

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

    @property
    def name(self) -> str:
        """The number format, such as ``bfloat16``."""
        return str(self.dtype).removeprefix("torch.")

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
        precision: ``auto`` is bf16 on a GPU that has it, not merely imitates it, else fp32.
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
    _check_there(place, device, section)
    has_bf16 = place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        precision = "bf16" if has_bf16 else "fp32"
    if precision == "bf16" and place.type == "cuda" and not has_bf16:
        LOG.warning("%sprecision=bf16 is imitated by this GPU, slowly: fp16 is what it has.", section)
    if precision == "fp16" and place.type == "cpu":
        raise ValueError(f"{section}precision=fp16 needs a GPU; on the CPU use fp32 or bf16.")
    return Compute(place, {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def recorded_compute(device: str, precision: Precision) -> Compute:
    """Resolves ``device`` for a run that was trained in a format: that one, unless it is fp16 and there is no GPU.

    Args:
        device: as of ``choose_compute``.
        precision: ``trainer.precision`` of the run.

    Raises:
        ValueError: a device this machine does not have.
    """
    usual = choose_compute(device, "auto", section="")
    if precision == "auto" or (precision == "fp16" and usual.device.type == "cpu"):
        return usual
    return choose_compute(device, precision, section="")


def _check_there(place: torch.device, asked: str, section: str) -> None:
    """Refuses a device of a known kind that this machine does not have, and kinds that nothing trains on."""
    if place.type == "cuda":
        count = torch.cuda.device_count()
        problem = "" if place.index is None or place.index < count else f"PyTorch sees {count} GPUs, from cuda:0 on"
    elif place.type == "mps":
        problem = "" if torch.backends.mps.is_available() else "this machine has no GPU of Apple's"
    else:
        problem = "" if place.type == "cpu" else "known are auto, cpu, cuda, cuda:1, mps"
    if problem:
        raise ValueError(f"{section}device={asked}: {problem}. Use {section}device=auto.")


def _process_peak_gb() -> float:
    try:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e9 if sys.platform == "darwin" else peak / 1e6
    except ImportError:  # Windows has no resource module
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e9
