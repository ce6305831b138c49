"""conf/README.md: its tables name every option of a group, and the keys that are the option's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from support import ROOT

CONF = ROOT / "conf"
TEXT = (CONF / "README.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^## (.+)$", TEXT, flags=re.M)
GROUPS = {
    title.split("`")[1]: text
    for title, text in zip(SECTIONS[1::2], SECTIONS[2::2], strict=True)
    if title.startswith("`")
}


def rows(text: str) -> dict[str, set[str]]:
    """Option -> keys, which stand in a table's first and last cell."""
    cells = [row.strip("|").split("|") for row in re.findall(r"^\|.*\|$", text, flags=re.M)[2:]]
    return {re.findall(r"`(.+?)`", row[0])[0]: set(re.findall(r"`(.+?)`", row[-1])) for row in cells}


def keys_of(path: Path) -> set[str]:
    """Keys of an option, with those of the options of its group that it starts from."""
    config = OmegaConf.load(path)
    bases = [base for base in config.get("defaults", []) if isinstance(base, str) and base != "_self_"]
    inherited = [keys_of(path.with_name(f"{base}.yaml")) for base in bases if "/" not in base]
    return set(config).union(*inherited) - {"defaults"}


@pytest.mark.parametrize("group", GROUPS)
def test_options_and_keys(group: str) -> None:
    options = {path.stem: keys_of(path) for path in (CONF / group).glob("*.yaml")}
    shared = set.intersection(*options.values())
    assert rows(GROUPS[group]) == {name: keys - shared for name, keys in options.items()}


def tables_of_defaults() -> dict[str, dict[str, str]]:
    """Group -> key -> default, of the tables that tell a group's keys one by one."""
    found: dict[str, dict[str, str]] = {}
    for _, group, lines in re.findall(r"(^\| `(\w+)\.` \| default \|.*\n)\|[-|]+\n((?:\|.*\n)+)", TEXT, flags=re.M):
        cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines.splitlines()]
        found[group] = {key: default for key, default, *_ in cells}
    return found


def default(value: Any) -> str:
    """A default as a table shows it; one that depends on the backbones' size has both."""
    if isinstance(value, str) and value.startswith("${for_size:"):
        return ", ".join(re.findall(r": ?(\w+)", value.removeprefix("${for_size:")))
    return yaml.safe_dump(value).splitlines()[0]


@pytest.mark.parametrize("group", ["generation", "store", "trainer"])
def test_keys_and_defaults(group: str) -> None:
    options = OmegaConf.to_container(OmegaConf.load(CONF / group / "default.yaml"))
    assert isinstance(options, dict)
    assert tables_of_defaults()[group] == {str(key): default(value) for key, value in options.items()}


@pytest.mark.parametrize(("title", "group"), [("Experiments", "experiment"), ("Launchers", "hydra/launcher")])
def test_groups_of_whole_runs(title: str, group: str) -> None:
    told = dict(zip(SECTIONS[1::2], SECTIONS[2::2], strict=True))[title]
    assert set(rows(told)) == {path.stem for path in (CONF / group).glob("*.yaml")}
