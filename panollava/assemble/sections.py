"""The strict check of config sections that commands without a model have too: a component's, and the crop's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from panollava.component import find_component
from panollava.config.check import check_section
from panollava.crop.crop import Crop

LARGEST_VIEW = 4096
"""Largest side of a view in pixels: no encoder takes more, and a slip of the keyboard would fill the memory."""


def check_crop(section: Mapping[str, Any]) -> list[str]:
    """Problems of a ``crop`` section."""
    crop = dict(section)
    view_size = crop.pop("view_size", None)
    problems = []
    is_number = isinstance(view_size, int) and not isinstance(view_size, bool)
    if view_size is not None and not (is_number and 1 <= view_size <= LARGEST_VIEW):
        problems.append(f"crop.view_size={view_size!r}: allowed are 1 to {LARGEST_VIEW} pixels, or null.")
    renderer = {key: crop.pop(key) for key in ("renderer",) if key in crop}
    problems += check_section(renderer, Crop, "crop", given=("strategy", "view_size", "device"))
    return problems + _strategy(crop)


def check_component(
    section: Mapping[str, Any], key: str, room: str, suffix: str, given: Iterable[str] = ()
) -> list[str]:
    """Problems of a section whose ``type`` names a component.

    Args:
        section: ``type`` and the component's keywords.
        key: full key of the section, such as ``model.resampler``.
        room: where the component is looked for, like the suffix (see ``find_component``).
        suffix: of the component's class.
        given: arguments that the program supplies and the config must not.
    """
    options = dict(section)
    try:
        component = find_component(room, str(options.pop("type", None)), suffix)
    except ValueError as error:
        return [str(error)]
    return check_section(options, component, key, given=given)


def _strategy(crop: dict[str, Any]) -> list[str]:
    """Problems of a strategy's keys; a value that it refuses itself in its own words, which say what would follow."""
    problems = check_component(crop, "crop", "crop.strategies", "Crop")
    options = {key: value for key, value in crop.items() if key != "type"}
    try:
        find_component("crop.strategies", str(crop.get("type")), "Crop")(**options)
    except (TypeError, ValueError) as error:
        key = str(error).partition("=")[0]
        if not problems or key.startswith("crop."):  # else a wrong key or type, which is told already
            return [*(line for line in problems if not line.startswith((f"{key}=", f"{key}."))), str(error)]
    return problems
