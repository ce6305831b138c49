"""A digest of code follows what the code computes, not how it is written or where it stands."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from panollava.crop.strategies import AdaptiveCrop
from panollava.data.world import DRAWN_BY
from panollava.run.features import ENCODED_BY
from panollava.store import identity as code
from panollava.store.identity import class_digest, code_digest, package_digest, present_digest

Digest = Callable[..., str]
PLAIN = """
from {package}.pencils import Pencil, WIDTHS
def draw(a):
    return Pencil(a).line(WIDTHS["thin"])
"""
PENCILS = """
THIN = 1
WIDTHS = {"thin": THIN}
def stroke(a, width):
    if width < 0:
        raise ValueError("negative")
    return a * width
class Pencil:
    def __init__(self, a):
        self.a = a
    def line(self, width):
        return stroke(self.a, width)
    def unused(self):
        return 0
def other():
    return stroke(1, 2)
"""
SAME = [
    ("a = 1", "a = 1  # one"),
    ("THIN = 1\n", '"""Pencils."""\nimport math\nfrom os import path\n\n\nTHIN = 1\n"""A width."""\n'),
    ("    if width", '    """Multiplies."""\n    LOG.info("stroke %s", a)\n    if width'),
    ('"negative"', '"The width is negative. Take another."'),
    ("return stroke(1, 2)", "return 3"),
    ("a * width", "(a *\n  width)"),
]
OTHER = [
    ("THIN = 1\n", "THIN = 2\n"),
    ("a * width", "width * a"),
    ("width < 0", "width <= 0"),
    ("ValueError", "TypeError"),
    ("return 0", "return 1"),
    ("stroke(self.a, width)", "stroke(self.a, width) + 0"),
]


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Digest:
    """``digest(**modules)``: of ``draw`` in the module ``drawing`` of a new package."""
    monkeypatch.syspath_prepend(str(tmp_path))
    number = [0]

    def of(**modules: str) -> str:
        number[0] += 1
        package = f"{tmp_path.name}_{number[0]}".replace("-", "_")
        (tmp_path / package).mkdir()
        for name, text in {"__init__": "", **modules}.items():
            (tmp_path / package / f"{name}.py").write_text(text.replace("{package}", package))
        importlib.invalidate_caches()
        return present_digest(importlib.import_module(f"{package}.drawing").draw)

    return of


def test_only_what_is_computed_counts(digest: Digest) -> None:
    plain = digest(drawing=PLAIN, pencils=PENCILS)

    def changed(before: str, after: str) -> str:
        assert before in PENCILS or before == "a = 1"
        return digest(drawing=PLAIN, pencils=PENCILS.replace(before, after))

    assert [changed(*change) for change in SAME] == [plain] * len(SAME)
    assert plain not in {changed(*change) for change in OTHER}


def test_definitions_may_move(digest: Digest) -> None:
    """Into one file, or each into another one, below other definitions."""
    apart = digest(drawing=PLAIN, pencils=PENCILS)
    one = digest(drawing=PENCILS + PLAIN.replace("from {package}.pencils import Pencil, WIDTHS\n", ""))
    widths, rest = PENCILS.split("def stroke")
    three = digest(
        drawing=PLAIN.replace("Pencil, WIDTHS", "Pencil") + "from {package}.widths import WIDTHS\n",
        pencils=f"from {{package}}.widths import THIN, WIDTHS as W\ndef stroke{rest}",
        widths=f"def nothing(): ...\n{widths}",
    )
    assert apart == one == three


def test_members_that_a_method_names_count(digest: Digest) -> None:
    text = (
        "class A:\n    width = 1\n    def draw(self):\n        return self.width\n    def no(self):\n        return 0\n"
    )
    plain = digest(drawing=f"{text}draw = A.draw\n")
    assert digest(drawing=f"{text}draw = A.draw\n".replace("return 0", "return 1")) == plain
    assert digest(drawing=f"{text}draw = A.draw\n".replace("width = 1", "width = 2")) != plain


def test_the_reach_of_what_is_kept() -> None:
    """Every step from a file or a seed to the features is in a digest; errors of the command line are not."""
    reached = {name for roots in (ENCODED_BY, DRAWN_BY) for name in reach(*roots)}
    assert reached >= {"decode", "pad_to_sphere", "render_views", "render_batch", "rotation_matrix", "Family", "_noise"}
    assert "VisionTower.normalise" in reached
    assert not reached & {"find_component", "in_words", "load_pretrained", "VisionTower.from_pretrained"}


def reach(*roots: object) -> set[str]:
    """Names of all definitions that a digest is made of."""
    names = set()
    with pytest.MonkeyPatch.context() as patch:
        found = code._found
        patch.setattr(code, "_found", lambda module, name: (names.add(name), found(module, name))[1])
        present_digest(*roots)  # type: ignore[arg-type]
    return names


def test_no_equivalent_digest_is_out_of_date() -> None:
    """If this fails, see ``panollava/store/identity.py``."""
    present = {"features": present_digest(*ENCODED_BY), "built-in world": present_digest(*DRAWN_BY)}
    assert set(code.EQUIVALENT) <= set(present.values()), f"present digests: {present}"


def test_an_equivalent_digest_is_that_of_the_present_code_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    present = present_digest(*DRAWN_BY)
    monkeypatch.setattr(code, "EQUIVALENT", {present: "an earlier one"})
    assert code_digest.__wrapped__(*DRAWN_BY) == "an earlier one"
    assert code_digest.__wrapped__(*ENCODED_BY) == present_digest(*ENCODED_BY)


LAB = {
    "__init__": "",
    "saliency": "from .maths import K\ndef f(a):\n    return a * K  # scaled\n",
    "maths": "K = 2\n",
    "tools/__init__": "from ..saliency import f\n",
    "unrelated": "X = 1\n",
}
SPELLINGS = [
    "from .saliency import f\ndef choose(a):\n    return f(a)\n",
    "from {package} import saliency\ndef choose(a):\n    return saliency.f(a)\n",
    "import {package}.saliency as s\ndef choose(a):\n    return s.f(a)\n",
    "from .tools import f\ndef choose(a):\n    return f(a)\n",
    "def choose(a):\n    from . import saliency\n    return saliency.f(a)\n",
]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``lab(**modules)`` writes modules of a package, whose name it returns; nothing is remembered of it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    package = f"lab_{tmp_path.name}".replace("-", "_")

    def write(**modules: str) -> str:
        for name, text in modules.items():
            path = tmp_path / package / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("{package}", package))
        importlib.invalidate_caches()
        package_digest.cache_clear()
        return package

    return write


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_modules_count_however_they_are_imported(spelling: str, lab: Callable[..., str]) -> None:
    package = lab(**LAB, crop=f"{spelling}raise SystemExit\n")  # found without importing it
    plain = package_digest(f"{package}.crop")
    assert len(plain) == 16
    lab(unrelated="X = 2\n", saliency=LAB["saliency"].replace("scaled", "multiplied"))
    assert package_digest(f"{package}.crop") == plain
    lab(maths="K = 3\n")
    other = package_digest(f"{package}.crop")
    lab(saliency=LAB["saliency"].replace("a * K", "a + K"))
    assert len({plain, other, package_digest(f"{package}.crop")}) == 3
    plain = package_digest(f"{package}.crop")
    lab(maths="print 3\n")  # of another Python
    assert package_digest(f"{package}.crop") != plain
    assert package not in sys.modules
    assert package_digest("no_such_package.crop") == package_digest() == ""


def test_a_module_of_one_file_and_a_folder_without_init(tmp_path: Path, lab: Callable[..., str]) -> None:
    package = lab(**{"crops/one": "X = 1\n"})
    (tmp_path / f"{package}_alone.py").write_text(f"import {package}.crops.one\n")
    alone, inside = package_digest(f"{package}_alone"), package_digest(f"{package}.crops.one")
    lab(**{"crops/one": "X = 2\n"})
    assert package_digest(f"{package}.crops.one") != inside
    assert package_digest(f"{package}_alone") == alone  # another package's version counts, not its code


def test_a_class_of_another_package_has_the_code_of_its_package(lab: Callable[..., str]) -> None:
    """Also where it overrides only what a member of ours calls."""
    text = (
        "from panollava.crop.strategies import AdaptiveCrop\nclass Lab(AdaptiveCrop):\n    def detail(self): return 0\n"
    )
    package = lab(__init__="", base=text, crop="from .base import Lab\nclass Mine(Lab):\n    pass\n")
    kind = importlib.import_module(f"{package}.crop").Mine
    members, own = ("choose", "finest"), (AdaptiveCrop.choose, AdaptiveCrop.finest)
    assert class_digest(AdaptiveCrop, *members) == code_digest(*own)
    plain = class_digest(kind, *members)
    assert plain not in (code_digest(*own), class_digest(kind.__base__, *members))
    lab(base=text.replace("return 0", "return 1"))
    assert class_digest(kind, *members) != plain
