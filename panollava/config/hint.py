"""Finds misspelt keys on the command line before Hydra does, to say which key was meant."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from panollava.config.locate import CONF


def misspelt_key(config_name: str, arguments: Sequence[str]) -> str | None:
    """A sentence about the first argument whose key the composed config does not have, or None.

    Args:
        config_name: root config.
        arguments: canonical command line; flags and sweeps are left to Hydra.
    """
    plain = [a for a in arguments if "=" in a and not a.startswith(("-", "hydra.", "hydra/"))]
    if len(plain) != len(arguments):
        return None
    keys = {a: a.partition("=")[0] for a in plain}
    groups = [a for a in plain if _is_group(keys[a].lstrip("+~"))]
    values = [a for a in plain if a not in groups and not a.startswith(("+", "~"))]
    for argument in groups:
        if argument.partition("=")[2] == "null":
            options = sorted(path.stem for path in (Path(CONF) / keys[argument]).glob("*.yaml"))
            return f"{argument}: a group always has an option. Choose one of {', '.join(options)}."
    try:
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose(config_name, overrides=groups)
    except (HydraException, ValueError):
        return None  # a group or option that does not exist: Hydra lists those there are
    known = _keys(cfg)
    for argument in values:
        if keys[argument] not in known:
            close = get_close_matches(keys[argument], known, n=1)
            section = keys[argument].rpartition(".")[0]
            siblings = sorted(k for k in known if k.rpartition(".")[0] == section) or sorted(cfg)
            hint = f" Did you mean {close[0]}?" if close else ""
            return f"{keys[argument]} is not a key of this config.{hint} There are: {', '.join(map(str, siblings))}."
    return None


def _is_group(key: str) -> bool:
    return (Path(CONF) / key.partition("@")[0]).is_dir()


def _keys(cfg: DictConfig, prefix: str = "") -> set[str]:
    """Every key of a config, sections included."""
    found: set[str] = set()
    for key in cfg:
        name = f"{prefix}{key!s}"
        found.add(name)
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not OmegaConf.is_missing(cfg, key) and not node._is_none():
            found |= _keys(node, f"{name}.")
    return found
