"""What ``${for_size:…}``, ``${slug:…}`` and ``${options:…}`` in the config files mean."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from panollava.config.locate import CONF
from panollava.config.sweep_arguments import slug


def register_resolvers() -> None:
    """Makes them known to OmegaConf; safe to call again."""
    OmegaConf.register_new_resolver("for_size", _for_size, replace=True)
    OmegaConf.register_new_resolver("slug", slug, replace=True)
    OmegaConf.register_new_resolver("options", _options, replace=True)


def _for_size(values: DictConfig, *, _root_: DictConfig) -> object:
    size = _root_.model.size
    if size not in values:
        raise ValueError(f"model.size={size!r} has no default here; known: {', '.join(map(str, values))}.")
    return values[size]


def _options(group: str) -> str:
    """The options of a config group, for help texts of commands that know few of the groups."""
    return ", ".join(sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml")))
