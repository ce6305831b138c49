"""python -m panollava.train, as the README gives it: stages, families, sweeps, restarts, processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.runs import (
    QUICK,
    UNTRACKED,
    assert_same_bits,
    backbones,
    checkpoint_tensors,
    command,
    run_train,
    stage_folder,
)

from panollava import train
from panollava.checkpoint import BEST, follow, read_state
from panollava.data.world import WorldSource
from panollava.model.api import PanoLlava

Backbone = Callable[[str], Path]
PAIRS = [
    ("siglip", "qwen2", "mlp"),
    ("siglip2", "qwen3", "bimamba"),
    ("clip", "llama", "mlp"),
    ("dinov2", "llama", "mlp"),
    ("timm_vit", "mistral", "bimamba"),
]
SMALL_BIMAMBA = ["resampler.width=16", "resampler.state=4", "resampler.head_width=8"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def states(experiment: str) -> dict[str, str]:
    """Stage -> status of an experiment."""
    stages = json.loads(Path("runs", experiment, "stage_state.json").read_text("utf-8"))["stages"]
    return {key.partition("/")[0]: entry["status"] for key, entry in stages.items()}


def test_the_command_to_the_letter(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [*backbones(backbone), *QUICK, UNTRACKED]
    quick = [argument for argument in small if not argument.startswith("crop.overlap")] + SMALL_BIMAMBA
    typed = ["stage=vision", "resampler=bimamba", "crop.overlap=0.0"]
    done = subprocess.run(
        [sys.executable, "-m", "panollava.train", *typed, *quick], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (experiment,) = Path("runs").iterdir()
    assert experiment.name == "siglip_qwen3_bimamba_anyres-e2p_PE_ov000"
    assert [path.name for path in experiment.glob("*/*") if path.suffix != ".log"] == ["anyres-e2p_bimamba"]
    typed[1] = "model/resampler=bimamba"
    assert command(monkeypatch, train, *typed, *quick, "experiment_name=long") == 0
    written = [follow(stage_folder(name, "vision") / BEST) for name in (experiment.name, "long")]
    assert_same_bits(*(checkpoint_tensors(path) for path in written if path is not None))


@pytest.mark.parametrize(("vision", "language", "resampler"), PAIRS)
def test_three_stages_of_every_family(backbone: Backbone, vision: str, language: str, resampler: str) -> None:
    small = SMALL_BIMAMBA if resampler == "bimamba" else []
    asked = [*backbones(backbone, vision, language), *QUICK, UNTRACKED, f"resampler={resampler}", *small]
    # The format of models without a template opens with a sentence that fills a short text.
    asked += [f"stage.{name}.max_text_length=200" for name in ("resampler", "finetune")]
    run_train(*asked, "experiment_name=x", "trainer.max_steps=2")
    assert states("x") == dict.fromkeys(("vision", "resampler", "finetune"), "finished")
    tensors = {name: load_file(stage_folder("x", name) / BEST / "trained.safetensors") for name in states("x")}
    shared = [name for name in tensors["vision"] if name.startswith("vision.resampler.")]
    assert shared
    for name in shared:  # handed on, and trained further
        assert tensors["vision"][name].shape == tensors["resampler"][name].shape == tensors["finetune"][name].shape
        assert not torch.equal(tensors["resampler"][name], tensors["finetune"][name])
    assert {name.partition(".")[0] for name in tensors["finetune"]} == {"vision", "projector", "language_model"}
    assert all(".lora_" in name for name in tensors["finetune"] if name.startswith("language_model."))
    pano = PanoLlava.from_pretrained("runs/x")
    world = WorldSource(split="test", scenes=1)
    answers = [pano.generate(world.panorama(0), one.question, max_new_tokens=3) for one in world.questions()]
    assert len(answers) == 9
    assert (stage_folder("x", "finetune") / "lora_weights" / "adapter_model.safetensors").is_file()


def test_stage_one_needs_no_language_model(backbone: Backbone, tmp_path: Path) -> None:
    absent = f"language.name={tmp_path / 'absent'}"
    asked = [f"vision.name={backbone('siglip')}", absent, *QUICK, UNTRACKED, "trainer.max_steps=1"]
    run_train(*asked, "stage=vision", "experiment_name=eyes")
    assert states("eyes") == {"vision": "finished"}
    with pytest.raises(FileNotFoundError, match=r"model\.language\.name=.*absent"):
        run_train(*asked, "stage=all", "experiment_name=both")
    assert list(Path("runs/both").glob("*/*/*.ckpt")) == []


def test_starting_again(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*backbones(backbone), *QUICK, UNTRACKED, "stage=vision", "experiment_name=x"]
    run_train(*asked)
    before = checkpoint_tensors(stage_folder("x", "vision") / BEST)
    written = (stage_folder("x", "vision") / BEST).stat().st_mtime_ns
    capsys.readouterr()
    assert command(monkeypatch, train, *asked) == 0
    assert "Every stage of this config is finished already; overwrite=true" in capsys.readouterr().err
    assert (stage_folder("x", "vision") / BEST).stat().st_mtime_ns == written
    assert command(monkeypatch, train, *asked, "stage.vision.lr=0.5") == 1
    error = capsys.readouterr().err
    assert "stage.vision.lr: 0.001 there, 0.5 now" in error
    assert "experiment_name=" in error
    assert "overwrite=true" in error
    assert command(monkeypatch, train, *asked, "stage.vision.lr=0.5", "overwrite=true") == 0
    after = checkpoint_tensors(stage_folder("x", "vision") / BEST)
    weight = "trained.safetensors:vision.resampler.layers.0.weight"
    assert not torch.equal(before[weight], after[weight])


def test_finished_stages_are_not_trained_again(backbone: Backbone) -> None:
    asked = [*backbones(backbone), *QUICK, UNTRACKED, "experiment_name=x"]
    run_train(*asked, "stage=vision")
    vision = checkpoint_tensors(stage_folder("x", "vision") / BEST)
    run_train(*asked, "stage.run=[vision,resampler]")
    assert_same_bits(checkpoint_tensors(stage_folder("x", "vision") / BEST), vision)
    assert states("x") == {"vision": "finished", "resampler": "finished"}
    log = next((stage_folder("x", "resampler") / "logs").iterdir()).read_text("utf-8")
    assert f"Starting from {follow(stage_folder('x', 'vision') / BEST)}" in log


def test_a_stage_alone_says_that_it_starts_fresh(backbone: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    run_train(*backbones(backbone), *QUICK, UNTRACKED, "stage=resampler", "experiment_name=x", "trainer.max_steps=1")
    note = capsys.readouterr().err
    assert "Stage resampler starts fresh" in note
    assert "init_from=" in note
    assert "Starting from" not in note


def test_one_checkpoint_serves_runs_of_other_settings(backbone: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*backbones(backbone), *QUICK, UNTRACKED, "trainer.max_steps=1", "evaluation.enabled=false"]
    run_train(*asked, "stage=vision", "experiment_name=source", "resampler.width=20")
    other = ["crop.overlap=0.5", "resampler.width=20", "init_from=runs/source"]
    run_train(*asked, "stage=resampler", "experiment_name=overlap", *other)
    loaded = re.search(r"(\d+) tensors loaded", capsys.readouterr().err)
    assert loaded
    assert int(loaded[1]) >= 8
    run_train(*asked, "stage=resampler", "experiment_name=wide", "resampler.width=24", "init_from=runs/source")
    note = capsys.readouterr().err
    (line,) = [line for line in note.splitlines() if "tensors loaded" in line]
    assert re.search(r"\d+ of another shape .*, \d+ not in the checkpoint .*, \d+ in the checkpoint only", line)
    assert "(20, 32)" not in note
    logged = next(Path("runs/wide/resampler").glob("*/logs/*.log")).read_text("utf-8")
    assert "vision.resampler.layers.0.weight (20, 32) -> (24, 32)" in logged


def test_a_dry_run_keeps_nothing(
    backbone: Backbone, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    run_train(*backbones(backbone), *QUICK, "dry_run=true")
    note = capsys.readouterr().err
    assert "one batch went through each stage; nothing was kept" in note
    for name in ("vision", "resampler", "finetune"):
        assert f"{name} step 1: validation" in note
    assert [path for path in Path().rglob("*") if path.name != "temporary"] == []


def test_a_stage_without_anything_to_learn_is_left_out(backbone: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    whole = [argument for argument in QUICK if not argument.startswith("crop.")]
    asked = [*backbones(backbone), *whole, UNTRACKED, "crop=resize", "trainer.max_steps=1", "experiment_name=x"]
    run_train(*asked, "stage.run=[vision,resampler]", "evaluation.enabled=false")
    assert "Stage vision is left out: no view of this crop has a neighbour" in capsys.readouterr().err
    assert states("x") == {"vision": "skipped", "resampler": "finished"}
    run_train(*asked, "stage.run=[vision,resampler]", "evaluation.enabled=false")
    assert "Every stage of this config is finished already" in capsys.readouterr().err


def test_two_processes_train_the_same_model(backbone: Backbone) -> None:
    asked = [*backbones(backbone), *QUICK, UNTRACKED, "optim.eps=1.0", "stage.run=[vision,resampler]"]
    asked += ["evaluation.max_samples=2"]
    sizes = "stage.vision.batch_size={0} stage.resampler.batch_size={0} experiment_name={1}"
    run_train(*asked, *sizes.format(8, "one").split())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    arguments = [*launcher, "panollava.train", *asked, *sizes.format(4, "two").split()]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Test split, 2 questions") == 1
    for stage in ("vision", "resampler"):
        one, two = (follow(stage_folder(name, stage) / BEST) for name in ("one", "two"))
        assert one is not None
        assert two is not None
        assert read_state(two)["validation_loss"] == pytest.approx(read_state(one)["validation_loss"], rel=1e-4)
        weights, others = (load_file(path / "trained.safetensors") for path in (one, two))
        assert weights.keys() == others.keys()
        for name in weights:
            torch.testing.assert_close(others[name], weights[name], rtol=1e-4, atol=1e-5, msg=f"{stage}: {name}")
