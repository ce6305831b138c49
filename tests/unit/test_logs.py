"""Numbers as log lines tell them."""

from __future__ import annotations

import pytest

from panollava.logs import in_words


@pytest.mark.parametrize(
    ("count", "base", "words"),
    [
        (0, 1024, "0 bytes"),
        (1023, 1024, "1023 bytes"),
        (1024, 1024, "1 KiB"),
        (5.3e6, 1000, "5.3 MB"),
        (999, 1000, "999 bytes"),
        (1000, 1000, "1 kB"),
        (50 * 2**30, 1024, "50 GiB"),
        (2**60, 1024, "1048576 TiB"),
    ],
)
def test_bytes_in_words(count: float, base: int, words: str) -> None:
    assert in_words(count, base) == words
