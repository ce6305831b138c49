"""Reads files that may not be what they say: from another machine, cut short, or made to harm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

MAX_DOCUMENT_BYTES = 16 << 20
"""Far more than any of our JSON files has; more is refused before it is read."""

WEIGHT_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a link out of its folder, too large, or not a JSON object.
    """
    _check_own(path)
    size = path.stat().st_size
    if size > MAX_DOCUMENT_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; a file of its kind has a few thousand, so it is not read.")
    try:
        document = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({str(error)[:200]}).") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} is not a JSON object but a {type(document).__name__}.")
    return document


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU; nothing is ever unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a link out of its folder, or not safetensors (a pickle renamed, cut short, empty).
    """
    _check_own(path)
    try:
        return load_file(path)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({str(error)[:200]}). It may be cut short or of another "
            "format; only safetensors are read. Choose another checkpoint of the run, or train it again."
        ) from error


def check_weights(tensors: Mapping[str, Tensor], source: Path) -> None:
    """Whether tensors can be weights.

    Raises:
        ValueError: one is no floating-point tensor, or holds NaN or infinity.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in WEIGHT_TYPES:
            raise ValueError(f"{source}: {name} is of {tensor.dtype}, which no weight is. The file is not ours.")
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{source}: {name} holds NaN or infinite numbers, so the model would answer nothing. Choose another "
                "checkpoint of the run, or train it again with a lower learning rate."
            )


def _check_own(path: Path) -> None:
    if path.is_symlink() and path.resolve().parent != path.parent.resolve():
        raise ValueError(
            f"{path} is a link to {path.resolve()}, outside its folder, and is not followed. Put the file itself there."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, or is no file.")
