"""Finds a component's class by its config name: a new one is one module, with no list to keep."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable
from difflib import SequenceMatcher

CLOSE = 0.8
"""Likeness from which one name is taken for a slip of another."""


def camel(name: str) -> str:
    """``c_abstractor`` -> ``CAbstractor``."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def find_component(room: str, type: str, suffix: str) -> type:
    """The class ``Camel(type) + suffix`` of a room.

    Args:
        room: module path below ``panollava``, such as ``model.resampler`` (a package with one module a
            component) or ``crop.strategies`` (one module with several).
        type: the name used in configs, such as ``bimamba``.
        suffix: what the room's classes end in, such as ``Resampler``.

    Raises:
        ValueError: no such component; the message lists those there are.
    """
    available = component_names(room, suffix)
    if type not in available:
        close = meant(str(type), available)
        hint = f" Did you mean {close!r}?" if close else ""
        key = room.removesuffix(".strategies").replace("/", ".")
        raise ValueError(f"{key}: there is no {type!r}.{hint} Available: {', '.join(available)}.")
    module = importlib.import_module(f"panollava.{room}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"panollava.{room}.{type}")
    return getattr(module, camel(type) + suffix)


def component_names(room: str, suffix: str) -> list[str]:
    """Names that ``find_component`` accepts for a room, sorted."""
    module = importlib.import_module(f"panollava.{room}")
    if hasattr(module, "__path__"):  # beside the components lie the modules that they share
        names = [info.name for info in pkgutil.iter_modules(module.__path__)]
        parts = {name: importlib.import_module(f"panollava.{room}.{name}") for name in names}
        return sorted(name for name, part in parts.items() if hasattr(part, camel(name) + suffix))
    return sorted(
        _snake(name.removesuffix(suffix))
        for name, value in vars(module).items()
        if name.endswith(suffix) and name != suffix and getattr(value, "__module__", None) == module.__name__
    )


def meant(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one most probably stands for; None where it may just as well be another idea.

    Args:
        name: as typed; of a dotted key every part is compared.
        known: what there is.
    """
    found = {other: _likeness(name, other) for other in known}
    best = max(found, key=lambda other: found[other], default="")
    return best if found.get(best, 0.0) >= CLOSE else None


def _likeness(one: str, other: str) -> float:
    """From 0 to 1. Counts (``num_``) and units (``_deg``) may be left out; another number is never a slip."""
    parts = one.split("."), other.split(".")
    if len(parts[0]) != len(parts[1]) or re.findall(r"\d+", one) != re.findall(r"\d+", other):
        return 0.0
    found = []
    for pair in zip(*parts, strict=True):
        short = [re.sub(r"^(num|n)_|_(deg|s|seconds|mb|gib)$", "", part.lower()) for part in pair]
        swapped = CLOSE * (sorted(pair[0]) == sorted(pair[1]))
        found.append(max(swapped, *(SequenceMatcher(None, *each).ratio() for each in (pair, short))))
    return min(found)


def _snake(name: str) -> str:
    return "".join("_" + char.lower() if char.isupper() else char for char in name).lstrip("_")
