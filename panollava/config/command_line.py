"""A command line as Hydra reads it: its flags, its overrides, and the configs that they compose."""

from __future__ import annotations

import os
from argparse import ArgumentError, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from panollava.config.locate import CONF

VERSION_BASE = "1.3"

_COMMANDS = ("run", "cfg", "multirun", "shell_completion", "info")
"""Flags of which Hydra takes one."""


def split(arguments: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Flags and overrides of a command line, wherever the flags stand.

    Raises:
        ValueError: a flag that Hydra does not have, or some that exclude each other.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        flags, unknown = parser.parse_known_intermixed_args(list(arguments))
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    if unknown:
        wrong = next((word for word in unknown if word.startswith("-")), unknown[0])
        raise ValueError(f"{wrong} is no option of this command. Options are Hydra's; --hydra-help lists them.")
    given = [f"--{name.replace('_', '-')}" for name in _COMMANDS if getattr(flags, name) not in (None, False)]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: give one of them.")
    if flags.resolve and not (flags.cfg or flags.help):
        raise ValueError("--resolve goes with --cfg or --help.")
    if flags.config_path is not None and "://" not in flags.config_path:
        flags.config_path = os.path.abspath(flags.config_path)  # Hydra would take it from this package's folder
    return flags, list(flags.overrides or [])


def words(flags: Namespace) -> list[str]:
    """Flags as words of a command line."""
    found = []
    for name, value in vars(flags).items():
        if name != "overrides" and value not in (None, False):
            found += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
    return found


def message(error: HydraException) -> str:
    """What Hydra would say."""
    return "\n".join(filter(None, (str(error), str(error.__cause__ or ""))))


@dataclass
class CommandLine:
    """A command line that runs something or shows a config, and what Hydra composes of it. Nothing is run.

    Args:
        config_name: root config of the application.
        flags, overrides: from ``split``, the overrides in canonical form.

    Raises:
        HydraException: an override is not of Hydra's grammar.
    """

    config_name: str
    flags: Namespace
    overrides: Sequence[str]

    def __post_init__(self) -> None:
        version.setbase(VERSION_BASE)
        search = create_config_search_path(self.flags.config_path or CONF)
        if self.flags.config_dir:
            path = f"file://{os.path.abspath(self.flags.config_dir)}"
            search.prepend(provider="command-line", path=path, anchor=SearchPathQuery(provider="schema"))
        self._loader = ConfigLoaderImpl(config_search_path=search)
        self.parsed = self.parse(self.overrides)

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Overrides as Hydra's parser takes them apart."""
        return OverridesParser.create(config_loader=self._loader).parse_overrides(list(overrides))

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The config of some overrides, Hydra's own section included; what is swept is left out."""
        name = self.flags.config_name or self.config_name
        return self._loader.load_configuration(name, list(overrides), run_mode=RunMode.MULTIRUN)

    def is_group(self, override: Override) -> bool:
        """Whether an override chooses an option of a group."""
        return self._loader.repository.group_exists(override.key_or_group)

    def options(self, group: str) -> list[str]:
        """The options of a group."""
        return list(self._loader.get_group_options(group))

    @cached_property
    def choices(self) -> list[str]:
        """Overrides that choose one option, and Hydra's own."""
        chosen = [o for o in self.parsed if not o.is_sweep_override() and (self.is_group(o) or o.is_hydra_override())]
        return [str(o.input_line) for o in chosen]

    @cached_property
    def base(self) -> DictConfig:
        """The config of ``choices``."""
        return self.compose(self.choices)

    @cached_property
    def swept(self) -> list[Override]:
        """What an overlay varies by itself, and the overrides after it: the last one of a key counts."""
        params = self.base.hydra.sweeper.get("params") or {}
        return [*self.parse([f"{key}={value}" for key, value in params.items()]), *self.parsed]

    @property
    def is_sweep(self) -> bool:
        """Whether Hydra would run several jobs."""
        return bool(self.flags.multirun) or self.base.hydra.mode == RunMode.MULTIRUN

    @cached_property
    def variants(self) -> dict[str, DictConfig]:
        """The config of each option that is swept, by ``group=option``, of the others the first; else ``base``."""
        if not self.is_sweep:
            return {"": self.base}
        found: dict[str, list[str]] = {}
        for override in self.swept:
            if override.is_discrete_sweep() and self.is_group(override):
                found[override.get_key_element()] = list(override.sweep_string_iterator())
        first = {key: f"{key}={options[0]}" for key, options in found.items() if options}
        result = {}
        for key, options in found.items():
            for option in dict.fromkeys(options):
                label = f"{key}={option}"
                result[label] = self.compose([*self.choices, *{**first, key: label}.values()])
        return result or {"": self.base}


def known_keys(config: DictConfig, prefix: str = "") -> set[str]:
    """Every key of a config, sections included, but Hydra's."""
    found: set[str] = set()
    for key in config.keys() - {"hydra"}:
        name = f"{prefix}{key!s}"
        found.add(name)
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_missing() and not node._is_none():
            found |= known_keys(node, f"{name}.")
    return found
