"""Which layers of a language model an adapter may sit on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def check_targets(language_model: Any, target_modules: Sequence[str]) -> None:
    """Whether each target is the last name of a linear layer, and of one whose adapter can be merged.

    Args:
        language_model: of transformers, with adapters on it or without.
        target_modules: names of layers, or the last parts of their names.

    Raises:
        ValueError: one is not, or there is none at all; the message lists those there are.
    """
    linear = {
        name.removesuffix(".base_layer"): module  # as it is called where another adapter is attached
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    }
    output, embedding = language_model.get_output_embeddings(), language_model.get_input_embeddings()
    available = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear if linear[name] is not output}))
    if not target_modules:
        raise ValueError(
            f"lora.target_modules=[] puts adapters nowhere. Available: {available}, or all-linear; lora=none trains "
            "without an adapter."
        )
    meant = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in target_modules}
    if unknown := [target for target, names in meant.items() if not names]:
        raise ValueError(
            f"lora.target_modules: {', '.join(map(repr, unknown))} not found among the linear layers of the language "
            f"model. Available: {available}, or all-linear."
        )
    tied = [target for target, names in meant.items() if any(linear[name].weight is embedding.weight for name in names)]
    if tied:
        raise ValueError(
            f"lora.target_modules: {tied[0]!r} shares its weights with the embeddings of this language model, so that "
            f"merging its adapter would change what the model reads. Leave it out. Available: {available}, or "
            "all-linear."
        )
