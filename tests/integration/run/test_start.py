"""Where a stage's first weights come from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.runs import QUICK, UNTRACKED, backbones, opened, run_train

from panollava.checkpoint import follow, weights_digest
from panollava.run.build_stage import check_start
from panollava.run.conditions import STARTED_WEIGHTS

SMALL_BIMAMBA = ["resampler.width=16", "resampler.state=4", "resampler.head_width=8"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_overlay_goes_on_from_the_newest_vision_stage_that_suits(backbone: Callable[[str], Path]) -> None:
    quick = [argument for argument in QUICK if not argument.startswith("crop.overlap")]
    asked = [*backbones(backbone), *quick, UNTRACKED, "trainer.max_steps=1", "evaluation.enabled=false"]
    overlay = [*asked, "+experiment=bimamba_overlap0", *SMALL_BIMAMBA, "experiment_name=late"]
    run_train(*asked, "stage=vision", "experiment_name=other")
    with opened(*overlay) as run, pytest.raises(ValueError, match="stage=vision resampler=bimamba") as refused:
        check_start(run, "resampler")
    assert "runs/other/vision/anyres-e2p_mlp" in str(refused.value)
    run_train(*asked, "stage=vision", "experiment_name=seen", "resampler=bimamba", *SMALL_BIMAMBA)
    run_train(*overlay)
    stages = json.loads(Path("runs/late/stage_state.json").read_text("utf-8"))["stages"]
    assert [key.partition("/")[0] for key in stages] == ["resampler", "finetune"]
    best = follow(Path("runs/seen/vision/anyres-e2p_bimamba/best.ckpt"))
    assert stages["resampler/anyres-e2p_bimamba"]["started_from"] == str(best)
    assert stages["finetune/anyres-e2p_bimamba"]["started_from"].startswith("runs/late/resampler/")


def test_of_a_whole_experiment_the_stage_before_is_taken(backbone: Callable[[str], Path]) -> None:
    asked = [*backbones(backbone), *QUICK, UNTRACKED, "trainer.max_steps=1", "evaluation.enabled=false"]
    run_train(*asked, "stage.run=[vision,resampler]", "experiment_name=both")
    run_train(*asked, "stage=resampler", "experiment_name=again", "init_from=runs/both")
    (state,) = json.loads(Path("runs/again/stage_state.json").read_text("utf-8"))["stages"].values()
    assert state["started_from"].startswith("runs/both/vision/")
    assert state[STARTED_WEIGHTS] == weights_digest(Path(state["started_from"]))
    for checkpoint in Path("runs/both/resampler").glob("*/*.ckpt"):
        checkpoint.unlink() if checkpoint.is_symlink() else shutil.rmtree(checkpoint)
    for listed in ("stage=finetune", "stage.run=[resampler,finetune]"):
        with opened(*asked, listed, "experiment_name=both") as run, pytest.raises(ValueError, match="are gone, so"):
            check_start(run, "finetune")
    with opened(*asked, "stage=finetune", "experiment_name=both", "init_from=none") as run:
        check_start(run, "finetune")
