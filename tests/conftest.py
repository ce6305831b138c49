"""What every test shares: marks by place, small backbones, and a machine that does not wait for its disk."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from io import TextIOBase
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from sqlalchemy import Engine, event
from support.composing import composed_once
from support.hub_folders import write

from panollava.config.entrypoint import GARBAGE
from panollava.tracking import store
from panollava.tracking.location import artifact_root, database_file

INTEGRATION = Path(__file__).parent / "integration"
STARTERS = {"command", "in_child", "run_ranks", "run_train", "start_child", "subprocess", "succeed"}
"""Names of what starts a whole run or a process. A test of ``tests/unit`` that uses one is marked as well."""


def pytest_configure() -> None:
    """Workers of ``pytest -n`` share the cores, and so do the processes that they start; garbage as in a command."""
    gc.set_threshold(*GARBAGE)
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what belongs to the integration tests.

    A set of cases is refused: its order differs between processes, and ``pytest -n`` then runs nothing at all.
    """
    for mark in item.iter_markers("parametrize"):
        if len(mark.args) > 1 and isinstance(mark.args[1], (set, frozenset)):
            raise pytest.UsageError(f"{item.nodeid}: the cases are a set, which has no order. Give a tuple")
    definitions = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
    functions = [item.function, *(each[-1].func for each in definitions)]  # type: ignore[attr-defined]
    if item.path.is_relative_to(INTEGRATION) or any(_starts(function) for function in functions):
        item.add_marker("integration")


def _starts(function: object) -> bool:
    """Whether a function, or one of its module that it calls, uses a name of ``STARTERS``."""
    waiting, seen = [function], set()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, FunctionType) or one in seen or (seen and one.__module__ != function.__module__):
            continue
        seen.add(one)
        used = _names(one.__code__)
        if used & STARTERS:
            return True
        waiting += [one.__globals__.get(name) for name in used]
    return False


def _names(code: CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names, inner))


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a family by name, such as ``siglip`` or ``qwen2`` (see ``tests/support/hub_folders.py``)."""
    root = tmp_path_factory.mktemp("backbones")
    return lambda name: write(name, root)


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """Files are not flushed to the disk, which only a power cut would show. What a flush may raise, it still raises."""

    def connected(connection: object, _record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("pragma synchronous = off")

    event.listen(Engine, "connect", connected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)
        yield
    event.remove(Engine, "connect", connected)


@pytest.fixture(scope="session", autouse=True)
def _copied_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A missing MLflow store is a copy of one empty store: MLflow takes seconds to make its tables."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    template, check, open_client = shared / "empty_store" / "mlflow.db", store.check_database, store.open_client

    def checked(uri: str) -> None:
        check(uri)
        file = database_file(uri)
        if file is None or file.exists() or file == template:
            return
        with FileLock(shared / "empty_store.lock"):
            if not template.exists():
                template.parent.mkdir()
                open_client(f"sqlite:///{template}")
        shutil.copyfile(template, file)
        with sqlite3.connect(file) as database:
            database.execute("update experiments set artifact_location = ?", (f"{artifact_root(file)}/0",))
        database.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "check_database", checked)
        yield


@pytest.fixture(scope="session", autouse=True)
def _parsed_once() -> Iterator[None]:
    """Files of ``conf/`` are parsed once. Hydra parses two dozen of them for each config, a third of its time."""
    load, parse = OmegaConf.load, lru_cache(maxsize=512)(partial(yaml.load, Loader=get_yaml_loader()))

    def loaded(source: Any) -> Any:
        if isinstance(source, TextIOBase):
            with contextlib.suppress(yaml.YAMLError):
                found = parse(source.read())
                if isinstance(found, dict):
                    return OmegaConf.create(found)
            source.seek(0)
        return load(source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", staticmethod(loaded))
        yield


@pytest.fixture(scope="session", autouse=True)
def _composed_once() -> Iterator[None]:
    """See ``tests/support/composing.py``."""
    with composed_once():
        yield
