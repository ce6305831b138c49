"""``python -m panollava <command>`` and the program ``panollava`` as processes: one job, a sweep, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import ROOT
from support.runs import QUICK

from panollava import __main__

SCRIPT = "import sys\nfrom panollava.__main__ import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
"""What an installer writes for an entry of ``[project.scripts]``."""
SMALL = (*QUICK, "tracking=none", "trainer.max_steps=1", "evaluation.enabled=false", "stage=finetune")


@pytest.fixture(params=["module", "script"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """How the program is started."""
    if request.param == "module":
        return ["-m", "panollava"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "panollava").write_text(SCRIPT, encoding="utf-8")
    return [str(tmp_path / "bin" / "panollava")]


def started(*words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """A finished process with an exit status."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def test_list_version_and_a_wrong_name(program: list[str]) -> None:
    assert "\n  train " in started(*program).stdout
    assert started(*program, "--version").stdout.startswith("panollava ")
    assert "Did you mean predict?" in started(*program, "predct", "runs/x", status=2).stderr


def test_a_command_is_the_same_as_its_module(program: list[str]) -> None:
    one, other = (started(*each, "--cfg", "all").stdout for each in ([*program, "train"], ["-m", "panollava.train"]))
    assert one == other
    shown = started(*program, "explain", "runs/x", "a b.jpg", "is a=b, 뒤에?", "--cfg", "job").stdout
    assert "image: a b.jpg\nquestion: is a=b, 뒤에?\n" in shown
    assert "Here that is lora.rank=16." in started(*program, "train", "--lora-r", "8", status=1).stderr


@pytest.mark.skipif(find_spec("hydra_plugins.hydra_joblib_launcher") is None, reason="needs the extra joblib")
def test_a_sweep_of_jobs_at_once(program: list[str]) -> None:
    launcher = ("hydra/launcher=parallel", "hydra.launcher.n_jobs=2", "experiment_name=both")
    started(*program, "train", "-m", "seed=0,1", *launcher, *SMALL)
    jobs = {
        file.parent.name: json.loads(file.read_text("utf-8"))["status"] for file in Path("runs/both").glob("*/job.json")
    }
    assert jobs == {"seed-0": "finished", "seed-1": "finished"}


def test_several_processes() -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    started(*torchrun, "-m", "panollava", "train", "experiment_name=two", *SMALL)
    assert list(Path("runs/two/finetune").glob("*/best.ckpt"))


def test_the_program_is_declared() -> None:
    assert 'panollava = "panollava.__main__:main"' in (ROOT / "pyproject.toml").read_text("utf-8")
    assert callable(__main__.main)
