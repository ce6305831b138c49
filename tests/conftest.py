"""Backbones that every room's tests may use: true hub folders, small and random, written once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from families import write


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a family by name, such as ``siglip`` or ``qwen2`` (see ``tests/families.py``)."""
    root = tmp_path_factory.mktemp("backbones")
    return lambda name: write(name, root)
