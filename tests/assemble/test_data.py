"""What a run makes of its data: changed pictures for training alone, refused where texts might become wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import QUICK, UNTRACKED, backbones, config, opened

from panollava.assemble.check import checked


def test_training_pictures_change_and_no_others(
    backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [*backbones(backbone), *QUICK, UNTRACKED, "dry_run=true", "stage=vision", "evaluation.enabled=false"]
    seen = {}
    for augment in ("false", "true"):
        with opened(*asked, f"data.augment={augment}") as run:
            assert run.data.augment.is_on == (augment == "true")
            batches = run.batches("vision", run.stage_options("vision"))
            epochs = [torch.cat([batch.pixel_values for (batch,) in batches.windows(epoch)]) for epoch in (0, 0, 1)]
            seen[augment] = [*epochs, next(batches.validation()).pixel_values]
    assert torch.equal(seen["true"][0], seen["true"][1])
    assert not torch.equal(seen["true"][0].sort(dim=0)[0], seen["true"][2].sort(dim=0)[0])
    assert torch.equal(seen["false"][0].sort(dim=0)[0], seen["false"][2].sort(dim=0)[0])
    assert torch.equal(seen["true"][3], seen["false"][3])


def test_panoramas_that_lack_the_seam_are_not_turned() -> None:
    asked = ["data=csv", "crop.panorama_fov_deg=[180,90]", "data.augment=true"]
    told = r"data\.augment_turn=true: pictures of 180 of 360 degrees .* Set data\.augment_turn=false; colours"
    with pytest.raises(ValueError, match=told):
        checked(config(*asked))
    checked(config(*asked, "data.augment_turn=false"))
