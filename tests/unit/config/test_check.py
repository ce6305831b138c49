"""The strict check names the key, the value and what is allowed."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from annotated_types import Interval

from panollava.config.check import check_section


class Component:
    def __init__(
        self,
        *,
        width: Annotated[int, Interval(ge=1)],
        overlap: Annotated[float, Interval(ge=0.0, le=0.9)] = 0.5,
        mode: Literal["a", "b"] = "a",
        rows: tuple[float, ...] = (0.0,),
        name: str | None = None,
    ) -> None:
        """Takes what the tests give it."""


def test_what_fits_passes() -> None:
    assert (
        check_section({"width": 4, "overlap": 0, "mode": "b", "rows": [0, 1.5], "name": None}, Component, "crop") == []
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"width": 4, "overlap": 1.2}, ["crop.overlap=1.2", "0.9"]),
        ({"width": "4"}, ['crop.width="4"', "integer"]),
        ({"width": True}, ["crop.width=true", "integer"]),
        ({"width": 4, "mode": "c"}, ['crop.mode="c"', "'a' or 'b'"]),
        ({"width": 4, "rows": [0.0, "x"]}, ["crop.rows.1", "number"]),
        ({"width": 4, "overlp": 0.1}, ["crop.overlp", "Did you mean 'overlap'", "width"]),
        ({}, ["crop.width is missing"]),
    ],
)
def test_what_does_not_is_one_sentence(values: dict, expected: list[str]) -> None:
    [problem] = check_section(values, Component, "crop")
    for part in expected:
        assert part in problem


class Positional:
    def __init__(self, width: int, /) -> None:
        """Cannot be built with keywords."""


def test_arguments_by_position_alone_are_refused() -> None:
    [problem] = check_section({}, Positional, "crop", given=("width",))
    assert problem == "crop: Positional takes width by position alone; arguments are given by name."


def test_all_problems_come_together() -> None:
    assert len(check_section({"width": 0, "overlap": 2.0, "x": 1}, Component, "crop")) == 3


def test_what_the_program_gives_is_not_the_configs() -> None:
    assert check_section({}, Component, "crop", given=("width",)) == []
    [problem] = check_section({"width": 3}, Component, "crop", given=("width",))
    assert "crop.width is not a key here" in problem
