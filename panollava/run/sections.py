"""The strict check of config sections that commands without a model have too: a component's, and the crop's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from panollava.component import find_component
from panollava.config.check import check_component, check_section
from panollava.crop.crop import COMMON_KEYS, Crop
from panollava.crop.partial import check_covered
from panollava.crop.render import check_device
from panollava.crop.strategies import CropStrategy
from panollava.generation import KEY, GenerationOptions

LARGEST_VIEW = 4096
"""Largest side of a view in pixels: no encoder takes more, and a slip of the keyboard would fill the memory."""


def strategy_class(type: str) -> type[CropStrategy]:
    """The class of ``crop=<type>``."""
    return find_component("crop.strategies", type, "Crop", CropStrategy)


def check_crop(section: Mapping[str, Any]) -> list[str]:
    """Problems of a ``crop`` section."""
    crop = dict(section)
    view_size = crop.pop("view_size", None)
    problems = []
    is_number = isinstance(view_size, int) and not isinstance(view_size, bool)
    if view_size is not None and not (is_number and 1 <= view_size <= LARGEST_VIEW):
        problems.append(f"crop.view_size={view_size!r}: allowed are 1 to {LARGEST_VIEW} pixels, or null.")
    common = {key: crop.pop(key) for key in COMMON_KEYS if key in crop}
    return [*problems, *_common(common), *_strategy(crop)]


def check_generation(section: Mapping[str, Any], *, recorded: bool = False) -> list[str]:
    """Problems of a ``generation`` section.

    Args:
        section: its keys.
        recorded: a null stands for what the run has recorded, with which the others are checked together later.
    """
    given = {key: value for key, value in section.items() if not (recorded and value is None)}
    problems = check_section(given, GenerationOptions, KEY)
    if problems or recorded:
        return problems
    try:
        GenerationOptions(**given)
    except ValueError as error:
        return [str(error)]
    return []


def _common(values: dict[str, Any]) -> list[str]:
    """Problems of the keys that every crop has; what is out of range in words that say what would follow."""
    problems = check_section(values, Crop, "crop", given=("strategy", "view_size"))
    covered = values.get("panorama_fov_deg")
    if isinstance(covered, list) and len(covered) == 2 and all(type(each) in (int, float) for each in covered):
        problems = [line for line in problems if not line.startswith("crop.panorama_fov_deg")]
        problems += _refused(check_covered, (covered[0], covered[1]))
    if not problems:
        problems += _refused(check_device, values.get("device", "cpu"), values.get("renderer", "cv2"))
    return problems


def _refused(check: Callable[..., None], *values: Any) -> list[str]:
    try:
        check(*values)
    except ValueError as error:
        return [str(error)]
    return []


def _strategy(crop: dict[str, Any]) -> list[str]:
    """Problems of a strategy's keys; a value that it refuses itself in its own words, which say what would follow."""
    problems = check_component(crop, "crop", strategy_class)
    options = {key: value for key, value in crop.items() if key != "type"}
    try:
        strategy_class(str(crop.get("type")))(**options)
    except (TypeError, ValueError) as error:
        key = str(error).partition("=")[0]
        if not problems or key.startswith("crop."):  # else a wrong key or type, which is told already
            return [*(line for line in problems if not line.startswith((f"{key}=", f"{key}."))), str(error)]
    return problems
