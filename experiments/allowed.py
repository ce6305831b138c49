"""Writes what each key of ``conf/`` may be, for ``--help``: python -m experiments.allowed

The checks of the configs are run on every option of every group and on every command. The signature with which a check
compares a section says what is allowed there, so there is no other list. ``make tables`` runs this as well.
"""

from __future__ import annotations

import importlib
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from unittest.mock import patch

from annotated_types import Len, MinLen
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel

from panollava.config import check
from panollava.config.command_line import CONF, VERSION_BASE
from panollava.config.help import ALLOWED
from panollava.config.sweep_arguments import register_resolvers
from panollava.run.config_check import checked
from panollava.run.sources import SPLITS, source_arguments

FORMS = {int: "whole number", float: "number", Path: "text", type(None): "null"}
ALIASES = {"model.vision.name": "name_or_path"}
"""Keys that the program gives to a function under another name."""


class _Compared:
    """Takes the place of ``check.differences``, and keeps what a config is compared with."""

    def __init__(self, *, refuses: bool) -> None:
        self.sections: list[tuple[str, type[BaseModel]]] = []
        self._refuses = refuses

    def __call__(self, values: Mapping[str, Any], schema: type[BaseModel], key: str) -> list[str]:
        self.sections.append((key, schema))
        return ["the command ends after its check"] if self._refuses else []


def document() -> dict[str, Any]:
    """Command -> key -> what is allowed, and section -> type -> key -> what is allowed."""
    register_resolvers()
    commands: dict[str, dict[str, str]] = {}
    sections: dict[str, dict[str, dict[str, str]]] = {}
    with initialize_config_dir(CONF, version_base=VERSION_BASE):
        for choice in _choices():
            config = compose("train", choice)
            with patch.object(check, "differences", compared := _Compared(refuses=False)):
                checked(config)
            commands["train"] = _add(sections, config, compared)
        for path in sorted(Path(CONF).glob("*.yaml")):
            if path.stem != "train":
                config = _whole(path.stem)
                command = importlib.import_module(f"panollava.{path.stem}").main.__wrapped__
                with patch.object(check, "differences", compared := _Compared(refuses=True)), suppress(ValueError):
                    command(config)
                commands[path.stem] = _add(sections, config, compared)
    return {"commands": dict(sorted(commands.items())), "sections": dict(sorted(sections.items()))}


def _choices() -> Iterator[list[str]]:
    """Overrides of a training that choose each option of each group once."""
    of_training = [str(next(iter(one))) for one in OmegaConf.load(Path(CONF) / "train.yaml").defaults[:-2]]
    folders = [*of_training, *(f"model/{path.name}" for path in (Path(CONF) / "model").iterdir() if path.is_dir())]
    for group in sorted(folders):
        for path in sorted((Path(CONF) / group).glob("*.yaml")):
            yield [f"{group}={path.stem}"]


def _whole(command: str) -> DictConfig:
    """A command's config with something for each key that has no default."""
    config = compose(command)
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "x")
    return config


def _add(sections: dict[str, dict[str, dict[str, str]]], config: DictConfig, compared: _Compared) -> dict[str, str]:
    """Adds what was compared to the sections; returns the plain keys."""
    values: Any = OmegaConf.to_container(config, resolve=True)
    plain: dict[str, str] = {}
    for key, schema in compared.sections:
        section = values
        for part in filter(None, key.split(".")):
            section = section[part]
        kind = str(section.get("type", "")) if key else ""
        found = sections.setdefault(key, {}).setdefault(kind, {}) if key else plain
        for name in section:
            field = schema.model_fields.get(_argument(f"{key}.{name}".lstrip("."), name))
            if field is not None:
                text = allowed(field.annotation, field.metadata)
                if found.setdefault(name, text) != text:
                    raise ValueError(f"{key}.{name} is checked twice: {found[name]} and {text}. Let the two agree.")
    return plain


def _argument(key: str, name: str) -> str:
    """The argument that a key is: ``train_scenes`` is ``scenes`` of a data source."""
    split = name.partition("_")[0]
    if key == f"data.{name}" and split in SPLITS:
        return next(iter(source_arguments({name: None}, split)))
    return ALIASES.get(key, name)


def allowed(hint: Any, limits: Sequence[Any] = ()) -> str:
    """What a type and its limits allow, in words; KeyError for a type that no key has yet."""
    names = list(dict.fromkeys(_alternatives(hint, limits)))
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _alternatives(hint: Any, limits: Sequence[Any]) -> list[str]:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _alternatives(parts[0], [*parts[1:], *limits])
    if origin in (Union, types.UnionType):
        ordered = sorted(parts, key=lambda part: part is type(None))  # null last
        return [name for part in ordered for name in _alternatives(part, limits)]
    if origin is Literal:
        return [str(part).lower() if isinstance(part, bool) else str(part) for part in parts]
    least = next((limit.min_length for limit in limits if isinstance(limit, MinLen | Len)), 0)
    if origin is tuple and parts[-1] is not ...:
        return [f"list of {len(parts)}: {'; '.join(map(allowed, parts))}"]
    if origin in (list, tuple, Sequence):
        return [f"list: {allowed(parts[0])}{f', at least {least}' if least else ''}"]
    if hint is bool:
        return ["true", "false"]
    if hint is str:
        return ["text, not empty" if least else "text"]
    return [(hint in (int, float) and _range(hint, limits)) or FORMS[hint]]


def _range(hint: type, limits: Sequence[Any]) -> str:
    """The range of a number in words; empty where there is none."""
    names = ("ge", "gt", "le", "lt")
    found = [(name, getattr(limit, name, None)) for limit in limits for name in names]
    # A limit of 0.0 is shown as 0: `typing` gives equal hints for both, whichever of them was made first.
    bounds = {name: int(value) if value == int(value) else value for name, value in found if value is not None}
    if hint is int and "lt" in bounds:
        bounds["le"] = bounds.pop("lt") - 1
    if bounds.keys() == {"ge", "le"}:
        return f"{bounds['ge']} to {bounds['le']}"
    words = {"ge": "{} or more", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
    return ", ".join(text.format(bounds[name]) for name, text in words.items() if name in bounds)


def text() -> str:
    """The file as it should be."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    ALLOWED.write_text(text(), encoding="utf-8")
