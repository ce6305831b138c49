"""The one way in which features are made to be kept: a panorama a call, in the encoder's own type, no autocast."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import timm
import torch
import transformers
from torch import Tensor

from panollava.model.vision import VisionTower

_NOT_PART = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")
"""Keys of a configuration that say nothing of what the encoder computes; the type of its weights is told by them."""


class Encoding:
    """Encodes one panorama at a time, so that its bits depend on nothing but its views and ``signature``.

    Args:
        tower: the encoder; frozen, on the device where it shall run.
    """

    def __init__(self, tower: VisionTower) -> None:
        self.tower = tower

    def __call__(self, views: Tensor) -> Tensor:
        """``(V, 3, h, w)`` uint8 views of a panorama -> ``(V, N, Dv)`` features on the encoder's device."""
        device = self.tower.mean.device
        self.tower.eval()
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self.tower(views.to(device, non_blocking=True))

    def signature(self) -> dict[str, Any]:
        """All that features depend on beside the views; plain values."""
        tower = self.tower
        config = {key: value for key, value in tower.config.to_dict().items() if key not in _NOT_PART}
        return {
            "weights": _digest_of_weights(tower),
            "config": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
            "normalisation": [list(values) for values in tower.normalisation],
            "feature_layer": tower.feature_layer,
            "type": str(tower.dtype).removeprefix("torch."),
            "attention": tower.config._attn_implementation,
            "matmul": torch.get_float32_matmul_precision(),
            "device": device_kind(tower.mean.device),
            "libraries": {module.__name__: module.__version__ for module in (timm, torch, transformers)},
        }


def _digest_of_weights(tower: VisionTower) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def device_kind(device: torch.device) -> str:
    """What chooses the kernels: the model of a GPU; the instructions of a CPU, and among how many threads it shares."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return device.type
