"""The ``crop`` section of a config: its checks."""

from collections.abc import Mapping
from typing import Any

from panollava.component import find_component
from panollava.config.check import check_component, check_section, error_lines
from panollava.crop.crop import COMMON_KEYS, Crop
from panollava.crop.partial import check_covered
from panollava.crop.render import check_device
from panollava.crop.strategies import CropStrategy

LARGEST_VIEW = 4096
"""Largest side of a view in pixels: no encoder takes more, and a typing error would fill the memory."""


def crop_problems(section: Mapping[str, Any]) -> list[str]:
    """See ``panollava.run.sections.check_crop``."""
    crop = dict(section)
    view_size = crop.pop("view_size", None)
    problems = []
    is_number = isinstance(view_size, int) and not isinstance(view_size, bool)
    if view_size is not None and not (is_number and 1 <= view_size <= LARGEST_VIEW):
        problems.append(f"crop.view_size={view_size!r}: allowed are 1 to {LARGEST_VIEW} pixels, or null.")
    common = {key: crop.pop(key) for key in COMMON_KEYS if key in crop}
    return [*problems, *_common(common), *_strategy(crop)]


def strategy_class(type: str) -> type[CropStrategy]:
    """The class of ``crop=<type>``."""
    return find_component("crop.strategies", type, "Crop", CropStrategy)


def _common(values: dict[str, Any]) -> list[str]:
    """Problems of the keys that every crop has."""
    problems = check_section(values, Crop, "crop", given=("strategy", "view_size"))
    covered = values.get("panorama_fov_deg")
    if isinstance(covered, list) and len(covered) == 2 and all(type(each) in (int, float) for each in covered):
        problems = [line for line in problems if not line.startswith("crop.panorama_fov_deg")]
        problems += error_lines(check_covered, (covered[0], covered[1]))
    if not problems:
        problems += error_lines(check_device, values.get("device", "cpu"), values.get("renderer", "cv2"))
    return problems


def _strategy(crop: dict[str, Any]) -> list[str]:
    """Problems of a strategy's keys; the strategy's own error messages replace the general ones."""
    problems = check_component(crop, "crop", strategy_class)
    options = {key: value for key, value in crop.items() if key != "type"}
    try:
        strategy_class(str(crop.get("type")))(**options)
    except (TypeError, ValueError) as error:
        key = str(error).partition("=")[0]
        if not problems or key.startswith("crop."):  # else a wrong key or type, which is reported already
            return [*(line for line in problems if not line.startswith((f"{key}=", f"{key}."))), str(error)]
    return problems
