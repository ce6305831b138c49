"""Files, folders and sections that the pages of the repository name exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

PAGES = [
    ROOT / name
    for name in (
        "README.md",
        "README.ko.md",
        "CONTRIBUTING.md",
        "conf/README.md",
        "tests/README.md",
        *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments").glob("*/README.md")),
    )
]
PLACES = (ROOT, ROOT / "panollava", ROOT / "conf", ROOT / "tests")
"""What paths in the text start from."""
WRITTEN = {line.strip("/") for line in (ROOT / ".gitignore").read_text("utf-8").splitlines() if line.endswith("/")}
"""Folders that commands write beside the repository's own, such as ``cache/``; a path in them may be an example."""
FOLDERS = {path.name for place in PLACES for path in place.iterdir() if path.is_dir()} - WRITTEN
"""First parts of a path in the repository."""


def missing_paths(text: str) -> list[str]:
    """Paths in backticks that are in none of ``PLACES``; names with placeholders are left out."""
    named = re.findall(r"`([\w./-]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    paths = [name for name in named if name.endswith(".py") or ("/" in name and name.split("/")[0] in FOLDERS)]
    return [path for path in paths if not any((place / path).exists() for place in PLACES)]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    """Links of a page to files or headings that there are not."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if "://" not in target and (not file.exists() or (anchor and anchor not in anchors(file))):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_paths_and_links_exist(page: Path) -> None:
    assert missing_paths(page.read_text(encoding="utf-8")) == []
    assert list(broken_links(page)) == []


def test_a_missing_path_and_a_broken_link_are_found(tmp_path: Path) -> None:
    text = (
        "`panollava/gone.py`, `gone.py`, `model/gone/`, [a](#gone), [b](other.md), `model/vision.py`, `data/mine.csv`"
    )
    assert missing_paths(text) == ["panollava/gone.py", "gone.py", "model/gone/"]
    (tmp_path / "page.md").write_text(f"# What is `there`\n{text} [c](#what-is-there)", encoding="utf-8")
    assert list(broken_links(tmp_path / "page.md")) == ["#gone", "other.md"]
