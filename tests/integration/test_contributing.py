"""CONTRIBUTING.md works as written: in a copy of the repository its example is tested and trained, and what its table
of additions lists is added by touching the files it names.
"""

from __future__ import annotations

import os
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

OPTION = "# A toy.\ntype: toy\n"
EXAMPLE = {MODULE, CONFIG, CONTRACT}
"""Files of the example, which is a resampler and has a key of its own, ``dropout``."""
ADDITIONS: dict[str, dict[str, str | tuple[str, str]]] = {
    "a crop": {
        "panollava/crop/strategies.py": '\n\nclass ToyCrop(E2pCrop):\n    """A toy."""\n',
        "conf/crop/toy.yaml": f"{OPTION}overlap: 0.25\nview_size: null\nrenderer: cv2\ndevice: cpu\n"
        "panorama_fov_deg: null\n",
    },
    "a position code": {
        "panollava/model/position.py": '\n\nclass ToyPosition(NonePosition):\n    """A toy."""\n',
        "conf/model/position/toy.yaml": OPTION,
    },
    "a projector": {
        "panollava/model/projector.py": '\n\nclass ToyProjector(LinearProjector):\n    """A toy."""\n',
        "conf/model/projector/toy.yaml": f"{OPTION}input_norm: true\n",
    },
    "an objective of stage 1": {
        "panollava/losses/objective/toy.py": "from panollava.losses.objective.vicreg import VicregObjective\n\n\n"
        "class ToyObjective(VicregObjective):\n    pass\n",
        "conf/objective/toy.yaml": f"# @package stage.vision.loss\n{OPTION}head_width: null\ncovariance: 2.0\n",
    },
    "a metric": {
        "panollava/evaluation/toy.py": "from panollava.evaluation.metrics import Metric\n\n\n"
        "class Toy(Metric):\n    name = 'toy'\n",
        "panollava/evaluation/metrics.py": (
            r"(METRICS = \{.*?)(\n\})",
            r'\1\n    "toy": "panollava.evaluation.toy:Toy",\2',
        ),
    },
    "a data source": {
        "panollava/data/toy.py": "from panollava.data.world import WorldSource\n\n\n"
        "class ToySource(WorldSource):\n    pass\n",
        "conf/data/toy.yaml": "# A toy.\ndefaults:\n  - world\n  - _self_\ntype: toy\nname: toy\n",
    },
    "a data set of CSV or JSON files": {
        "conf/data/toy_files.yaml": "# A toy.\ndefaults:\n  - csv\n  - _self_\nname: toy_files\ndir: data/toy\n"
    },
    "a stage": {
        "panollava/stages/toy.py": "from panollava.stages.language import InstructStage\n\n\n"
        "class ToyStage(InstructStage):\n    pass\n",
        "panollava/stages/registry.py": (
            r"(STAGES = \{.*?)(\n    \)\n\})",
            r'\1\n        StageRecord("toy", "panollava.stages.toy:ToyStage", "text", ("resampler",)),\2',
        ),
        "conf/stage/settings/default.yaml": "toy:\n  epochs: 1\n  batch_size: 4\n  accumulate: 1\n  lr: 1e-3\n"
        "  max_text_length: 64\n",
    },
    "a command": {
        "panollava/toy.py": "from panollava.config.entrypoint import entrypoint\nfrom panollava.logs import say\n\n\n"
        '@entrypoint("toy")\ndef main(cfg):\n    say(f"a toy of {cfg.material}")\n\n\n'
        'if __name__ == "__main__":\n    main()\n',
        "conf/toy.yaml": "# python -m panollava.toy\ndefaults:\n  - _self_\n  - override hydra/job_logging: none\n"
        "material: wood\nhydra:\n  output_subdir: null\n  run:\n    dir: .\n",
    },
}
"""Row of the table -> file -> its text, the text at its end, or a pattern and what stands in its place."""
CHECK = """
from support.runs import config
from panollava.evaluation.metrics import find_metrics
from panollava.run.config_check import checked
from panollava.stages.registry import STAGES

chosen = ["resampler=linear", "crop=toy", "position=toy", "projector=toy", "objective=toy", "data=toy"]
cfg = checked(config(*chosen, "stage.run=[vision,resampler,toy]"))
parts = [cfg.model.resampler, cfg.crop, cfg.model.position, cfg.model.projector, cfg.stage.vision.loss, cfg.data]
assert [part.type for part in parts] == ["linear", *["toy"] * 5], parts
assert STAGES["toy"].stage_class.__name__ == "ToyStage"
assert checked(config("data=toy_files")).data.test_csv == "data/toy/test.csv"
assert find_metrics(None, "metrics")[-1].name == "toy"
for wrong in ("crop.overlap=2", "projector.input_norm=3", "objective.covariance=-1", "data.train_scenes=-1"):
    try:
        checked(config(*chosen, wrong))
    except ValueError as error:
        assert wrong.partition(".")[2] in str(error), error
    else:
        raise SystemExit(f"{wrong} was not refused")
"""


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


def test_the_example_passes_ruff(clone: Path) -> None:
    command = [sys.executable, "-m", "ruff", "--config", str(ROOT / "pyproject.toml")]
    for check in ("check", "format"):
        options = ["--no-cache", *(["--check"] if check == "format" else [])]
        arguments = [*command[:3], check, *command[3:], *options, str(clone / MODULE)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_the_table_of_additions_names_the_files_of_each() -> None:
    table = GUIDE.split("<!-- additions -->")[1].split("<!-- /additions -->")[0].strip().splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    added = {name: set(files) for name, files in ADDITIONS.items()} | {
        "a resampler": EXAMPLE,
        "a key of an option": {MODULE, CONFIG},
    }
    assert len(rows) == len(added)
    for label, touched, count, _ in rows:
        name = re.sub(r"\[(.*)\]\(.*\)", r"\1", label)
        places = added[name]
        type = "linear" if places <= EXAMPLE else "toy_files" if len(places) == 1 else "toy"
        assert {path.replace("<type>", type) for path in re.findall(r"`(.+?)`", touched)} == places, name
        assert int(count) == len(places), name


def test_everything_in_the_table_can_be_added(clone: Path) -> None:
    for files in ADDITIONS.values():
        for path, text in files.items():
            old = (clone / path).read_text("utf-8") if (clone / path).exists() else ""
            new, count = (old + text, 1) if isinstance(text, str) else re.subn(*text, old, count=1, flags=re.DOTALL)
            assert count == 1, path
            (clone / path).write_text(new, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(clone), str(clone / "tests")])}
    for command, said in ((["-c", CHECK], ""), (["-m", "panollava.toy", "material=tin"], "a toy of tin")):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert said in done.stdout


def test_the_commands_are_those_of_the_makefile() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"make (\w+) +#", GUIDE)) <= set(targets)
    assert (ROOT / ".ci/run").is_file()
