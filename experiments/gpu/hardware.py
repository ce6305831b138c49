"""The GPU, its driver and peak, and the versions of the libraries."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

LIBRARIES = ("transformers", "timm", "peft", "accelerate", "triton", "flash-attn", "mamba-ssm")

PEAKS = {r"\bA100\b": 312, r"\bH100 PCIe\b": 756, r"\bH(100|200)\b": 989, r"\bL4\b": 121, r"\bRTX 4090$": 165}
"""TFLOP/s of bf16 tensor cores without sparsity, by the GPU's name; the first that is found.

Source: NVIDIA's data sheets of A100, H100, H200 and L4, which state twice as much with sparsity from the H100 on; and
the Ada architecture's white paper, appendix A, for the RTX 4090 (with fp32 accumulation).
"""


def peak_tflops(name: str) -> float | None:
    """Peak of a GPU by the name that CUDA gives; None for one that is not listed."""
    return next((float(peak) for pattern, peak in PEAKS.items() if re.search(pattern, name)), None)


def device_peak(device: torch.device) -> float | None:
    """Peak of a device in TFLOP/s; None for a CPU."""
    return peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def described(device: str) -> dict[str, str]:
    """What the table begins with: ``cuda`` is the first GPU."""
    found = {"GPU": "none, on a CPU"}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        peak = peak_tflops(properties.name)
        found["GPU"] = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
        found["peak"] = "not listed" if peak is None else f"{peak:g} TFLOP/s in bf16, dense"
        found["driver"] = _driver()
    found |= {"python": platform.python_version(), "torch": torch.__version__, "CUDA": torch.version.cuda or "none"}
    return found | {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return (done.stdout.splitlines() or ["unknown"])[0].strip()
