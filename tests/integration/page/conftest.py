"""One browser for all tests of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from support.browser import Tab, opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with opened() as found:
        yield found


@pytest.fixture
def tab(browser: Browser) -> Iterator[Callable[..., Tab]]:
    """Opens tabs, ``tab(url, locale="ko-KR")``, and closes them after the test."""
    tabs: list[Tab] = []

    def make(url: str, **settings: Any) -> Tab:
        tabs.append(Tab(browser, url, **settings))
        return tabs[-1]

    yield make
    for one in tabs:
        one.context.close()
