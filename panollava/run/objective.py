"""The check of ``stage.vision.loss``, the section that names stage 1's objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from panollava.component import closest, component_names
from panollava.config.check import check_component, check_section
from panollava.stages.vision import (
    AUTO,
    KEY,
    OBJECTIVES,
    WITH_GRID,
    OverlapStage,
    not_its_key,
    objective_class,
    objective_keys,
)


def check_objective(section: Mapping[str, Any]) -> list[str]:
    """Problems of ``stage.vision.loss``: an objective has its own keys, null standing for its own default."""
    kind = section.get("type")
    if ":" in str(kind):
        own = {key: value for key, value in section.items() if key not in ("type", "head_width")}
        return _head(section) + check_component({"type": kind, **own}, KEY, objective_class)
    allowed = [AUTO, *component_names(OBJECTIVES, "Objective")]
    if kind not in allowed:
        close = closest(str(kind), allowed)
        hint = f" Did you mean {close}?" if close else ""
        return [f"{KEY}.type={kind}: there is no such objective.{hint} Available: {', '.join(allowed)}."]
    name = WITH_GRID if kind == AUTO else str(kind)
    problems = _head(section)
    known = {key for name in allowed[1:] for key in objective_keys(name)}
    rest = {key: value for key, value in section.items() if key not in ("type", "head_width")}
    strange = {key: value for key, value in rest.items() if key in known - objective_keys(name) and value is not None}
    problems += [not_its_key(key, value, name, str(kind)) for key, value in strange.items()]
    own = {key: value for key, value in rest.items() if key not in known or (value is not None and key not in strange)}
    return problems + check_section(own, objective_class(name), KEY)


def _head(section: Mapping[str, Any]) -> list[str]:
    """Problems of the key that the stage itself takes."""
    head = {key: value for key, value in section.items() if key == "head_width"}
    return check_section(head, OverlapStage, KEY, given=("vision", "setup", "objective", "settings", "pairing"))
