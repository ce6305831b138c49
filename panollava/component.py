"""Finds a component's class by its config name, ours or ``package.module:Class`` of another package.

A new component of ours is one module; there is no list to keep. A class of another package is imported only if that
package is allowed: a downloaded checkpoint must not choose what code runs here.
"""

import importlib
import importlib.util
import inspect
import logging
import os
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from importlib.metadata import packages_distributions, version
from typing import Any

_LOG = logging.getLogger("panollava")

_KEYS = {"crop.strategies": "crop", "losses.objective": "stage.vision.loss"}  # sections not named like the module
_ALLOWED = "PANOLLAVA_ALLOW"  # environment variable that child processes inherit: allowed packages, between commas
_RECORDED: set[tuple[str, str]] = set()  # packages of opened checkpoints, as `outside_packages` gives them
OUTSIDE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")  # how a config names a class of another package
CLOSE = 0.8  # similarity from which one name is taken for a misspelling of another


def find_component(family: str, type: str, suffix: str, protocol: type | None = None) -> type:
    """The class ``Camel(type) + suffix`` of a family, or the class of another package that ``type`` names.

    Args:
        family: module path below ``panollava``, such as ``model.resampler`` (a package with one module for each
            component) or ``crop.strategies`` (one module with several).
        type: the name used in configs, such as ``bimamba``, or ``my_package.module:Class`` (see ``outside_class``).
        suffix: of the classes, such as ``Resampler``.

    Raises:
        ValueError: no such component; the message lists those there are.
    """
    key = family.removesuffix(".strategies")
    if ":" in str(type):
        return outside_class(type, f"{_KEYS.get(family, key)}.type", protocol)
    module = importlib.import_module(f"panollava.{family}")
    if not hasattr(module, "__path__"):
        is_there = type in component_names(family, suffix)
    elif is_there := str(type).isidentifier() and importlib.util.find_spec(f"panollava.{family}.{type}") is not None:
        module = importlib.import_module(f"panollava.{family}.{type}")  # no other one, which may import much more
    if is_there and inspect.isclass(found := getattr(module, camel(type) + suffix, None)):
        return found
    available = component_names(family, suffix)
    close = closest(str(type), available)
    hint = f" Did you mean {close!r}?" if close else ""
    hint = " A class of another package is written my_package.module:Class." if "." in str(type) else hint
    raise ValueError(f"{key}: there is no {type!r}.{hint} Available: {', '.join(available)}.")


def component_names(family: str, suffix: str) -> list[str]:
    """Names that ``find_component`` accepts for a family, sorted."""
    module = importlib.import_module(f"panollava.{family}")
    if hasattr(module, "__path__"):  # the components share further modules of the package
        names = [info.name for info in pkgutil.iter_modules(module.__path__)]
        parts = {name: importlib.import_module(f"panollava.{family}.{name}") for name in sorted(names)}
        return [name for name, part in parts.items() if hasattr(part, camel(name) + suffix)]
    return sorted(
        snake(name.removesuffix(suffix))
        for name, value in vars(module).items()
        if name.endswith(suffix) and name != suffix and getattr(value, "__module__", None) == module.__name__
    )


def camel(name: str) -> str:
    """``c_abstractor`` -> ``CAbstractor``."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def snake(name: str) -> str:
    """``CAbstractor`` -> ``c_abstractor``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def outside_class(type: str, key: str, protocol: type | None = None) -> type:
    """The class ``my_package.module:Class`` that a config names in ``key``, such as ``model.resampler.type``.

    ``protocol`` is what the class must offer, such as ``Resampler``; None checks nothing.

    Raises:
        ValueError: the text has another form, the package is not allowed (see ``allow``) or not installed, it has no
            such class, or the class lacks methods of the protocol.
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
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        wanted = next((was for name, was in sorted(_RECORDED) if name == package), package)
        raise ValueError(f"{key}={type}: the package {package} is not installed here. Run pip install {wanted}.")
    try:
        module = importlib.import_module(path)
    except (Exception, SystemExit) as error:  # the package's code may raise anything
        raise ValueError(f"{key}={type}: importing {path} failed ({error.__class__.__name__}: {error}).") from error
    found = getattr(module, name, None)
    if not inspect.isclass(found):
        classes = ", ".join(sorted(each for each, value in vars(module).items() if inspect.isclass(value)))
        raise ValueError(f"{key}={type}: {path} has no class {name}. Its classes: {classes or 'none'}.")
    try:
        inspect.signature(found)
    except ValueError as error:  # some built-in classes
        raise ValueError(f"{key}={type}: its arguments are not known ({error}).") from error
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
    """Allows configs to name classes of these top-level packages, given as names or lists of names.

    This also applies to processes that this one starts. Anything but a name raises a ValueError.
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
    """Full key and value of each ``type``, ``measure`` or entry of ``metrics`` that names another package's class."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from outside_types(value, f"{key}.{name}" if key else str(name))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from outside_types(value, key)
    elif key.rpartition(".")[2] in ("type", "metrics", "measure") and OUTSIDE.fullmatch(str(config)):
        yield key, str(config)


def outside_packages(config: Mapping[str, Any]) -> dict[str, str]:
    """The packages whose classes a config names, with their versions: ``{"my_package": "my-package==1.0"}``.

    The version is ``unknown`` for a package of no distribution, such as a folder on the path.
    """
    return _installed({value.partition(":")[0].partition(".")[0] for _, value in outside_types(config)})


def check_packages(recorded: Mapping[str, str]) -> None:
    """Warns, once, of packages whose version here is not the one that ``outside_packages`` recorded; imports none."""
    new = {name: was for name, was in recorded.items() if was != "unknown" and (name, was) not in _RECORDED}
    _RECORDED.update(new.items())
    for name, now in _installed(new).items():
        if now != new[name] and importlib.util.find_spec(name) is not None:
            _LOG.warning("The package %s was %s in training and is %s here.", name, new[name], now)


def label(type: str) -> str:
    """A component's type as part of a file name: the class alone if it is of another package."""
    return type.rpartition(":")[2]


def _installed(names: Iterable[str]) -> dict[str, str]:
    wanted = sorted(names)
    found = packages_distributions() if wanted else {}
    return {name: f"{found[name][0]}=={version(found[name][0])}" if name in found else "unknown" for name in wanted}


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one most probably stands for, or None; compares each part of a dotted key."""
    found = {other: _similarity(name, other) for other in known}
    best = max(found, key=lambda other: found[other], default="")
    return best if found.get(best, 0.0) >= CLOSE else None


def _similarity(one: str, other: str) -> float:
    """Similarity, 0 to 1. Counts (``num_``) and units (``_deg``) may be left out; other numbers are no misspelling."""
    parts = one.split("."), other.split(".")
    if len(parts[0]) != len(parts[1]) or re.findall(r"\d+", one) != re.findall(r"\d+", other):
        return 0.0
    found = []
    for pair in zip(*parts, strict=True):
        short = [re.sub(r"^(num|n)_|_(deg|s|seconds|mb|gib)$", "", part.lower()) for part in pair]
        swapped = CLOSE * (sorted(pair[0]) == sorted(pair[1]))
        found.append(max(swapped, *(SequenceMatcher(None, *each).ratio() for each in (pair, short))))
    return min(found)
