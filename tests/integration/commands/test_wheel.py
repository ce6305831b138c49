"""A wheel carries all that a run needs: installed outside the repository, it shows its config and trains."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the repository."""
    folder = tmp_path_factory.mktemp("dist")
    _python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    (file,) = folder.glob("panollava-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing of the repository."""
    folder = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", "--target", str(folder)]
    _python("-m", "pip", "install", *options, str(wheel), cwd=folder)
    return folder


def _python(*arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path or "")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_config_backbones_and_fonts_travel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"panollava/_conf/{file.relative_to(ROOT / 'conf').as_posix()}" for file in ROOT.glob("conf/**/*.yaml")}
    tiny = {
        file.relative_to(ROOT).as_posix() for file in ROOT.glob("panollava/tiny/*/*") if "__pycache__" not in str(file)
    }
    assert "panollava/_conf/train.yaml" in configs
    assert {"panollava/tiny/vision/model.safetensors", "panollava/tiny/language/tokenizer.json"} <= tiny
    fonts = {f"panollava/evaluation/fonts/{name}" for name in ("NotoSansKR-Regular.ttf", "OFL.txt")}
    assert (configs | tiny | fonts) - names == set()
    assert {name.split("/")[0] for name in names if not name.startswith("panollava-")} == {"panollava"}


def test_shows_its_config(installed: Path, tmp_path: Path) -> None:
    shown = _python("-m", "panollava.train", "--cfg", "job", cwd=tmp_path, path=installed).stdout
    assert "type: anyres_e2p" in shown
    assert "${" not in shown.replace("${output_dir}", "")


def test_trains(installed: Path, tmp_path: Path) -> None:
    where = "import panollava; print(panollava.__file__)"
    assert _python("-c", where, cwd=tmp_path, path=installed).stdout.startswith(str(installed))
    small = ["data.train_scenes=4", "data.val_scenes=2", "data.test_scenes=1", "trainer.num_workers=0"]
    small += ["trainer.device=cpu", "trainer.max_steps=1", "evaluation.max_samples=2", "evaluation.max_new_tokens=4"]
    done = _python("-m", "panollava.train", "experiment_name=wheel", *small, cwd=tmp_path, path=installed)
    assert "Stage finetune:" in done.stderr
    assert (tmp_path / "runs/wheel/finetune/anyres-e2p_mlp/best.ckpt").exists()
    assert list(tmp_path.glob("results/eval_results/wheel/*/predictions.csv"))
