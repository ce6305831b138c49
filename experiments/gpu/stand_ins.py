"""Stands in for what a machine without network may lack and this check does not use.

``annotated-types`` states the ranges of options, which only configs are checked against. ``simplejpeg`` decodes files,
and there are none here. transformers below 5.20, which the package does not support otherwise, has an earlier form of
the default configurations of a composite's parts.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def install() -> None:
    """Puts stand-ins in place; call it before anything of the package is imported."""
    if find_spec("annotated_types") is None:
        ranges: Any = ModuleType("annotated_types")
        for name in ("Ge", "Gt", "Interval", "Le", "Len", "Lt", "MinLen"):
            setattr(ranges, name, _Range)
        sys.modules["annotated_types"] = ranges
    if find_spec("simplejpeg") is None:
        decoder: Any = ModuleType("simplejpeg")
        decoder.__version__ = "not installed"
        sys.modules["simplejpeg"] = decoder
    _for_older_transformers()


class _Range:
    """Takes the bounds of a range, and checks nothing."""

    def __init__(self, *_bounds: object, **_named: object) -> None: ...


def _for_older_transformers() -> None:
    from transformers import AutoConfig, configuration_utils

    if hasattr(configuration_utils, "SubConfigSpec"):
        return
    configuration_utils.SubConfigSpec = lambda *_, **__: None  # type: ignore[attr-defined]
    from panollava.model.vlm import PanoLlavaConfig

    PanoLlavaConfig.sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}
