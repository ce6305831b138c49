"""README.ko.md says in Korean what README.md says: the same commands, code, links, pictures, keys and numbers."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable
from itertools import zip_longest

import pytest
from support import ROOT

ENGLISH, KOREAN = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ko.md"))
OF_THE_OTHER = {"README.md", "README.ko.md"}
"""The link of each page to the other one."""


def blocks(language: str, text: str) -> list[str]:
    """A page's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """Lines of the bash blocks as words, without their comments; an empty list ends a block."""
    ended = [[*block.splitlines(), ""] for block in blocks("bash", text)]
    return [shlex.split(line, comments=True) for lines in ended for line in lines]


def python_code(text: str) -> list[str]:
    """The python blocks without their comments."""
    return [ast.unparse(ast.parse(block)) for block in blocks("python", text)]


def sections(text: str) -> list[str]:
    """Prose and tables of each section, without code blocks; the first is what stands above all sections."""
    return re.split(r"^## ", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), flags=re.MULTILINE)


def heading_levels(text: str) -> list[str]:
    """``#``, ``##`` and so on."""
    return re.findall(r"^(#+) ", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)


def pictures(section: str) -> list[str]:
    """Files of the pictures in their order."""
    return re.findall(r"!\[[^\]]+\]\(([^)\s]+)\)", section)


def links(section: str) -> list[str]:
    """Targets of links and bare addresses, sorted, because the order of words differs."""
    found = re.findall(r"(?<!`)\]\(([^)\s]+)\)|(?<![`=])(https?://[\w.:/-]*\w)", section)
    return sorted({"".join(pair) for pair in found} - OF_THE_OTHER)


def keys(section: str) -> list[str]:
    """What stands in backticks: keys, commands, files."""
    return sorted({" ".join(code.split()) for code in re.findall(r"`([^`]+)`", section)} - {"group", "stage"})


def numbers(section: str) -> list[str]:
    """Numbers of the text, outside links and backticks."""
    return sorted(re.findall(r"\d+(?:\.\d+)?", re.sub(r"`[^`]+`|\]\([^)]*\)|https?://\S+", "", section)))


def demo_rows(text: str) -> list[list[str]]:
    """Cells of the demo's table without its head: question types, numbers and answers, as the program has them."""
    table = text.split("<!-- demo table -->")[1].split("<!-- /demo table -->")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.parametrize("found", [commands, python_code, heading_levels, demo_rows], ids=lambda found: found.__name__)
def test_the_same_in_the_same_order(found: Callable[[str], list]) -> None:
    assert len(found(ENGLISH)) > 1
    assert found(KOREAN) == found(ENGLISH)


@pytest.mark.parametrize("found", [pictures, links, keys, numbers], ids=lambda found: found.__name__)
def test_each_section_has_the_same(found: Callable[[str], list[str]]) -> None:
    assert any(found(section) for section in sections(ENGLISH))
    for korean, english in zip_longest(sections(KOREAN), sections(ENGLISH), fillvalue=""):
        assert found(korean) == found(english), korean.partition("\n")[0]


def test_tables_have_the_same_marks() -> None:
    marks = re.findall(r"<!-- .+? -->", ENGLISH)
    assert len(marks) == 6
    assert re.findall(r"<!-- .+? -->", KOREAN) == marks


def test_each_page_links_the_other_at_its_top() -> None:
    assert "[한국어](README.ko.md)" in ENGLISH.splitlines()[:5]
    assert "[English](README.md)" in KOREAN.splitlines()[:5]


def test_is_korean_and_short() -> None:
    comments = re.findall(r" # (.+)", "\n".join(blocks("bash", KOREAN) + blocks("python", KOREAN)))
    alternative = re.findall(r"!\[([^\]]+)\]", KOREAN)
    titles = re.findall(r"^## (.+)", KOREAN, re.MULTILINE)
    assert [text for text in (*comments, *alternative, *titles) if not re.search("[가-힣]", text)] == []
    assert len(comments) == len(re.findall(r" # (.+)", "\n".join(blocks("bash", ENGLISH) + blocks("python", ENGLISH))))
    assert len(KOREAN.splitlines()) <= 300
