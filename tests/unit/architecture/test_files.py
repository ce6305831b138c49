"""Files say what they are, print nothing, and speak of this project alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from support import ROOT

SOURCES = sorted(file for folder in ("panollava", "tests") for file in (ROOT / folder).rglob("*.py"))
SHIPPED = sorted(
    file
    for folder in ("panollava", "conf", "experiments", ".ci")
    for file in (ROOT / folder).rglob("*")
    if file.is_file() and file.suffix not in {".pyc", ".safetensors", ".png", ".jpg", ".ttf"}
) + sorted(file for file in ROOT.iterdir() if file.suffix in {".md", ".toml", ".txt"} or file.name == "Makefile")
FOREIGN = re.compile(r"/work\b(?!ing)|\bshared/|(?i:\bpredecessor)|\b(?:DESIGN|SPEC|FACTS|STYLE|CONTRACTS)(?:\.md| §)")
"""Places and papers that whoever clones the repository does not have."""
LONGEST_FUNCTION = 90
"""Lines, of the package."""


@pytest.mark.parametrize("folder", ["panollava", "tests"])
def test_every_file_says_what_it_is(folder: str) -> None:
    files = [file for file in SOURCES if file.is_relative_to(ROOT / folder)]
    assert [str(file) for file in files if not ast.get_docstring(ast.parse(file.read_text("utf-8")))] == []


def test_functions_are_short() -> None:
    def long(file: Path) -> list[str]:
        nodes = ast.walk(ast.parse(file.read_text("utf-8")))
        functions = (node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        return [f"{file}: {one.name}" for one in functions if one.end_lineno - one.lineno >= LONGEST_FUNCTION]

    assert [name for file in SOURCES if file.is_relative_to(ROOT / "panollava") for name in long(file)] == []


def test_nothing_is_printed_in_the_package() -> None:
    def prints(file: Path) -> bool:
        return any(
            isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
            for node in ast.walk(ast.parse(file.read_text("utf-8")))
        )

    assert [str(file) for file in SOURCES if file.is_relative_to(ROOT / "panollava") and prints(file)] == []


def test_the_project_speaks_of_itself_alone() -> None:
    assert len(SHIPPED) > 100
    found = {}
    for file in SHIPPED:
        lines = file.read_text("utf-8", errors="replace").splitlines()
        bad = [number for number, line in enumerate(lines, start=1) if FOREIGN.search(line)]
        if bad:
            found[str(file.relative_to(ROOT))] = bad
    assert found == {}
