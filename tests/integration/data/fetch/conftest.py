"""A server of pictures and a folder for what is fetched from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.picture_server import MakeFetcher, PictureServer, serving

from panollava.data.fetch import Fetcher, FetchOptions


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with serving() as server:
        yield server


@pytest.fixture
def fetcher(tmp_path: Path) -> MakeFetcher:
    """A fetcher that may ask loopback and hardly waits; keywords are those of `FetchOptions`."""

    def make(**options: Any) -> Fetcher:
        values = {"hosts": ["127.0.0.1"], "folder": str(tmp_path / "kept"), "timeout_s": 5.0, **options}
        return Fetcher(FetchOptions(**values), pause_s=0.01)

    return make
