"""Composes each choice of options of ``conf/`` once.

Hydra composes the config of a command three times, each in a quarter of a second, and most of that does not depend on
the values that a command line sets: the defaults list, and the config of its files.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import Overrides
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ResultDefault
from omegaconf import DictConfig

from panollava.config.command_line import CONF
from support.hostile import TRACING

SOURCES = {("pkg", "hydra.conf"), ("file", CONF), ("structured", "")}
"""Where configs come from that no test changes. With any other one, as of ``--config-dir``, nothing is kept."""


@contextmanager
def composed_once() -> Iterator[None]:
    """Hydra keeps defaults lists and the configs that they name; everybody gets a copy."""
    lists: dict[Any, bytes] = {}
    configs: dict[Any, bytes] = {}
    list_defaults = defaults_list._create_defaults_list
    compose = ConfigLoaderImpl._compose_config_from_defaults_list

    def listed(repo: IConfigRepository, config_name: str | None, overrides: Overrides, **options: bool) -> Any:
        if not _is_known(repo):
            return list_defaults(repo, config_name, overrides, **options)
        appended = [vars(default) for default in overrides.append_group_defaults]
        key = (config_name, repr(appended), repr(_choices(overrides)), *options.items())
        if key not in lists:
            found = list_defaults(repo, config_name, overrides, **options)
            lists[key] = pickle.dumps((found, _choices(overrides)))
        found, choices = pickle.loads(lists[key])
        vars(overrides).update(choices)
        return found

    def composed(loader: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        if not _is_known(repo):
            return compose(loader, defaults, repo)
        key = repr(defaults)
        if key not in configs:
            configs[key] = pickle.dumps(compose(loader, defaults, repo))
        return pickle.loads(configs[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults_list, "_create_defaults_list", listed)
        patch.setattr(ConfigStore, "__deepcopy__", lambda store, _memo: store, raising=False)  # there is one
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", composed)
        yield


def _is_known(repo: IConfigRepository) -> bool:
    if TRACING[0]:  # copies are made by pickle, which such a test watches for
        return False
    return {(source.scheme(), source.path) for source in repo.get_sources()} == SOURCES


def _choices(overrides: Overrides) -> dict[str, Any]:
    """What overrides say of groups, and what making the list adds to that; the values that they set are left out."""
    return {name: value for name, value in vars(overrides).items() if name != "config_overrides"}
