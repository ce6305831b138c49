"""Features are made once for all that sees in the same way: the runs, their evaluation, and the command that fills."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.runs import (
    QUICK,
    UNTRACKED,
    assert_same_bits,
    backbones,
    checkpoint_tensors,
    command,
    predictions,
    run_train,
    stage_folder,
)

from panollava import eval as evaluation
from panollava import features
from panollava.model.vision import VisionTower

STAGES = ("vision", "resampler", "finetune")
SCENES = 12 + 4 + 1
BLANK = 1


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Views of each call of the encoder."""
    seen: list[int] = []
    forward = VisionTower.forward

    def counted(self: VisionTower, pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        return forward(self, pixels)

    monkeypatch.setattr(VisionTower, "forward", counted)
    return seen


def test_each_panorama_is_encoded_once_for_runs_evaluations_and_the_command(
    backbone: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    calls: list[int],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Fresh or read, with workers or without, the bits are the same; cleared, all is made again."""
    monkeypatch.chdir(tmp_path)
    quick = [*backbones(backbone), *QUICK, UNTRACKED]
    run_train(*quick, "experiment_name=fresh")
    assert calls == [5] * (SCENES + BLANK)
    run_train(*quick, "experiment_name=read", "store.verify=true", "trainer.num_workers=1")
    assert len(calls) == SCENES + BLANK
    for stage in STAGES:
        fresh, read = (checkpoint_tensors(stage_folder(name, stage) / "last.ckpt") for name in ("fresh", "read"))
        assert_same_bits(fresh, read)
    assert predictions("fresh") == predictions("read")

    assert command(monkeypatch, evaluation, "runs/fresh", "tracking=none", "device=cpu", "num_workers=0") == 0
    assert len(calls) == SCENES + BLANK
    assert command(monkeypatch, features) == 0
    assert "siglip_anyres-e2p_float32_" in (told := capfd.readouterr().out)
    assert f"{SCENES + BLANK} panoramas" in told
    assert command(monkeypatch, features, "clear", "name=dinov2") == 0
    assert "0 stores removed" in capfd.readouterr().out
    for meant in (["name="], ["model=siglip_qwen"], ["crop.overlap=0.0"], ["list"]):  # none of them is "all"
        assert command(monkeypatch, features, "clear", *meant) == 1
    assert "crop.overlap=0.0 is for warm; clear chooses stores by name=" in capfd.readouterr().err
    assert command(monkeypatch, features, "name=dinov2") == 0
    assert "0 stores, 0 bytes of at most 50 GiB" in capfd.readouterr().out
    assert command(monkeypatch, features, "clear") == 0
    shown = [a for a in quick if a.startswith(("model/", "vision", "language", "data", "crop", "trainer"))]
    assert command(monkeypatch, features, "warm", *shown) == 0
    assert len(calls) == SCENES + BLANK + SCENES
    assert command(monkeypatch, features, "warm", *shown, "splits=[train]") == 0
    assert len(calls) == SCENES + BLANK + SCENES


def test_filling_ends_where_it_would_be_in_vain(
    backbone: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    calls: list[int],
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    small = [f"vision.name={backbone('siglip')}", "data.train_scenes=12", "splits=[train]", "trainer.num_workers=0"]
    assert command(monkeypatch, features, "warm", *small, "store.max_gib=1e-6") == 1
    assert len(calls) == 4  # a batch
    assert "holds 0 panoramas, and nothing more can be kept" in capfd.readouterr().err
    Path("file").touch()
    assert command(monkeypatch, features, "warm", *small, "store.dir=file") == 1
    assert "store.dir=file cannot be used" in (told := capfd.readouterr().err)
    assert "store.enabled" not in told


def test_without_the_store_the_losses_are_the_same_within_rounding(
    backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = [*backbones(backbone), *QUICK, UNTRACKED, "stage=vision"]
    for name, enabled in (("on", True), ("off", False)):
        run_train(*quick, f"experiment_name={name}", f"store.enabled={enabled}")
    on, off = (checkpoint_tensors(stage_folder(name, "vision") / "last.ckpt") for name in ("on", "off"))
    for name in on:
        torch.testing.assert_close(on[name], off[name], rtol=1e-3, atol=1e-4)
    assert len(list((tmp_path / "cache" / "features").glob("*/store.json"))) == 1


def test_a_resumed_run_may_have_another_store(
    backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = [*backbones(backbone), *QUICK, UNTRACKED, "stage=vision", "experiment_name=x"]
    run_train(*quick)
    run_train(*quick, "stage.vision.epochs=2", "store.max_gib=1", "store.dir=elsewhere")
    assert (tmp_path / "elsewhere").is_dir()
