"""Where views are cut: whether this machine has the device, and whether the renderer and its workers can use it."""

from __future__ import annotations

import torch


def check_device(device: str, renderer: str) -> None:
    """Check ``crop.device``.

    Raises:
        ValueError: the renderer knows the CPU alone, or this machine has no such device.
    """
    if device == "cpu":
        return
    if renderer != "torch":
        raise ValueError(f"crop.device={device} needs crop.renderer=torch: {renderer} runs on the CPU only.")
    kind, place = _parts(device)
    if kind not in ("cuda", "mps") or not place.isdecimal():
        raise ValueError(f"crop.device={device}: allowed are cpu, cuda, cuda:<number> and mps.")
    if not _is_here(device):
        raise ValueError(
            f"crop.device={device} is not there: torch finds {_count(kind)} {kind} devices on this machine. Name one "
            "of them, or use crop.device=cpu."
        )


def check_workers(device: str, num_workers: int) -> None:
    """Check that views on a device are cut by the process that holds it.

    Raises:
        ValueError: loader workers would cut them.
    """
    if device != "cpu" and num_workers > 0:
        raise ValueError(
            f"crop.device={device} needs num_workers=0, not {num_workers}: a process that was forked to load pictures "
            "cannot use the device of its parent. Use crop.device=cpu to cut views in several processes."
        )


def device_here(device: str) -> str:
    """The device that a run recorded, or the CPU on a machine that has none such: the views are the same."""
    return device if device == "cpu" or _is_here(device) else "cpu"


def _parts(device: str) -> tuple[str, str]:
    kind, _, place = device.partition(":")
    return kind, place or "0"


def _is_here(device: str) -> bool:
    kind, place = _parts(device)
    return place.isdecimal() and int(place) < _count(kind)


def _count(kind: str) -> int:
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return torch.cuda.device_count() if kind == "cuda" else 0
