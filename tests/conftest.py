"""Backbones that every room's tests may use: true hub folders, small and random, written once a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import write


def pytest_configure() -> None:
    """Workers of ``pytest -n`` share the cores, and so do the processes that they start."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Refuse a set of cases: its order differs between processes, and ``pytest -n`` then runs nothing at all."""
    for mark in item.iter_markers("parametrize"):
        if len(mark.args) > 1 and isinstance(mark.args[1], (set, frozenset)):
            raise pytest.UsageError(f"{item.nodeid}: the cases are a set, which has no order. Give a tuple")


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a family by name, such as ``siglip`` or ``qwen2`` (see ``tests/families.py``)."""
    root = tmp_path_factory.mktemp("backbones")
    return lambda name: write(name, root)
