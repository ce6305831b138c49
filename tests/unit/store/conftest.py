"""A store of small features in a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.toy_data import SHAPE

from panollava.logs import LOG
from panollava.store.catalogue import StoreOptions, open_store
from panollava.store.features import FeatureStore


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., FeatureStore]:
    """``opened(**options)``: the store of one encoder, in a process of its own as far as a store can tell."""

    def open_one(encoder: str = "an encoder", **options: object) -> FeatureStore:
        settings = StoreOptions(**{"dir": str(tmp_path / "cache"), **options})  # type: ignore[arg-type]
        return open_store(settings, "tiny", {"encoder": encoder}, shape=SHAPE, dtype=torch.bfloat16)

    return open_one


@pytest.fixture(autouse=True)
def _propagate(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is logged reaches ``caplog``, whichever test configured the console before."""
    monkeypatch.setattr(LOG, "propagate", True)
