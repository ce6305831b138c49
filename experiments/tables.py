"""Updates the tables of options in README.md, README.ko.md and conf/README.md: python experiments/tables.py

Names, keys, defaults and what a command does come from ``conf/`` and the registries. All other cells are kept as they
are; a new row gets the first comment of its file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from panollava.config.descriptions import descriptions
from panollava.evaluation.metrics import METRICS, Metric, find_metric
from panollava.stages.registry import STAGES

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
FILES = ("README.md", "README.ko.md", "conf/README.md")
OF_WHOLE_RUNS = ("experiment", "experiment/decisive", "hydra/launcher")
"""Groups with tables of their own in conf/README.md, and none of the README's table of groups."""
OTHER_SCORES = ("blank picture", "majority answer", "latency", "image tokens")
"""Rows of the table of scores that are no metrics."""
TABLE = re.compile(r"^\|.*\|\n\|[-:| ]+\|\n(?:\|.*\|\n)*", re.MULTILINE)
Rows = dict[str, dict[int, str]]
"""Name in the first cell -> column -> cell; columns that are missing are kept."""


def updated(text: str) -> str:
    """A page with its tables as ``conf/`` has them now."""
    return TABLE.sub(lambda match: _updated_table(match[0]), text)


def table_names(text: str) -> set[str]:
    """First header cell of each table that is updated, such as ``crop=``."""
    found = [_cells(match[0].splitlines()[0]) for match in TABLE.finditer(text)]
    return {titles[0].strip("`") for titles in found if _rows(titles[0].strip("`"), titles) is not None}


def _updated_table(text: str) -> str:
    head, rule, *lines = text.splitlines()
    titles = _cells(head)
    wanted = _rows(titles[0].strip("`"), titles)
    if wanted is None:
        return text
    kept = {name: _cells(line) for line in lines if (name := _name(line)) in wanted}
    rows = []
    for name in [*kept, *(name for name in wanted if name not in kept)]:
        cells = kept.get(name) or [f"`{name}`", _first_comment(titles[0].strip("`="), name), *[""] * (len(titles) - 2)]
        for column, cell in wanted[name].items():
            cells[column] = cell
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join([head, rule, *(row.replace("|  |", "| |") for row in rows)]) + "\n"


def _rows(head: str, titles: list[str]) -> Rows | None:
    """The rows of a table by its first header cell; None for a table of something else."""
    if head == "group":
        groups = {group: _options(group) for group in groups_of_options()}
        return {group: {1: " ".join(f"`{option}`" for option in options)} for group, options in groups.items()}
    if head == "stage":
        code = {name: record.type.partition(":")[0].replace(".", "/") for name, record in STAGES.items()}
        return {name: {3: f"`{path}.py`"} for name, path in code.items()}
    if head == "score":
        is_tested = {name: type(find_metric(name, "")).per_answer is not Metric.per_answer for name in METRICS}
        tested = {name: {4: "yes" if is_tested[name] else "no"} for name in METRICS}
        return {**tested, **{name: {4: "no"} for name in OTHER_SCORES}}
    if head == "python -m panollava.":
        return {command: {1: sentence} for command, sentence in descriptions().items()}
    if head.endswith(".") and (CONF / head[:-1] / "default.yaml").is_file():
        options = OmegaConf.to_container(OmegaConf.load(CONF / head[:-1] / "default.yaml"))
        assert isinstance(options, dict)
        return {str(key): {1: _default(value)} for key, value in options.items()}
    if head.endswith("="):
        group = _group(head.strip("+="))
        if titles[-1] != "keys":
            return {option: {} for option in _options(group)}
        last = len(titles) - 1
        return {name: {last: " ".join(f"`{key}`" for key in keys)} for name, keys in _own_keys(group).items()}
    return None


def groups_of_options() -> list[str]:
    """Groups of ``conf/`` with several options, sorted."""
    found = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*/*.yaml")}
    return sorted(group for group in found if len(_options(group)) > 1 and group not in OF_WHOLE_RUNS)


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _group(name: str) -> str:
    """``resampler`` -> ``model/resampler``."""
    return name if (CONF / name).is_dir() else f"model/{name}"


def _own_keys(group: str) -> dict[str, list[str]]:
    """Option -> its keys in the order of its file, without those that all options of the group have."""
    keys = {option: _keys(CONF / group / f"{option}.yaml") for option in _options(group)}
    shared = set.intersection(*map(set, keys.values()))
    return {option: [key for key in names if key not in shared] for option, names in keys.items()}


def _keys(path: Path) -> list[str]:
    """Keys of an option, with those of the options of its group that it starts from."""
    config = OmegaConf.load(path)
    bases = [base for base in config.get("defaults", []) if isinstance(base, str) and base != "_self_"]
    inherited = [key for base in bases if "/" not in base for key in _keys(path.with_name(f"{base}.yaml"))]
    return list(dict.fromkeys([*inherited, *(str(key) for key in config if key != "defaults")]))


def _default(value: Any) -> str:
    """A default as a table shows it; one that depends on the size of the backbones has both."""
    if isinstance(value, str) and value.startswith("${for_size:"):
        return ", ".join(re.findall(r": ?(\w+)", value.removeprefix("${for_size:")))
    text = yaml.safe_dump(value).splitlines()[0]
    return f"`{text}`" if value is None or isinstance(value, bool | str) else text


def _first_comment(head: str, option: str) -> str:
    path = CONF / _group(head) / f"{option}.yaml"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return next((line.removeprefix("# ") for line in lines if not line.startswith("# @package")), "")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _name(line: str) -> str:
    return next(iter(re.findall(r"`(.+?)`", _cells(line)[0])), "")


def main() -> None:
    """Rewrite the files."""
    for name in FILES:
        text = (ROOT / name).read_text("utf-8")
        (ROOT / name).write_text(updated(text), encoding="utf-8")


if __name__ == "__main__":
    main()
