"""conf/README.md: its tables name every option of a group, and the keys that are the option's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
SECTIONS = re.split(r"^## (.+)$", (CONF / "README.md").read_text(encoding="utf-8"), flags=re.M)
GROUPS = {
    title.split("`")[1]: text
    for title, text in zip(SECTIONS[1::2], SECTIONS[2::2], strict=True)
    if title.startswith("`")
}


def rows(text: str) -> dict[str, set[str]]:
    """Option -> keys, which stand in a table's first and last cell."""
    cells = [row.strip("|").split("|") for row in re.findall(r"^\|.*\|$", text, flags=re.M)[2:]]
    return {re.findall(r"`(.+?)`", row[0])[0]: set(re.findall(r"`(.+?)`", row[-1])) for row in cells}


@pytest.mark.parametrize("group", GROUPS)
def test_options_and_keys(group: str) -> None:
    options = {path.stem: set(OmegaConf.load(path)) for path in (CONF / group).glob("*.yaml")}
    shared = set.intersection(*options.values())
    assert rows(GROUPS[group]) == {name: keys - shared for name, keys in options.items()}


@pytest.mark.parametrize(("title", "group"), [("Experiments", "experiment"), ("Launchers", "hydra/launcher")])
def test_groups_of_whole_runs(title: str, group: str) -> None:
    told = dict(zip(SECTIONS[1::2], SECTIONS[2::2], strict=True))[title]
    assert set(rows(told)) == {path.stem for path in (CONF / group).glob("*.yaml")}
