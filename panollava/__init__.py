"""PanoLLaVA: an open experiment platform for panoramic (360°) vision-language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["PanoLlava"]

if TYPE_CHECKING:
    from panollava.model.facade import PanoLlava
else:

    def __getattr__(name: str) -> object:
        """Opens the facade when it is first asked for: torch and transformers stay out of `import panollava`."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from panollava.model.facade import PanoLlava

        return PanoLlava
