"""Every crop by its config: the names it gives a run, and a dry run of all stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.runs import QUICK, UNTRACKED, backbones, config, run_train

from panollava.run.run import default_name, setting

CROPS = [
    (("crop=anyres_e2p",), "anyres-e2p", ""),
    (("crop=anyres_e2p", "crop.overlap=0.0"), "anyres-e2p", "_ov000"),
    (("crop=e2p", "crop.pitch_rows_deg=[-45,0,45]"), "e2p", ""),
    (("crop=sliding_window", "crop.overlap=0.25"), "sliding-window", "_ov025"),
    (("crop=sliding_window", "crop.fov_deg=180"), "sliding-window", ""),
    (("crop=anyres", "crop.grids=[[1,2],[2,4]]"), "anyres", ""),
    (("crop=anyres_max", "crop.max_tiles=4"), "anyres-max", ""),
    (("crop=cubemap", "crop.poles=true"), "cubemap", ""),
    (("crop=resize",), "resize", ""),
    (("crop=adaptive",), "adaptive", ""),
]
"""Arguments, the crop's word in names, and the end of the experiment's name."""


@pytest.mark.parametrize(("arguments", "word", "end"), CROPS)
def test_a_crop_names_folder_and_experiment(arguments: tuple[str, ...], word: str, end: str) -> None:
    cfg = config(*arguments)
    assert setting(cfg) == f"{word}_mlp"
    assert default_name(cfg).endswith(f"_mlp_{word}_PE{end}")


@pytest.mark.parametrize(
    ("arguments", "views", "has_ring"),
    [
        (("crop=sliding_window", "crop.overlap=0.0"), "4 views of 32x32 pixels, effective overlap 0.000", True),
        (("crop=anyres", "crop.max_tiles=2"), "3 views", True),
        (("crop=anyres", "crop.max_tiles=1"), "2 views", False),
    ],
    ids=["sliding_window", "anyres", "anyres-no-ring"],
)
def test_a_crop_goes_through_every_stage(
    backbone: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    views: str,
    has_ring: bool,
) -> None:
    """Stage 1 needs neighbours, and is left out with its reason where a crop has none."""
    monkeypatch.chdir(tmp_path)
    quick = [argument for argument in QUICK if not argument.startswith("crop.")]
    run_train(*backbones(backbone), *quick, UNTRACKED, "dry_run=true", *arguments)
    said = capsys.readouterr().err
    assert views in said
    assert ("Stage vision is left out: no view of this crop has a neighbour" in said) is not has_ring
    assert "Stage finetune trains" in said
