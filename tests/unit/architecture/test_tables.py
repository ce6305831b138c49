"""The tables of options in README.md, README.ko.md and conf/README.md are up to date with conf/ and the registries."""

from __future__ import annotations

import re

import pytest
from support import ROOT

from experiments import tables

PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in tables.FILES}
OPTIONS = PAGES["conf/README.md"]
IN_THE_README_ALONE = {"model", "model/vision", "model/language", "model/lora", "stage"}
"""Groups whose options are named after what they load, or have a table of stages."""


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_up_to_date(name: str) -> None:
    assert tables.updated(PAGES[name]) == PAGES[name], "Run make tables."


def test_every_group_has_its_tables() -> None:
    assert tables.table_names(PAGES["README.md"]) == tables.table_names(PAGES["README.ko.md"]) == {"group", "stage"}
    names = tables.table_names(OPTIONS)
    described = {group.rpartition("/")[2] for group in tables.groups_of_options() if group not in IN_THE_README_ALONE}
    assert {name.strip("=") for name in names if name.endswith("=")} == described | {"+experiment", "hydra/launcher"}
    assert names - {f"{name}=" for name in described | {"+experiment", "hydra/launcher"}} == {
        "python -m panollava.",
        "score",
        "trainer.",
        "generation.",
        "store.",
        "fetch.",
    }


def test_korean_cells_are_kept() -> None:
    (row,) = re.findall(r"^\| `vision` \|.*\n", PAGES["README.ko.md"], re.MULTILINE)
    changed = PAGES["README.ko.md"].replace(row, row.replace("`panollava/stages/vision.py`", "`old.py`"))
    assert changed != PAGES["README.ko.md"]
    assert tables.updated(changed) == PAGES["README.ko.md"]


def test_a_missing_row_is_added_and_one_of_nothing_removed() -> None:
    (row,) = re.findall(r"^\| `qformer` \|.*\n", OPTIONS, re.MULTILINE)
    without = OPTIONS.replace(row, "| `gone` | an option that there is not | 1 | `x` |\n")
    updated = tables.updated(without)
    assert "`gone`" not in updated
    assert "| `qformer` | Learned queries" in updated
    assert row.split("|")[-2] in updated


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("| `timeout_s` | 20.0 |", "| `timeout_s` | 30.0 |"),
        ("| `dinov2", "| `dinov3"),
        ("| `panollava/stages/vision.py` |", "| `panollava/stages/old.py` |"),
        ("`yaw_multiples` `pitch_multiples` |", "`yaw_multiples` |"),
        ("| `features` |", "| `feature` |"),
        ("| Talk about a panorama in several turns. |", "| Talks. |"),
        ("over pictures | yes |", "over pictures | no |"),
    ],
)
def test_a_wrong_cell_is_found(right: str, wrong: str) -> None:
    text = next((text for text in PAGES.values() if right in text), PAGES["README.md"])
    changed = text.replace(right if right in text else "`dinov2_vicuna`", wrong)
    assert changed != text
    assert tables.updated(changed) != changed
