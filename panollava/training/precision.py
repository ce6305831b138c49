"""The device and the number format of a run."""

import contextlib
import sys
from dataclasses import dataclass, replace
from typing import Literal

import torch

from panollava.logs import LOG

Precision = Literal["auto", "fp32", "bf16", "fp16"]
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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

    @property
    def precision(self) -> str:
        """The number format as a value of ``trainer.precision``, such as ``bf16``."""
        return next(name for name, dtype in FORMATS.items() if dtype is self.dtype)

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of a forward pass."""
        is_plain = self.dtype is torch.float32
        return contextlib.nullcontext() if is_plain else torch.autocast(self.device.type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """A gradient scaler; it only acts in fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)

    def reset_peak_memory(self) -> None:
        """Resets the peak of a GPU; that of a process on the CPU cannot be reset."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory_gb(self) -> float:
        """Most memory used (GB): of the GPU since the last reset, else of this process since its start."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        if sys.platform == "win32":
            import psutil

            return psutil.Process().memory_info().peak_wset / 1e9
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
        return peak / 1e9 if sys.platform == "darwin" else peak / 1e6


def choose_compute(device: str, precision: Precision, local_rank: int = 0, *, section: str = "trainer.") -> Compute:
    """Resolves ``trainer.device`` and ``trainer.precision``.

    Args:
        device: ``auto`` (CUDA, else Apple's MPS, else the CPU) or a torch device name.
        precision: ``auto`` is bf16 on a GPU that computes in it natively, else fp32.
        local_rank: which GPU of the machine ``cuda`` is.
        section: prefix of the keys in messages.

    Raises:
        ValueError: a device this machine does not have, or fp16 on the CPU.
    """
    has_mps, gpus = torch.backends.mps.is_available(), torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"{section}device={device}, but PyTorch sees no CUDA GPU. Use {section}device=cpu or auto.")
    try:
        place = torch.device(f"cuda:{local_rank}" if device == "cuda" else device)
    except RuntimeError as error:
        raise ValueError(f"{section}device={device} is not a torch device: auto, cpu, cuda, cuda:1, mps.") from error
    problem = ""
    if place.type not in ("cpu", "cuda", "mps"):
        problem = "known are auto, cpu, cuda, cuda:1, mps"
    elif place.type == "mps" and not has_mps:
        problem = "this machine has no Apple GPU"
    elif place.type == "cuda" and place.index is not None and place.index >= gpus:
        problem = f"PyTorch sees {gpus} GPUs, from cuda:0 on"
    if problem:
        raise ValueError(f"{section}device={device}: {problem}. Use {section}device=auto.")
    if place.type == "cuda":  # what names no GPU, such as random states and a load in four bits, then means this one
        torch.cuda.set_device(place)
    has_bf16 = place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        precision = "bf16" if has_bf16 else "fp32"
    if precision == "bf16" and place.type == "cuda" and not has_bf16:
        LOG.warning("%sprecision=bf16 is emulated on this GPU, which is slow; fp16 is native.", section)
    if precision == "fp16" and place.type == "cpu":
        raise ValueError(f"{section}precision=fp16 needs a GPU; on the CPU use fp32 or bf16.")
    return Compute(place, FORMATS[precision])


def continued(compute: Compute, begun: str) -> Compute:
    """The device with the number format that a run was begun in; with its own where it lacks that one, and a warning.

    Args:
        compute: of ``trainer.precision``.
        begun: a key of ``FORMATS``.
    """
    place = compute.device.type
    has_bf16 = place == "cpu" or (place == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
    if begun in ("fp32", compute.precision) or (has_bf16 if begun == "bf16" else place != "cpu"):
        return replace(compute, dtype=FORMATS[begun])
    way_out = " trainer.precision=bf16 keeps the format, which is emulated here and slow." if begun == "bf16" else ""
    LOG.warning(
        "The run was begun with precision %s, which this device (%s) does not have: it goes on with %s, and its result "
        "is not that of one precision. Resume it on a device that has %s.%s",
        begun, compute.device, compute.precision, begun, way_out,
    )  # fmt: skip
    return compute


def planned_compute(precision: Precision) -> Compute:
    """What ``trainer.precision`` is on a GPU that this machine may lack; nothing is computed on its device, meta."""
    return Compute(torch.device("meta"), FORMATS["bf16" if precision == "auto" else precision])


def recorded_compute(device: str, precision: Precision) -> Compute:
    """Resolves ``device`` for a trained run: its ``trainer.precision``, unless that is fp16 and there is no GPU."""
    usual = choose_compute(device, "auto", section="")
    if precision == "auto" or (precision == "fp16" and usual.device.type == "cpu"):
        return usual
    return choose_compute(device, precision, section="")
