"""Options of config groups for classes of other packages, such as ``resampler=my_package.module:Class``."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore

from panollava.component import OUTSIDE, allow, outside_class

DATA_GIVEN = ("split", "dir", "reader", "check", "name")
"""Arguments of a data source that are no keys of ``data``, or keys that every data set has."""

_WIDTHS = ("input_width", "output_width")
GROUPS: dict[str, tuple[str, Sequence[str], dict[str, Any]]] = {
    "crop": ("crop", (), {"view_size": None, "renderer": "cv2", "device": "cpu", "panorama_fov_deg": None}),
    "data": ("data", DATA_GIVEN, {}),
    "model/position": ("model.position", ("width",), {}),
    "model/projector": ("model.projector", _WIDTHS, {}),
    "model/resampler": ("model.resampler", _WIDTHS, {}),
    "objective": ("stage.vision.loss", (), {"head_width": None}),
}
"""Group -> path of its keys in the config, arguments that the program gives, keys that all options have."""


def add_options(overrides: Sequence[str], *, trusted: bool) -> None:
    """Adds an option to its group for every class of another package that a command line chooses.

    Args:
        overrides: in canonical form.
        trusted: whether choosing a class allows its package, as in training; else ``allow=`` does.

    Raises:
        ValueError: a class cannot be had, see ``outside_class``.
    """
    pairs = [override.lstrip("+").partition("=")[::2] for override in overrides]
    for key, value in pairs:
        if key == "allow":
            allow(re.findall(r"[^\s,\[\]'\"]+", value))
    for group, value in pairs:
        if group in GROUPS:
            for name in (match[0] for match in OUTSIDE.finditer(value)):
                if trusted:
                    allow(re.split(r"[.:]", name)[0])
                _add(group, name)


def _add(group: str, name: str) -> None:
    place, given, common = GROUPS[group]
    component = outside_class(name, f"{place}.type")
    keys: dict[str, Any] = {"type": name, **common}
    if group == "data":
        keys = {"defaults": ["augment/default@_here_", "_self_"], "shared_prefix": False, **keys}
        keys["name"] = name.rpartition(":")[2]
    for key, parameter in inspect.signature(component).parameters.items():
        if key == "type":
            raise ValueError(f"{place}.type={name}: no argument of the class can be named type, as the key is taken.")
        if key == "dir":
            keys[key] = None
        elif key in given or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue  # the check of the section reports the latter
        elif parameter.default is not parameter.empty:
            keys[key] = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        elif group == "data":
            keys |= {f"{split}_{key}": "???" for split in ("train", "val", "test")}
        else:
            keys[key] = "???"
    try:
        ConfigStore.instance().store(name, keys, group, place if group == "objective" else None, "panollava")
    except ValueError as error:
        raise ValueError(f"{place}.type={name}: a default of the class cannot be in a config: {error}") from error
