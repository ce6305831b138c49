"""What is imported is declared in pyproject.toml, and what is declared is imported."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import packages_distributions

from support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
TOOLS = {"build", "hatchling", "ipykernel", "mypy", "pytest-cov", "pytest-xdist", "ruff"}
"""What the Makefile, pytest and notebooks run by name."""
PLUGINS = {
    "bitsandbytes",
    "hydra-joblib-launcher",
    "hydra-optuna-sweeper",
    "hydra-submitit-launcher",
    "nvidia-ml-py",
}
"""What other libraries import where it is installed."""


def plain(name: str) -> str:
    """A distribution's name as all of its spellings are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: Iterable[str]) -> set[str]:
    """Names of requirements, extras of this project opened."""
    found: set[str] = set()
    for requirement in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()  # type: ignore[union-attr]
        if name == PROJECT["name"]:
            found |= declared(each for extra in extras.split(",") for each in EXTRAS[extra])
        else:
            found.add(plain(name))
    return found


@cache
def distributions() -> dict[str, set[str]]:
    return {module: set(map(plain, names)) for module, names in packages_distributions().items()}


def imported(folder: str) -> dict[str, set[str]]:
    """Top-level modules that are neither ours nor Python's, with the distributions that may bring them."""
    files = sorted((ROOT / folder).rglob("*.py"))
    ours = {
        "panollava",
        "experiments",
        *(path.name for path in (ROOT / "tests").iterdir() if path.is_dir()),
        *(path.stem for top in ("tests", "experiments") for path in (ROOT / top).rglob("*.py")),
    }
    names: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return {name: distributions().get(name, {plain(name)}) for name in names - ours - set(sys.stdlib_module_names)}


MAIN = declared(PROJECT["dependencies"])
OPTIONAL = declared(each for extra, requirements in EXTRAS.items() if extra != "dev" for each in requirements)
DEV = declared(EXTRAS["dev"])


def undeclared(folder: str, known: set[str]) -> list[str]:
    return sorted(module for module, names in imported(folder).items() if not names & known)


def test_what_is_imported_is_declared() -> None:
    assert undeclared("panollava", MAIN | OPTIONAL) == []
    assert undeclared("tests", MAIN | DEV) == []
    assert undeclared("experiments", MAIN | DEV) == []


def test_what_is_declared_is_imported() -> None:
    ours = set().union(*imported("panollava").values())
    assert MAIN - ours == set()
    assert OPTIONAL - ours - PLUGINS - set().union(*imported("tests").values()) == set()
    users = [*imported("tests").values(), *imported("experiments").values()]
    assert DEV - OPTIONAL - TOOLS - set().union(*users) == set()
