"""Finds a component's class by its config name, ours or ``package.module:Class`` of another package.

A new component of ours is one module, with no list to keep. A class of another package is imported only once that
package is allowed: a checkpoint from elsewhere must not choose what code runs here.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import os
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from importlib.metadata import packages_distributions, version
from typing import Any

_LOG = logging.getLogger("panollava")

_KEYS = {"crop.strategies": "crop", "losses.objective": "stage.vision.loss"}
"""Config keys of families whose key is not their own name."""

CLOSE = 0.8
"""Similarity from which one name is taken for a misspelling of another."""

_ALLOWED = "PANOLLAVA_ALLOW"
"""Environment variable with the allowed packages, between commas: processes that this one starts have it too."""

OUTSIDE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""How a config names a class of another package."""

_RECORDED: set[tuple[str, str]] = set()
"""Packages of the checkpoints that were opened, with their versions in training (see ``outside_packages``)."""


def camel(name: str) -> str:
    """``c_abstractor`` -> ``CAbstractor``."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def find_component(family: str, type: str, suffix: str, protocol: type | None = None) -> type:
    """The class ``Camel(type) + suffix`` of a family, or the class of another package that ``type`` names.

    Args:
        family: module path below ``panollava``, such as ``model.resampler`` (a package with one module for each
            component) or ``crop.strategies`` (one module with several).
        type: the name used in configs, such as ``bimamba``, or ``my_package.module:Class``.
        suffix: of the family's class names, such as ``Resampler``.
        protocol: what a class of another package must offer (see ``outside_class``).

    Raises:
        ValueError: no such component; the message lists those there are. See also ``outside_class``.
    """
    key = family.removesuffix(".strategies").replace("/", ".")
    if ":" in str(type):
        return outside_class(type, f"{_KEYS.get(family, key)}.type", protocol)
    available = component_names(family, suffix)
    if type not in available:
        close = meant(str(type), available)
        hint = f" Did you mean {close!r}?" if close else ""
        raise ValueError(f"{key}: there is no {type!r}.{hint} Available: {', '.join(available)}.")
    module = importlib.import_module(f"panollava.{family}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"panollava.{family}.{type}")
    return getattr(module, camel(type) + suffix)


def component_names(family: str, suffix: str) -> list[str]:
    """Names that ``find_component`` accepts for a family, sorted."""
    module = importlib.import_module(f"panollava.{family}")
    if hasattr(module, "__path__"):  # the package also holds modules that its components share
        names = [info.name for info in pkgutil.iter_modules(module.__path__)]
        parts = {name: importlib.import_module(f"panollava.{family}.{name}") for name in names}
        return sorted(name for name, part in parts.items() if hasattr(part, camel(name) + suffix))
    return sorted(
        _snake(name.removesuffix(suffix))
        for name, value in vars(module).items()
        if name.endswith(suffix) and name != suffix and getattr(value, "__module__", None) == module.__name__
    )


def outside_class(type: str, key: str, protocol: type | None = None) -> type:
    """The class ``my_package.module:Class`` of another package.

    Args:
        type: as the config has it.
        key: full key that has it, for messages, such as ``model.resampler.type``.
        protocol: what the class must offer, such as ``Resampler``; None checks nothing.

    Raises:
        ValueError: it is no such text, the package is not allowed (see ``allow``) or not installed, it has no such
            class, or the class lacks methods of the protocol.
    """
    if not OUTSIDE.fullmatch(type):
        raise ValueError(f"{key}={type!r}: a class of another package is written my_package.module:Class.")
    path, _, name = type.partition(":")
    package = path.partition(".")[0]
    if package not in allowed_packages():
        raise ValueError(
            f"{key}={type} is code of the package {package}, which opening a model imports only where that is allowed. "
            f"If you trust the package, add allow={package} (in Python: allow={package!r})."
        )
    if importlib.util.find_spec(package) is None:
        wanted = next((was for name, was in sorted(_RECORDED) if name == package), package)
        raise ValueError(f"{key}={type}: the package {package} is not installed here. Run pip install {wanted}.")
    try:
        module = importlib.import_module(path)
    except Exception as error:  # whatever the package's own code raises
        raise ValueError(f"{key}={type}: importing {path} failed ({error.__class__.__name__}: {error}).") from error
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        classes = ", ".join(sorted(each for each, value in vars(module).items() if inspect.isclass(value)))
        raise ValueError(f"{key}={type}: {path} has no class {name}. Its classes: {classes or 'none'}.")
    if protocol is not None and (missing := lacking(found, protocol)):
        raise ValueError(
            f"{key}={type} is no {protocol.__name__}: it has no {', '.join(missing)}. See {protocol.__module__}."
            f"{protocol.__name__}."
        )
    return found


def lacking(found: Any, protocol: type) -> list[str]:
    """Members of a protocol that a class or an object does not have; attributes are looked for in objects only."""
    members = {name for name, value in vars(protocol).items() if callable(value) or isinstance(value, property)}
    names = {name for name in members if not name.startswith("_") or name in ("__call__", "__len__")}
    if not inspect.isclass(found):
        names |= inspect.get_annotations(protocol).keys()
    return sorted(name for name in names if name not in dir(found))


def allow(*packages: str | Iterable[str]) -> None:
    """Lets configs name classes of these packages, in this process and in those that it starts.

    Args:
        packages: names as in an import statement, or lists of such names.

    Raises:
        ValueError: one is no name of a top-level package.
    """
    names = [name for given in packages for name in ([given] if isinstance(given, str) else given)]
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"allow={name!r}: give the name of a package, such as my_package, or a list of names.")
    if names:
        os.environ[_ALLOWED] = ",".join(sorted({*allowed_packages(), *names}))


def allowed_packages() -> set[str]:
    """Packages whose classes may be imported."""
    return {name for name in os.environ.get(_ALLOWED, "").split(",") if name}


def outside_types(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Full key and value of everything in a config that names a class of another package.

    These are keys ``type``, and entries of a list ``metrics``.
    """
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from outside_types(value, f"{key}.{name}" if key else str(name))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from outside_types(value, key)
    elif key.rpartition(".")[2] in ("type", "metrics") and OUTSIDE.fullmatch(str(config)):
        yield key, str(config)


def outside_packages(config: Mapping[str, Any]) -> dict[str, str]:
    """The packages whose classes a config names, with what was installed: ``{"my_package": "my-package==1.0"}``.

    ``unknown`` stands where the package is of no distribution, such as a folder on the path.
    """
    return _installed({value.partition(":")[0].partition(".")[0] for _, value in outside_types(config)})


def check_packages(recorded: Mapping[str, str]) -> None:
    """Warns, once, of packages that are of another version here than a checkpoint recorded; imports none of them.

    Args:
        recorded: as ``outside_packages`` gave it; what is not installed is left to ``outside_class``.
    """
    new = {name: was for name, was in recorded.items() if was != "unknown" and (name, was) not in _RECORDED}
    _RECORDED.update(new.items())
    for name, now in _installed(new).items():
        if now != new[name] and importlib.util.find_spec(name) is not None:
            _LOG.warning("The package %s was %s in training and is %s here.", name, new[name], now)


def label(type: str) -> str:
    """A component's type as part of a file name: of another package's the class alone."""
    return type.rpartition(":")[2]


def _installed(names: Iterable[str]) -> dict[str, str]:
    wanted = sorted(names)
    found = packages_distributions() if wanted else {}
    return {name: f"{found[name][0]}=={version(found[name][0])}" if name in found else "unknown" for name in wanted}


def meant(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one most probably stands for; None where none is similar enough.

    Args:
        name: as typed; of a dotted key every part is compared.
        known: existing names.
    """
    found = {other: _similarity(name, other) for other in known}
    best = max(found, key=lambda other: found[other], default="")
    return best if found.get(best, 0.0) >= CLOSE else None


def _similarity(one: str, other: str) -> float:
    """From 0 to 1. Counts (``num_``) and units (``_deg``) may be left out; names with other numbers are not similar."""
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
