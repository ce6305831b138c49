"""A digest of code follows what the code does, not how it is written."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from panollava.store.identity import code_digest

PLAIN = "x = 1\ndef f(a):\n    return a + x\n"
SAME = [
    '"""About."""\n\nx = 1  # one\n\n\ndef f(a):\n    """Adds."""\n    return a + x\n',
    "x=1\ndef f(a): return (a + x)\n",
]
OTHER = ["x = 2\ndef f(a):\n    return a + x\n", "x = 1\ndef f(a):\n    return x + a\n", f"{PLAIN}y = 'text'\n"]


def test_only_what_the_code_does_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest(text: str) -> str:
        for name in [name for name in sys.modules if name.split(".")[0] == "drawing"]:
            del sys.modules[name]
        inner = tmp_path / "drawing" / "inner"
        inner.mkdir(parents=True, exist_ok=True)
        for file, content in (("../__init__.py", ""), ("__init__.py", '"""Inner."""\n'), ("pencil.py", text)):
            (inner / file).write_text(content)
        importlib.invalidate_caches()
        return code_digest.__wrapped__("drawing")

    plain = digest(PLAIN)
    assert [digest(text) for text in SAME] == [plain] * len(SAME)
    assert plain not in {digest(text) for text in OTHER}


def test_a_module_alone_is_not_its_package() -> None:
    assert code_digest("panollava.crop.sphere") != code_digest("panollava.crop")
