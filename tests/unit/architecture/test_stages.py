"""Only the registry knows a stage by its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import panollava
from panollava.stages.registry import STAGES

PACKAGE = Path(panollava.__file__).parent
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "stages" / "registry.py")


def named(tree: ast.AST) -> Iterator[ast.AST]:
    """Comparisons with a stage's name, and lists of such names; ``"vision"`` is also the name of a backbone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            is_one = any(_names(side) for side in [node.left, *node.comparators])
        elif isinstance(node, ast.match_case):
            is_one = any(_names(each) for each in ast.walk(node.pattern))
        else:
            is_one = isinstance(node, ast.List | ast.Tuple | ast.Set) and len(_names(node)) > 1
        if is_one:
            yield node


def _names(node: ast.AST) -> list[str]:
    parts = node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else [node]
    return [part.value for part in parts if isinstance(part, ast.Constant) and part.value in STAGES]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_other_module_compares_the_name_of_a_stage(file: Path) -> None:
    assert [ast.unparse(node) for node in named(ast.parse(file.read_text("utf-8")))] == []


@pytest.mark.parametrize(
    "code",
    [
        "name == 'vision'",
        "'finetune' != name",
        "name in ('resampler', 'x')",
        "STAGES = ('vision', 'finetune')",
        "match name:\n case 'finetune': pass",
    ],
)
def test_a_comparison_would_be_found(code: str) -> None:
    assert len(list(named(ast.parse(code)))) == 1


def test_names_of_backbones_are_none_of_stages() -> None:
    assert list(named(ast.parse("model['vision'], ('vision', 'language'), part == 'language'"))) == []
