"""Parts of another package: built as a wheel and installed, they train; a checkpoint imports them only if allowed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
IMPORTED = "toy_parts was imported"
PARTS = f'''
from __future__ import annotations

import sys
from typing import Annotated

from annotated_types import Interval
from torch import nn

from panollava.crop.strategies import E2pCrop
from panollava.data.world import WorldSource
from panollava.losses.protocol import Cost, GridCorrespondences

print("{IMPORTED}", file=sys.stderr)


class ToyResampler(nn.Module):
    def __init__(self, *, input_width: int, output_width: int, scale: Annotated[float, Interval(gt=0)] = 1.0) -> None:
        super().__init__()
        self.scale, self.linear = scale, nn.Linear(input_width, output_width)

    def token_grid(self, grid):
        return grid

    def token_count(self, grid):
        return grid[0] * grid[1]

    def forward(self, features, *, grid, view_mask, cameras):
        return self.scale * self.linear(features)


class ToyPosition(nn.Module):
    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(__import__("torch").zeros(width))

    def forward(self, tokens, cameras, grid):
        return tokens + self.shift


class ToyProjector(nn.Linear):
    def __init__(self, *, input_width: int, output_width: int) -> None:
        super().__init__(input_width, output_width)


class ToyCrop(E2pCrop):
    """The keywords of e2p."""


class ToyObjective:
    coupled, remedy = "", "train longer"

    def __init__(self, *, weight: Annotated[float, Interval(gt=0)] = 1.0) -> None:
        self.weight, self.correspondences = weight, GridCorrespondences("columns")

    def __call__(self, a, b, mask, *, across_ranks):
        distance = self.weight * ((a - b).float().square().mean(-1) * mask).sum()
        return Cost(distance, {{"distance": distance.detach()}})


class ToySource(WorldSource):
    """The keywords of the built-in world."""
'''
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "panollava-toy"
version = "1.0"

[tool.hatch.build.targets.wheel]
packages = ["toy_parts"]
"""
SWITCHES = [
    "crop=toy_parts.parts:ToyCrop",
    "crop.overlap=0.0",
    "resampler=toy_parts.parts:ToyResampler",
    "resampler.scale=2.0",
    "model.position.type=toy_parts.parts:ToyPosition",
    "projector=toy_parts.parts:ToyProjector",
    "objective=toy_parts.parts:ToyObjective",
    "objective.weight=3.0",
    "data=toy_parts.parts:ToySource",
    "data.train_scenes=4",
    "data.val_scenes=2",
    "data.test_scenes=1",
]
pytestmark = pytest.mark.slow


def _python(*arguments: str, cwd: Path, site: Path | None = None, fails: bool = False) -> str:
    path = os.pathsep.join(str(folder) for folder in (site, ROOT) if folder)
    environment = {**os.environ, "PYTHONPATH": path, "PANOLLAVA_ALLOW": ""}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel of a package of parts."""
    source = tmp_path_factory.mktemp("source")
    (source / "toy_parts").mkdir()
    (source / "toy_parts" / "__init__.py").touch()
    (source / "toy_parts" / "parts.py").write_text(PARTS)
    (source / "pyproject.toml").write_text(PROJECT)
    _python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(source / "dist"), str(source), cwd=source)
    (wheel,) = (source / "dist").glob("panollava_toy-1.0-*.whl")
    folder = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", "--target", str(folder)]
    _python("-m", "pip", "install", *options, str(wheel), cwd=folder)
    return folder


@pytest.fixture(scope="module")
def trained(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of these parts."""
    folder = tmp_path_factory.mktemp("work")
    quick = ["+debug=default", "experiment_name=toy", "tracking=none", "evaluation.max_new_tokens=4"]
    _python("-m", "panollava.train", *quick, *SWITCHES, cwd=folder, site=site)
    return folder


RUN = "runs/toy/finetune/ToyCrop_ToyResampler"


def test_a_run_records_its_classes_and_their_package(trained: Path) -> None:
    recorded = json.loads((trained / RUN / "checkpoint_metadata.json").read_text())
    assert recorded["packages"] == {"toy_parts": "panollava-toy==1.0"}
    assert recorded["model"]["resampler"] == {"type": "toy_parts.parts:ToyResampler", "scale": 2.0}
    assert recorded["model"]["position"] == {"type": "toy_parts.parts:ToyPosition"}
    loss = json.loads((trained / RUN.replace("finetune", "vision") / "checkpoint_metadata.json").read_text())
    objective = {"type": "toy_parts.parts:ToyObjective", "head_width": None, "weight": 3.0}
    assert loss["stage_settings"]["loss"] == objective


def test_a_checkpoint_and_an_export_import_the_package_only_if_allowed(trained: Path, site: Path) -> None:
    _python("-m", "panollava.export", f"checkpoint={RUN}", "out=export", "allow=toy_parts", cwd=trained, site=site)
    script = f"""
import sys
import panollava
from transformers import AutoModelForImageTextToText
for opener, folder in [(panollava.PanoLlava, {RUN!r}), (panollava.PanoLlava, "export"),
                       (AutoModelForImageTextToText, "export")]:
    try:
        opener.from_pretrained(folder)
    except ValueError as error:
        assert ".type=toy_parts.parts:" in str(error) and "allow=toy_parts" in str(error), error
    else:
        raise SystemExit("not refused")
assert "toy_parts" not in sys.modules
model = AutoModelForImageTextToText.from_pretrained("export", allow="toy_parts")
assert type(model.vision.resampler).__name__ == "ToyResampler"
assert model.config.packages == {{"toy_parts": "panollava-toy==1.0"}}
pano = panollava.PanoLlava.from_pretrained({RUN!r}, allow=["toy_parts"])
assert type(pano.crop.strategy).__name__ == "ToyCrop"
"""
    assert IMPORTED in _python("-c", script, cwd=trained, site=site)


def test_evaluation_needs_the_package_and_says_so(trained: Path, site: Path) -> None:
    command = ["-m", "panollava.eval", f"checkpoint={RUN}", "max_samples=1", "tracking=none", "num_workers=0"]
    refused = _python(*command, cwd=trained, site=site, fails=True)
    assert "is code of the package toy_parts" in refused
    assert "add allow=toy_parts" in refused
    assert IMPORTED not in refused
    missing = _python(*command, "allow=[toy_parts]", cwd=trained, fails=True)
    assert "toy_parts is not installed here. Run pip install panollava-toy==1.0." in missing
    (metadata,) = site.glob("panollava_toy-*.dist-info/METADATA")
    text = metadata.read_text()
    metadata.write_text(text.replace("Version: 1.0", "Version: 2.0"))
    try:
        said = _python(*command, "allow=toy_parts", cwd=trained, site=site)
    finally:
        metadata.write_text(text)
    assert said.count("toy_parts was panollava-toy==1.0 in training and is panollava-toy==2.0 here") == 1
    assert "exact match" in said.lower()


def test_a_wrong_key_is_named_with_those_of_the_class(site: Path, tmp_path: Path) -> None:
    command = ["-m", "panollava.train", "+debug=default", *SWITCHES]
    said = _python(*command, "resampler.scal=1.0", cwd=tmp_path, site=site, fails=True)
    assert "Did you mean model.resampler.scale?" in said
    said = _python(*command, "resampler.scale=-1.0", cwd=tmp_path, site=site, fails=True)
    assert "model.resampler.scale=-1.0" in said
    swapped = [word.replace("ToyProjector", "ToyCrop") for word in command]
    said = _python(*swapped, cwd=tmp_path, site=site, fails=True)
    assert "model.projector.type=toy_parts.parts:ToyCrop is no Projector: it has no __call__" in said
