"""Finds a component's class by its config name: a new one is one module, with no list to keep."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches


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
        close = get_close_matches(str(type), available, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        key = room.removesuffix(".strategies").replace("/", ".")
        raise ValueError(f"{key}: there is no {type!r}.{hint} Available: {', '.join(available)}.")
    module = importlib.import_module(f"panollava.{room}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"panollava.{room}.{type}")
    return getattr(module, camel(type) + suffix)


def component_names(room: str, suffix: str) -> list[str]:
    """Names that ``find_component`` accepts for a room, sorted."""
    module = importlib.import_module(f"panollava.{room}")
    if hasattr(module, "__path__"):
        return sorted(info.name for info in pkgutil.iter_modules(module.__path__))
    return sorted(
        _snake(name.removesuffix(suffix))
        for name, value in vars(module).items()
        if name.endswith(suffix) and name != suffix and getattr(value, "__module__", None) == module.__name__
    )


def _snake(name: str) -> str:
    return "".join("_" + char.lower() if char.isupper() else char for char in name).lstrip("_")
