"""Stands in for what a machine without network may lack and this check does not use.

``annotated-types`` states the ranges of options, which only configs are checked against. ``simplejpeg`` decodes files,
and there are none here. transformers below 5.20, which the package does not support otherwise, has an earlier form of
the default configurations of a composite's parts and another name for recomputing activations; both are set here.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def install() -> list[str]:
    """Puts stand-ins in place, and returns what they stand for; call it before anything of the package is imported."""
    found = []
    if find_spec("annotated_types") is None:
        module: Any = ModuleType("annotated_types")
        for name in ("Ge", "Gt", "Interval", "Le", "Len", "Lt"):
            setattr(module, name, _Range)
        sys.modules["annotated_types"] = module
        found.append("annotated-types")
    if find_spec("simplejpeg") is None:
        module = ModuleType("simplejpeg")
        module.__version__ = "not installed"
        sys.modules["simplejpeg"] = module
        found.append("simplejpeg")
    if _older_transformers():
        found.append("names of transformers 5.20")
    return found


class _Range:
    """Takes the bounds of a range, and checks nothing."""

    def __init__(self, *_bounds: object, **_named: object) -> None: ...


def _older_transformers() -> bool:
    from transformers import AutoConfig, PreTrainedModel, configuration_utils

    if hasattr(configuration_utils, "SubConfigSpec"):
        return False
    configuration_utils.SubConfigSpec = lambda *_, **__: None  # type: ignore[attr-defined]
    if not hasattr(PreTrainedModel, "activation_checkpointing_enable"):
        PreTrainedModel.activation_checkpointing_enable = _checkpoint  # type: ignore[attr-defined]
    from panollava.model.vlm import PanoLlavaConfig

    PanoLlavaConfig.sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}
    return True


def _checkpoint(model: Any, activation_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=activation_checkpointing_kwargs)
