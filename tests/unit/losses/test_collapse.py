"""When features count as dead, and what is said of it."""

from __future__ import annotations

import pytest

from panollava.losses.diagnostics import collapse_message

HEALTHY = {"collapsed": 0.0, "dead_share": 0.1, "effective_rank": 20.0, "variance": 0.6}


def test_healthy_numbers_are_no_concern() -> None:
    assert collapse_message(HEALTHY, width=64) is None
    assert collapse_message({"loss": 0.0}, width=64) is None


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"collapsed": 1.0, "dead_share": 0.75}, ["75 % of the 64 dimensions", "20.0 directions", "no"]),
        ({"collapsed": 1.0, "effective_rank": 1.3}, ["10 % of the 64", "1.3 directions"]),
        ({"variance": 0.99}, ["variance term is 0.990 of at most 1"]),
    ],
)
def test_what_was_measured_is_named_with_what_it_means(found: dict[str, float], said: list[str]) -> None:
    text = collapse_message({**HEALTHY, **found}, width=64)
    assert text is not None
    assert text.startswith("features have collapsed")
    assert "neither a low loss nor a high neighbour_cosine is evidence" in text
    assert all(part in text for part in said)
    assert ("variance" in text) == ("variance" in found)
