"""Stage 1's objective: the checks of ``stage.vision.loss``, and the object it names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from panollava.component import component_names, find_component, meant
from panollava.config.check import check_section
from panollava.crop.matches import angles_between, column_matches
from panollava.crop.rings import columns_line_up, neighbour_pairs
from panollava.losses.protocol import Objective
from panollava.stages.overlap import OverlapStage

KEY = "stage.vision.loss"
AUTO = "auto"
WITH_GRID, WITHOUT_GRID = "vicreg", "vicreg_pooled"
"""What ``auto`` is, by whether the resampler's tokens keep a grid."""

_ROOM = "losses.objective"
_PROGRAMMED = ("vision_blocks", "checkpoint_activations")
"""Arguments of the stage that other keys of the config give."""


def check_objective(section: Mapping[str, Any]) -> list[str]:
    """Problems of ``stage.vision.loss``: an objective has its own keys, null standing for its own default."""
    kind = section.get("type")
    allowed = [AUTO, *component_names(_ROOM, "Objective")]
    if kind not in allowed:
        close = meant(str(kind), allowed)
        hint = f" Did you mean {close}?" if close else ""
        return [f"{KEY}.type={kind}: there is no such objective.{hint} Available: {', '.join(allowed)}."]
    name = WITH_GRID if kind == AUTO else str(kind)
    head = {key: value for key, value in section.items() if key == "head_width"}
    problems = check_section(head, OverlapStage, KEY, given=("vision", "objective", *_PROGRAMMED))
    known = {key for name in allowed[1:] for key in _keys(name)}
    rest = {key: value for key, value in section.items() if key not in ("type", "head_width")}
    strange = {key: value for key, value in rest.items() if key in known - _keys(name) and value is not None}
    problems += [_not_its_key(key, value, name, str(kind)) for key, value in strange.items()]
    own = {key: value for key, value in rest.items() if key not in known or (value is not None and key not in strange)}
    return problems + check_section(own, find_component(_ROOM, name, "Objective"), KEY)


def build_objective(
    section: Mapping[str, Any], *, has_grid: bool, resampler: str, cameras: Tensor
) -> tuple[Objective, dict[str, Any]]:
    """The objective of a checked ``stage.vision.loss``.

    ``auto`` pairs what looks the same way (``pairing=rays``) where columns of neighbours cannot.

    Args:
        section: of the config.
        has_grid: whether the resampler's tokens keep a grid.
        cameras: ``(V, C)`` of a panorama's views.
        resampler: its name, for messages.

    Returns:
        The objective, and its type and keys with the values they have.

    Raises:
        ValueError: the objective needs a grid and there is none, or has not all the keys that were given.
    """
    kind = str(section["type"])
    name = (WITH_GRID if has_grid else WITHOUT_GRID) if kind == AUTO else kind
    given = {k: v for k, v in section.items() if k not in ("type", "head_width") and v is not None}
    if kind == AUTO and has_grid and not columns_line_up(cameras[None], _neighbours(cameras)):
        given.setdefault("pairing", "rays")
    for key in given.keys() - _keys(name):
        raise ValueError(_not_its_key(key, given[key], name, kind, f" resampler={resampler} keeps no grid of tokens."))
    component = find_component(_ROOM, name, "Objective")
    objective: Objective = component(**given)
    if objective.places.needs_grid and not has_grid:
        raise ValueError(
            f"{KEY}.type={kind} compares views place by place, but resampler={resampler} keeps no grid of tokens. "
            f"Take {KEY}.type={AUTO} or {WITHOUT_GRID}, which compare views as wholes, or a resampler that keeps a "
            "grid, such as mlp or bimamba."
        )
    defaults = {key: parameter.default for key, parameter in inspect.signature(component).parameters.items()}
    return objective, {"type": name, **defaults, **given}


def pairing_note(objective: Objective, cameras: Tensor, grid: tuple[int, int] | None) -> str:
    """How far past each other paired columns look, for the log; empty for what is not paired by columns.

    Args:
        objective: of stage 1.
        cameras: ``(V, C)`` of a panorama's views.
        grid: (H', W') of the tokens.
    """
    if grid is None or getattr(objective.places, "pairing", None) != "columns":
        return ""
    mask = torch.ones(1, len(cameras), dtype=torch.bool)
    angles = torch.rad2deg(angles_between(column_matches(cameras[None], mask, grid), cameras[None], grid))
    note = (
        f"Its paired columns look {angles.mean():.1f} degrees past each other on average, {angles.max():.1f} at most."
    )
    if columns_line_up(cameras[None], _neighbours(cameras)):
        return note
    return f"{note} The tiles look up or down: {KEY}.pairing=rays pairs what looks the same way."


def _neighbours(cameras: Tensor) -> Tensor:
    return neighbour_pairs(cameras[None], torch.ones(1, len(cameras), dtype=torch.bool))


def _keys(name: str) -> set[str]:
    """Config keys of an objective."""
    return set(inspect.signature(find_component(_ROOM, name, "Objective")).parameters)


def _not_its_key(key: str, value: object, name: str, kind: str, why: str = "") -> str:
    owners = [other for other in component_names(_ROOM, "Objective") if key in _keys(other)]
    taken = f", which is {name} here" if kind == AUTO else ""
    return (
        f"{KEY}.{key}={value} is a key of {', '.join(owners)}, not of {KEY}.type={kind}{taken}.{why} Keys of {name}: "
        f"{', '.join(sorted(_keys(name)))}. Choose another type, or leave {key}=null."
    )
