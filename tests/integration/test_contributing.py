"""The example of CONTRIBUTING.md works as written: put in place in a copy of the repository, tested and trained."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MODULE, CONFIG, CONTRACT = (
    "panollava/model/resampler/linear.py",
    "conf/model/resampler/linear.yaml",
    "tests/unit/model/resampler/test_resampler.py",
)


def example(path: str) -> str:
    """The block whose first line names ``path``."""
    (text,) = re.findall(rf"^```\w+\n# {re.escape(path)}[^\n]*\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    return text


def run(clone: Path, line: str, *more: str) -> subprocess.CompletedProcess[str]:
    """A command of the guide in the copy, whose package comes first because the working directory does."""
    assert line in GUIDE
    arguments = [sys.executable, *shlex.split(line)[1:], *more]
    return subprocess.run(arguments, cwd=clone, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the example in place."""
    copy = tmp_path_factory.mktemp("clone")
    skip = shutil.ignore_patterns("__pycache__")
    for folder in ("panollava", "conf", "tests/support", "tests/unit/model/resampler"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=skip)
    for file in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / file, copy / file)
    for path in (MODULE, CONFIG):
        (copy / path).write_text(example(path), encoding="utf-8")
    contract = copy / CONTRACT
    text, count = re.subn(
        r"^(SMALL: .*\{\n)", rf"\1{example(CONTRACT)}", contract.read_text(encoding="utf-8"), flags=re.M
    )
    assert count == 1
    contract.write_text(text, encoding="utf-8")
    return copy


def test_the_example_passes_what_every_resampler_must(clone: Path) -> None:
    done = run(clone, "python -m pytest tests/unit/model/resampler -k linear", "--no-header", "-rN")
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 8


def test_the_example_trains_and_is_checked(clone: Path) -> None:
    line = "python -m panollava.train resampler=linear dry_run=true"
    small = (
        "data.train_scenes=4",
        "data.val_scenes=2",
        "trainer.device=cpu",
        "stage=vision",
        "evaluation.enabled=false",
    )
    done = run(clone, line, *small)
    assert done.returncode == 0, done.stderr
    assert "Stage vision trains" in done.stderr
    refused = run(clone, line, *small, "resampler.dropout=1.5")
    assert refused.returncode == 1
    assert "model.resampler.dropout=1.5" in refused.stderr


def test_the_example_is_written_as_the_house_writes(clone: Path) -> None:
    command = [sys.executable, "-m", "ruff", "--config", str(ROOT / "pyproject.toml")]
    for check in ("check", "format"):
        options = ["--no-cache", *(["--check"] if check == "format" else [])]
        arguments = [*command[:3], check, *command[3:], *options, str(clone / MODULE)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_commands_are_those_of_the_makefile() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"make (\w+) +#", GUIDE)) <= set(targets)
    assert (ROOT / ".ci/run").is_file()
