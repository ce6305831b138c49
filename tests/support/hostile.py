"""Files made to harm, and what finds out whether they could."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

UNPICKLED: list[str] = []
TRACING = [False]


def _trace(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "pickle.find_class" and TRACING[0]:
        UNPICKLED.append(".".join(map(str, arguments)))


sys.addaudithook(_trace)


class Bomb:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded").absolute(),))


def bomb() -> bytes:
    """A pickle, as torch would write it."""
    buffer = io.BytesIO()
    torch.save({"weight": Bomb()}, buffer)
    return buffer.getvalue()


def with_pickle_in_its_index(folder: Path) -> None:
    """Shards, of which the index says that they are pickles."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "weights.bin").write_bytes(bomb())
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "weights.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def with_pickled_adapter(folder: Path) -> None:
    """An adapter beside the model, which transformers would load."""
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))
    (folder / "adapter_model.bin").write_bytes(bomb())


def with_pickle_for_weights(folder: Path) -> None:
    """A pickle by the name of safetensors."""
    (folder / "model.safetensors").write_bytes(bomb())
