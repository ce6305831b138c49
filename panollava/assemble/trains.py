"""What of the backbones trains: whether the keys that say so, which lie in several sections, go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LANGUAGE = "stage.finetune.language_trainable_blocks"


def check_what_trains(values: Mapping[str, Any]) -> list[str]:
    """Problems of ``stage``, ``model.lora`` and ``model.language`` with each other."""
    lora, blocks = values["model"]["lora"], (values["stage"].get("finetune") or {}).get("language_trainable_blocks", 0)
    has_lora, saves_only = lora.get("enabled"), lora.get("save_only")
    problems = []
    if has_lora and blocks == "all":
        problems.append(
            f"{LANGUAGE}=all trains every weight of the language model, beside which an adapter has nothing to add: "
            "use lora=none with it, or a number of blocks."
        )
    if saves_only and not has_lora:
        problems.append("model.lora.save_only=true saves an adapter, and model.lora.enabled=false has none: leave it.")
    if saves_only and blocks != 0:
        problems.append(
            f"model.lora.save_only=true saves no weights of the language model, and {LANGUAGE}={blocks} trains some, "
            "which would be lost. Set the one to false or the other to 0."
        )
    if values["model"]["language"].get("load_in_4bit") and blocks != 0:
        problems.append(
            f"model.language.load_in_4bit=true holds the language model in four bits, which cannot train: "
            f"{LANGUAGE}={blocks} needs load_in_4bit=false. An adapter can train on it (lora=lora)."
        )
    return problems


def check_flags(section: dict[str, Any], key: str, *names: str) -> list[str]:
    """Problems of keys that are true or false."""
    return [
        f"{key}.{name}={section.get(name)!r}: allowed is true or false."
        for name in names
        if not isinstance(section.get(name), bool)
    ]
