"""``make docs``: writes the API reference into ``site/`` with pdoc, and checks that all links in it lead somewhere."""

from __future__ import annotations

import logging
import pkgutil
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pdoc

import panollava

SITE = Path("site")
logger = logging.getLogger(__name__)


class Links(HTMLParser):
    """Addresses and anchors of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Keeps what the tag names."""
        found = dict(attributes)
        self.anchors |= {value for name in ("id", "name") if (value := found.get(name))}
        if tag == "a" and (address := found.get("href")):
            self.targets.add(address)


def modules() -> list[str]:
    """Names of all modules with something to document; a package is its docstring."""
    found = pkgutil.walk_packages(panollava.__path__, "panollava.")
    return sorted(module.name for module in found if not module.ispkg)


def write(names: Sequence[str], site: Path) -> None:
    """Writes the pages of some modules."""
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc(*names, output_directory=site)


def broken(site: Path) -> list[str]:
    """Links to files or anchors that are not there, with their pages."""
    pages = {page.resolve(): Links(page) for page in site.rglob("*.html")}
    wrong = []
    for page, links in pages.items():
        for address in sorted(links.targets):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            known = pages.get(target)
            if known is None or (parts.fragment and unquote(parts.fragment) not in known.anchors):
                wrong.append(f"{page.relative_to(site.resolve())}: {address}")
    return wrong


def main() -> None:
    """Writes and checks."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write(modules(), SITE)
    if wrong := broken(SITE):
        sys.exit("\n".join(["Links that lead nowhere:", *wrong]))
    logger.info("%d pages: %s", len(list(SITE.rglob("*.html"))), SITE / "index.html")


if __name__ == "__main__":
    main()
