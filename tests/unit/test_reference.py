"""The API reference: pages of modules, and links that lead nowhere are found."""

from __future__ import annotations

from pathlib import Path

from experiments.reference import broken, modules, write


def test_pages_are_written_and_their_links_are_checked(tmp_path: Path) -> None:
    known = modules()
    assert {"panollava.crop.sphere", "panollava.model.api", "panollava.server.engine"} <= set(known)
    write(["panollava.crop.sphere", "panollava.generation"], tmp_path)
    page = tmp_path / "panollava" / "generation.html"
    assert "max_new_tokens" in page.read_text(encoding="utf-8")
    assert broken(tmp_path) == []
    page.write_text(page.read_text(encoding="utf-8") + '<a href="nowhere.html">x</a><a href="#none">y</a>')
    assert broken(tmp_path) == ["panollava/generation.html: #none", "panollava/generation.html: nowhere.html"]
