"""What the README shows works: its commands, its Python, its tables, its tree of files."""

from __future__ import annotations

import importlib
import io
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import cv2
import numpy as np
import pytest
from hydra.core.hydra_config import HydraConfig
from mlflow.tracking import MlflowClient
from support import ROOT
from support.benchmark_files import Fixture
from support.runs import backbones, command
from torch.distributed.run import get_args_parser
from transformers import AutoModelForImageTextToText, AutoProcessor

from panollava.data.csv import ALIASES
from panollava.data.world import WorldSource

README, OPTIONS = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "conf/README.md"))
WORLD = ("data.train_scenes=4", "data.val_scenes=2", "data.test_scenes=1")
SMALL = (
    "trainer.max_steps=1",
    "trainer.num_workers=0",
    "trainer.device=cpu",
    "stage.vision.batch_size=4",
    "stage.resampler.batch_size=4",
    "stage.finetune.batch_size=4",
    "evaluation.max_samples=2",
    "evaluation.max_new_tokens=4",
)
"""Appended to every training command, so that it takes seconds; a later argument wins over an earlier one."""
KEPT = ("experiment_name=demo", "init_from=", "stage=vision")
"""Commands that run whole; others only try their path (``dry_run=true``)."""
OTHER = re.compile(r"python -m panollava\.(predict|chat|certify|compare|score|explain|export|check|features)\b")


def blocks(language: str, text: str = README) -> list[str]:
    """The README's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Command lines of the bash blocks without their comments, in order."""
    lines = "\n".join(blocks("bash")).splitlines()
    return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def table(name: str, text: str = README) -> list[list[str]]:
    """Rows of the table between ``<!-- name -->`` marks, without its head."""
    rows = text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the README's finished demo run, its panorama and its data sets, all small."""
    folder = tmp_path_factory.mktemp("readme")
    world = WorldSource(split="test", scenes=1)
    _write_data(folder / "my_data", world.panorama(0), "val")
    _write_data(folder / "data" / "quic360", world.panorama(0), "valid")
    _write_talks(folder / "my_talks", world.panorama(0))
    Fixture("panospace", folder / "data" / "panospace")
    cv2.imwrite(str(folder / "panorama.jpg"), world.panorama(0)[..., ::-1])
    (folder / "ask.csv").write_text("image,query\npanorama.jpg,what is behind?\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert _run(patch, "python -m panollava.train experiment_name=demo", *WORLD, *SMALL) == 0
        yield folder
    HydraConfig.instance().cfg = None  # a sweep's mode would stay for tests that run without Hydra


def _write_data(folder: Path, panorama: np.ndarray, validation: str) -> None:
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "one.jpg"), panorama[..., ::-1])
    for split in ("train", validation, "test"):
        rows = "one.jpg,ring,a red ring\none.jpg,ball,a white ball\n"
        (folder / f"{split}.csv").write_text(f"url,query,annotation\n{rows}", encoding="utf-8")


def _write_talks(folder: Path, panorama: np.ndarray) -> None:
    folder.mkdir()
    cv2.imwrite(str(folder / "one.jpg"), panorama[..., ::-1])
    turns = [{"human": "where?", "assistant": "left"}, {"human": "which colour?", "assistant": "red"}]
    for split in ("train", "val", "test"):
        entry = {"image_path": "one.jpg", "conversations": turns}
        (folder / f"{split}.json").write_text(json.dumps([entry, entry]), encoding="utf-8")


def _run(patch: pytest.MonkeyPatch, line: str, *more: str) -> int:
    module, *arguments = shlex.split(line)[2:]
    return command(patch, importlib.import_module(module), *arguments, *more)


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("python -m panollava.train")])
def test_training_command(
    line: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, backbone: Callable[[str], Path]
) -> None:
    monkeypatch.chdir(workspace)
    more = [*SMALL, *(WORLD if "data=" not in line else ())]
    if "model=" in line:
        more += backbones(backbone, language="qwen2")
    if "-m resampler=" in line:
        assert _run(monkeypatch, line, *more, "stage=vision") == 0
        _check_sweep()
    elif "hydra/launcher" in line:  # where it needs no extra: test_sweep.py has the launchers
        assert _run(monkeypatch, line.partition(" seed=")[0], *more, "stage=vision") == 0
    elif "--help" in line or "--cfg" in line:
        assert _run(monkeypatch, line) == 0
    elif "+debug" in line or any(word in line for word in KEPT):
        assert _run(monkeypatch, line, *more) == 0
    else:
        assert _run(monkeypatch, line, *more, "dry_run=true") == 0


def _check_sweep() -> None:
    """Four finished jobs under one finished parent, in the store that a plain ``mlflow ui`` opens here."""
    client = MlflowClient(f"sqlite:///{Path('mlflow.db').resolve()}")  # a relative one is remembered within a process
    experiment = client.get_experiment_by_name("panollava")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_name.startswith("sweep")]
    jobs = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {run.info.status for run in (parent, *jobs)} == {"FINISHED"}
    chosen = {(run.data.params["model.resampler.type"], run.data.params["crop.overlap"]) for run in jobs}
    assert chosen == {("mlp", "0.0"), ("mlp", "0.5"), ("bimamba", "0.0"), ("bimamba", "0.5")}
    assert len(list(Path("runs").glob("sweep*/*/vision/*/best.ckpt"))) == 4


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("python -m panollava.eval")])
def test_evaluation_command(
    line: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    shutil.rmtree("results")  # two evaluations within a second would share a folder
    small = ["max_samples=9", "max_new_tokens=4", "num_workers=0", "device=cpu"]
    is_world = "csv_input" not in line and "benchmark" not in line
    assert _run(monkeypatch, line, *small, *(["world_scenes=1"] if is_world else [])) == 0
    (folder,) = Path("results/eval_results/demo").glob("predictions_*")
    assert (folder / "metrics.json").is_file()
    assert (folder / "predictions.csv").is_file()
    assert ("follow the rotation" in capsys.readouterr().err) == ("turn_deg" in line)


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("python -m panollava.gallery")])
def test_gallery_command(line: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    assert _run(monkeypatch, line) == 0
    name = next((word.partition("=")[2] for word in shlex.split(line) if word.startswith("out=")), "gallery.png")
    assert cv2.imread(name) is not None


@pytest.mark.parametrize("line", [line for line in commands() if OTHER.match(line)])
def test_command_on_a_finished_run(
    line: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace)
    if "compare" in line:  # a second run, which the README trains under this name
        shutil.copytree("runs/demo", "runs/rank32", symlinks=True, dirs_exist_ok=True)
    if "runs/boxes" in line:
        (training,) = [one for one in commands() if "experiment_name=boxes" in one]
        assert _run(monkeypatch, training, *WORLD, *SMALL, "stage.detect.epochs=1") == 0
    if "score" in line:
        shutil.copy(next(Path("results").rglob("predictions.csv")), "predictions.csv")
    monkeypatch.setattr("sys.stdin", io.StringIO("what is there?\n/quit\n"))
    known = {"predict": ["max_new_tokens=4", "device=cpu"], "chat": ["max_new_tokens=4", "device=cpu"]}
    known |= {
        "compare": ["max_samples=4", "num_workers=0", "device=cpu"],
        "explain": ["max_new_tokens=4", "device=cpu"],
        "certify": ["only=[yaw]", "max_pictures=1", "device=cpu"],
    }
    assert _run(monkeypatch, line, *known.get(line.split()[2].removeprefix("panollava."), [])) == 0
    said = capsys.readouterr()
    assert said.out + said.err


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("python -m panollava.serve")])
def test_serve_command(line: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    if not Path("runs/rank32").exists():
        shutil.copytree("runs/demo", "runs/rank32", symlinks=True)
    listening = []
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: listening.append(sockets[0].getsockname()))
    assert _run(monkeypatch, line, "port=0", "device=cpu") == 0
    assert listening[0][0] == "127.0.0.1"


def test_python(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(workspace)
    answering, training = blocks("python")
    exec(compile(answering, "README.md", "exec"), {})
    assert capsys.readouterr().out.endswith("\n")
    AutoModelForImageTextToText.from_pretrained("export")
    AutoProcessor.from_pretrained("export")
    splits = {"train": WorldSource(split="train", scenes=4), "val": WorldSource(split="val", scenes=2)}
    exec(compile(training, "README.md", "exec"), splits)
    assert (workspace / "runs/mine/finetune/anyres-e2p_mlp/best.ckpt").exists()


def test_the_record_on_disk(workspace: Path) -> None:
    (tree,) = [block for block in blocks("text", OPTIONS) if "stage_state.json" in block]
    stage = workspace / "runs/demo/finetune/anyres-e2p_mlp"
    listed = set(re.findall(r"[\w.]+\.(?:json|yaml|png|ckpt|safetensors|db|csv)\b(?!\.)|lora_weights|mlruns", tree))
    there = {path.name for path in workspace.rglob("*")}
    checkpoint = "NNNN.ckpt"
    assert listed - there == {next(name for name in listed if name.endswith(checkpoint))}
    assert list(stage.glob("tiny-siglip_mlp_anyres-e2p_world_epoch01_loss*.ckpt"))
    assert list(stage.glob("logs/finetune_*.log"))
    assert list((workspace / "runs/demo/logs").glob("full_pipeline_*.log"))


def test_every_other_command_is_what_it_says() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipes = dict(re.findall(r"^(\w+): .*\n\t\$\(BIN\)/(.+)$", makefile, re.MULTILINE))
    scripts = {script.name for script in entry_points(group="console_scripts")}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for line in commands():
        match shlex.split(line):
            case ["make", target]:
                assert recipes[target] in commands()
            case ["pip", "install", "-c", constraints, "-e", extra]:
                assert (ROOT / constraints).is_file()
                assert extra.removeprefix(".[").removesuffix("]") in extras
            case ["torchrun", *arguments]:
                parsed = get_args_parser().parse_args(arguments)
                assert (parsed.module, parsed.training_script) == (True, "panollava.train")
            case ["mlflow" | "hf" as script, *_]:
                assert script in scripts
            case ["python3" | "python", "-m", "venv" | "pytest", *_] | [".", ".venv/bin/activate"]:
                pass
            case ["python", "-m", "panollava.train" | "panollava.eval" | "panollava.gallery" | "panollava.serve", *_]:
                pass
            case ["python", "-m", _, *_] if OTHER.match(line):
                pass
            case _:
                pytest.fail(f"the README has a command that no test knows: {line}")


def test_windows_has_two_other_commands() -> None:
    linux = next(block for block in blocks("bash") if "-m venv" in block).strip().splitlines()
    assert linux[:2] == ["python3 -m venv .venv", ". .venv/bin/activate"]
    assert r"On Windows the first two lines are `py -m venv .venv` and `.venv\Scripts\activate`." in README


def test_columns_are_those_of_the_reader() -> None:
    shown = [tuple(re.findall(r"`([^`]+)`", column + others)) for column, others in table("columns", OPTIONS)]
    assert shown == list(ALIASES.values())


def test_is_short() -> None:
    assert len(README.splitlines()) <= 300
