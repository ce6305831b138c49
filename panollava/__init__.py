"""PanoLLaVA: an open experiment platform for panoramic (360°) vision-language models."""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

__all__ = ["PanoLlava"]

if TYPE_CHECKING:
    from panollava.model.api import PanoLlava
else:

    def __getattr__(name: str) -> object:
        """Opens the facade when it is first asked for: torch and transformers stay out of `import panollava`."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from panollava.model.api import PanoLlava

        return PanoLlava


class _WithTransformers(MetaPathFinder):
    """Makes the Auto classes know PanoLlava as soon as somebody imports transformers, at no cost until then."""

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module as everybody else finds it, but for what happens once it is there."""
        if fullname != "transformers":
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)  # somebody may only be asking whether it is installed
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            sys.meta_path.remove(self)
            # Our own model room imports transformers too, and is then not ready to be registered: the facade, its
            # front door, does so by itself.
            if "panollava.model" not in sys.modules:
                _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    import panollava.model.registration  # noqa: F401


if "transformers" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WithTransformers())
