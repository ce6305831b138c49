"""Classes of other packages: named in a config, imported only where that is allowed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

from panollava.component import allow, allowed_packages, find_component, outside_class, outside_packages

KEY = "model.resampler.type"


class Speaker(Protocol):
    """A protocol with an attribute, which only objects need to have."""

    volume: int

    def speak(self) -> str:
        """Says something."""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package on the path that is of no distribution; nothing is allowed yet."""
    name = f"toy_{tmp_path.name.replace('-', '_')}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "parts.py").write_text(
        "class Loud:\n    def speak(self): return 'a'\n\nclass Mute:\n    pass\n\ndef speak(): ...\n"
    )
    (tmp_path / name / "leaves.py").write_text("raise SystemExit(3)\n")
    (tmp_path / name / "broken.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PANOLLAVA_ALLOW", "")
    return name


def test_nothing_of_a_package_is_imported_before_it_is_allowed(package: str) -> None:
    with pytest.raises(ValueError, match=rf"model.resampler.type={package}.parts:Loud .* allow={package} "):
        find_component("model.resampler", f"{package}.parts:Loud", "Resampler")
    assert not any(name.partition(".")[0] == package for name in sys.modules)
    allow(package)
    assert find_component("model.resampler", f"{package}.parts:Loud", "Resampler").__name__ == "Loud"
    assert find_component("crop.strategies", f"{package}.parts:Loud", "Crop").__name__ == "Loud"


def test_what_is_wrong_with_a_class_is_said(package: str) -> None:
    allow([package])
    for type, said in [
        (f"{package}.parts:Lod", "has no class Lod. Its classes: Loud, Mute"),
        (f"{package}.parts:speak", "has no class speak"),
        (f"{package}.broken:Loud", r"failed \(RuntimeError: no licence\)"),
        (f"{package}.leaves:Loud", r"failed \(SystemExit: 3\)"),
        (f"{package}.nowhere:Loud", "failed .*ModuleNotFoundError"),
        (f"{package}.parts:Mute", "is no Speaker: it has no speak"),
        (f"{package}/parts:Loud", "is written my_package.module:Class"),
    ]:
        with pytest.raises(ValueError, match=f"^model.resampler.type=.*{said}"):
            outside_class(type, KEY, Speaker)
    assert outside_class(f"{package}.parts:Loud", KEY, Speaker)().speak() == "a"
    with pytest.raises(ValueError, match=r"is written my_package\.module:Class"):
        find_component("model.resampler", f"{package}.parts.Loud", "Resampler")
    allow("builtins")
    with pytest.raises(ValueError, match="its arguments are not known"):
        outside_class("builtins:dict", KEY)


def test_an_allowed_package_that_is_not_installed_is_named_with_the_way_out(package: str) -> None:
    allow("no_such_package")
    with pytest.raises(ValueError, match=r"no_such_package is not installed here\. Run pip install no_such_package"):
        outside_class("no_such_package:Loud", KEY)


@pytest.mark.parametrize("wrong", ["my_package.module", "", "my-package", 3])
def test_only_names_of_packages_are_allowed(wrong: str, package: str) -> None:
    with pytest.raises(ValueError, match=r"allow=.*give the name of a package"):
        allow([wrong])
    assert allowed_packages() == set()


def test_the_other_modules_of_a_package_are_not_imported() -> None:
    code = "import sys; from panollava.component import find_component; find_component('data', 'world', 'Source'); "
    code += "print('panollava.data.world' in sys.modules, 'panollava.data.loader' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_processes_that_are_started_know_what_is_allowed(package: str) -> None:
    allow(package, ["other"])
    asked = "from panollava.component import allowed_packages; print(sorted(allowed_packages()))"
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, env=os.environ)
    assert said.stdout.strip() == str(sorted([package, "other"]))


def test_a_config_tells_its_packages_with_what_is_installed(package: str) -> None:
    config = {
        "model": {"resampler": {"type": f"{package}.parts:Loud"}, "vision": {"name": "a.b:C"}},
        "crop": {"type": "e2p"},
        "evaluation": {"metrics": ["exact", "annotated_types:Interval"]},
    }
    installed = outside_packages(config)
    assert list(installed) == sorted(["annotated_types", package])
    assert installed[package] == "unknown"
    assert installed["annotated_types"].startswith("annotated-types==")
    assert outside_packages({"crop": {"type": "e2p"}}) == {}
