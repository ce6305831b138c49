"""PanoLLaVA: an open experiment platform for panoramic (360°) vision-language models."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from panollava.model.api import PanoLlava
    from panollava.model.detector import PanoDetector
    from panollava.trainer import Trainer

__version__: str
__all__ = ["PanoDetector", "PanoLlava", "Trainer", "__version__"]

_LAZY = {
    "PanoDetector": "panollava.model.detector",
    "PanoLlava": "panollava.model.api",
    "Trainer": "panollava.trainer",
}
"""Name -> its module, imported on first use: torch and transformers stay out of ``import panollava``."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("panollava")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)


class _WithTransformers(MetaPathFinder):
    """Registers PanoLlava with the Auto classes as soon as transformers is imported, at no cost until then."""

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec that the other finders give, with a loader that registers afterwards."""
        if fullname != "transformers":
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)  # this may only be a check whether it is installed
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            sys.meta_path.remove(self)
            # A module of ours may be importing transformers; panollava.model.processor then registers by itself.
            if "panollava.model" not in sys.modules:
                _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    import panollava.model.processor  # noqa: F401


if "transformers" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WithTransformers())
