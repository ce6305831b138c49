"""An adapter's files as they lie on disk, looked at before peft sees any of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor

from panollava.untrusted import check_weights, read_document, read_safetensors

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS, BELONGS = "adapter_config.json", "adapter_model.safetensors", "belongs_to.json"

_SET_ASIDE = ("auto_mapping", "corda_config", "lora_ga_config", "eva_config", "loftq_config")
"""Names of classes to import and of further files, of pickles, to begin from: all that counts is in the weights."""
_REFUSED = {
    "megatron_config": "makes peft import code by name, which is not done here",
    "layer_replication": "makes a model of other layers, which is not done here",
}


def read_adapter(path: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Settings and weights of the adapter in a folder; nothing that they name is opened.

    Raises:
        FileNotFoundError: the folder holds no adapter in safetensors.
        ValueError: the settings are no LoRA's, the weights are none, or they are not those of the settings.
    """
    lacking = [file for file in (CONFIG, WEIGHTS) if not (path / file).is_file()]
    if lacking:
        raise FileNotFoundError(
            f"{path} holds no LoRA adapter: {' and '.join(lacking)} not found. Pickled adapters (adapter_model.bin) "
            "are never opened; load one with peft where you trust it and save it with safe_serialization=True."
        )
    config = _read_config(path / CONFIG)
    tensors = read_safetensors((path / WEIGHTS).resolve())  # the hub's cache keeps links
    check_weights(tensors, path / WEIGHTS)
    _check_ranks(config, tensors, path)
    return config, tensors


def warn_of_base(config: LoraConfig, base: str, path: Path) -> None:
    """Says so where an adapter was trained on a model of another name; that one is neither looked for nor opened.

    Args:
        config: of the adapter.
        base: name or folder of the model that it is attached to; empty where that is not known.
        path: the adapter's folder.
    """
    trained_on = str(config.base_model_name_or_path or "")
    if base and trained_on and _last(base) != _last(trained_on):
        logger.warning(
            "The LoRA adapter in %s was trained on %s and is attached to %s: its answers are right only if the two "
            "are the same model.",
            path, trained_on, base,
        )  # fmt: skip


def warn_of_sight(path: Path, digest: str) -> None:
    """Says so where an adapter was trained behind other weights that see than those of the model it is attached to.

    Args:
        path: the adapter's folder; without ``BELONGS``, as plain peft leaves it, nothing is known.
        digest: of the model's own weights between encoder and language model.
    """
    if (path / BELONGS).is_file() and read_document((path / BELONGS).resolve()).get("sight") not in (None, digest):
        logger.warning(
            "The LoRA adapter in %s was trained with another resampler and projector than this model has: its answers "
            "are right only with those of its own run.",
            path,
        )


def _last(name: str) -> str:
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()


def _read_config(path: Path) -> LoraConfig:
    document = read_document(path.resolve())
    if document.get("peft_type") != "LORA":
        raise ValueError(
            f"{path} is of {document.get('peft_type')!r}, not of LORA, which is the only kind that is read."
        )
    for key, reason in _REFUSED.items():
        if document.get(key):
            raise ValueError(f"{path}: {key} {reason}. Merge the adapter with peft where you trust it.")
    known = {*LoraConfig.__dataclass_fields__} - {*_SET_ASIDE}
    kept = {key: value for key, value in document.items() if key in known}
    try:
        return LoraConfig(**{**kept, "task_type": "CAUSAL_LM"})
    except Exception as error:  # peft takes what it is given, and stumbles anywhere
        raise ValueError(f"{path} is not a LoRA's settings ({type(error).__name__}: {error}).") from error


def _check_ranks(config: LoraConfig, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Whether the settings ask for no other ranks than the weights have; peft would make room for any number.

    Raises:
        ValueError: they do.
    """
    held = {int(tensor.shape[0]) for name, tensor in tensors.items() if ".lora_A." in name and tensor.ndim == 2}
    pattern: dict[str, Any] = config.rank_pattern or {}
    asked = [config.r, *pattern.values()] if isinstance(pattern, dict) else [config.r]
    is_right = all(type(rank) is int and 0 < rank <= max(held, default=0) for rank in asked)
    if not is_right or (not pattern and held != {config.r}):
        shown = ", ".join(map(str, sorted(held))) or "none"
        raise ValueError(
            f"The LoRA adapter in {path} does not fit together: {CONFIG} asks for rank "
            f"{', '.join(str(rank)[:40] for rank in asked[:5])}, {WEIGHTS} has {shown}. The two are of different "
            "adapters, or damaged."
        )
