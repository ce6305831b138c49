"""The package's front door: light to import, the facade behind it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import panollava
from panollava.model.api import PanoLlava


def test_importing_the_package_brings_in_nothing_heavy() -> None:
    code = "import sys, panollava; print(*sorted({'torch', 'transformers', 'mlflow', 'hydra'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    "begin",
    [
        "import importlib.util, panollava; importlib.util.find_spec('transformers'); import transformers",
        "import transformers, panollava",
    ],
    ids=["after", "before"],
)
def test_transformers_knows_the_model_in_whatever_order_they_are_imported(begin: str) -> None:
    program = f"""
{begin}
import transformers
assert transformers.AutoConfig.for_model("panollava").model_type == "panollava"
assert transformers.__spec__.name == "transformers"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_public_names_are_listed_and_found() -> None:
    assert panollava.PanoLlava is PanoLlava
    assert dir(panollava) == panollava.__all__ == ["PanoDetector", "PanoLlava", "Trainer", "__version__"]
    assert panollava.__version__ == version("panollava")


def test_other_names_are_missing() -> None:
    with pytest.raises(AttributeError, match="'panollava' has no attribute 'Panollava'"):
        _ = panollava.Panollava
