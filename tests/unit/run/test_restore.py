"""The crop that a restored run is given, and the date that its prompts name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import torch
from support.chat_templates import LLAMA32
from support.runs import QUICK, UNTRACKED, backbones, opened

from panollava.model.backbones import Backbones, open_checkpoint
from panollava.run import run as assembled
from panollava.run.evaluate import _opened
from panollava.run.restore import _with_overrides
from panollava.run.stage import stage_metadata
from panollava.run_folder import METADATA, prompt_date, read_metadata, write_metadata
from panollava.training.checkpointer import Progress


def test_another_crop_reads_the_pictures_as_the_run_did() -> None:
    recorded = {"type": "anyres_e2p", "fov_deg": 60.0, "overlap": 0.25, "pitch_rows_deg": [0.0], "view_size": 32}
    pictures = {"renderer": "torch", "device": "cpu", "panorama_fov_deg": [180, 60]}
    other = _with_overrides({**recorded, **pictures}, {"type": "e2p", "overlap": 0.0})
    own = {"type": "e2p", "fov_deg": 90.0, "overlap": 0.0, "pitch_rows_deg": [0.0], "view_size": 32}
    assert other == {**own, **pictures}
    assert _with_overrides(recorded, {"panorama_fov_deg": [180, 60]})["panorama_fov_deg"] == [180, 60]


def test_a_run_keeps_the_date_of_its_first_start(
    backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(backbone("llama"), "language")
    Path("language/chat_template.jinja").write_text(LLAMA32)
    arguments = [*backbones(backbone), "language.name=language", *QUICK, UNTRACKED, "experiment_name=x"]
    first, later = date(2024, 7, 3), date(2025, 1, 9)

    def start(day: date, *more: str) -> str | None:
        """The date of a run that is opened on a day, as its metadata of the resampler stage keeps it."""

        class Today(date):
            @classmethod
            def today(cls) -> date:
                return day

        monkeypatch.setattr(assembled, "date", Today)
        with opened(*arguments, *more) as run:
            folder = run.experiment.stage_folder("resampler")
            if not (folder / METADATA).is_file():
                write_metadata(folder, stage_metadata(run, "resampler", Progress(), None), "")
                (folder / "config.yaml").unlink()
            assert run.backbones.prompt.format.date is not None
            return run.backbones.prompt.format.date.isoformat()

    assert start(first, "stage=resampler") == first.isoformat()
    assert prompt_date(read_metadata(next(Path("runs/x/resampler").iterdir()))) == first
    assert start(later, "stage=resampler") == first.isoformat()
    assert start(later, "stage=finetune") == first.isoformat()
    assert start(later, "stage=finetune", "overwrite=true") == first.isoformat()
    assert start(later, "stage=resampler", "overwrite=true") == later.isoformat()


def test_a_run_of_an_earlier_version_keeps_views_of_broken_patches(
    backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*backbones(backbone), *QUICK, UNTRACKED, "experiment_name=x", "crop.view_size=36", "stage=vision"]

    def sizes(*more: str) -> tuple[object, object]:
        """(h, w) of the views of the run, as it is opened, and of its checkpoint."""
        with opened(*arguments, *more) as run:
            folder = run.experiment.stage_folder("vision")
            settings = stage_metadata(run, "vision", Progress(), None)
            if not (folder / METADATA).is_file():  # as version 0.2 recorded it
                settings["model_config"]["image_size"] = [36, 36]
                write_metadata(folder, settings, "")
                (folder / "config.yaml").unlink()
        monkeypatch.setattr("panollava.model.backbones.load_checkpoint", lambda *_: {})
        found, vision, _ = open_checkpoint(folder / "last.ckpt", settings)
        assert found.crop.view_size == vision.tower.image_size
        return run.backbones.tower.image_size, vision.tower.image_size

    assert sizes() == ((32, 32), (36, 36))
    assert sizes() == ((36, 36), (36, 36))
    assert sizes("overwrite=true") == ((32, 32), (32, 32))
    (folder,) = Path("runs/x/vision").iterdir()
    recorded = read_metadata(folder)
    recorded["crop"]["view_size"] = 44  # as an evaluation asks for another size
    assert open_checkpoint(folder, recorded)[1].tower.image_size == (40, 40)


def test_a_model_that_is_too_large_for_its_device_names_the_way_out(
    backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a run in shards is, which is evaluated whole."""
    monkeypatch.chdir(tmp_path)

    def too_large(self: Backbones) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with opened(*backbones(backbone), *QUICK, UNTRACKED, "experiment_name=x") as run:
        folder = run.experiment.stage_folder("finetune")
        write_metadata(folder, stage_metadata(run, "finetune", Progress(), None), "")
        (folder / "last.ckpt").mkdir()
        monkeypatch.setattr(Backbones, "composite", too_large)
        way_out = r"does not fit .* device=cpu\..* evaluation\.enabled=false, and afterwards .*eval <run> device=cpu"
        with pytest.raises(ValueError, match=way_out):
            _opened(run, "finetune", device=run.compute.device, dtype=run.compute.dtype)
