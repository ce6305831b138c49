"""What a command line means as a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from panollava.config import sweep_arguments
from panollava.config.sweep_arguments import slug

SWEEP_ARGUMENTS = ["-m", "model/resampler=mlp,bimamba", "crop.overlap=0.0,0.5", "seed=3"]


def as_sweep(typed: list[str]) -> list[str]:
    return sweep_arguments.as_sweep(typed, Path("scratch"))


def test_a_sweep_is_named_after_what_it_sweeps() -> None:
    *same, folder, constant = as_sweep(SWEEP_ARGUMENTS)
    assert same == SWEEP_ARGUMENTS
    assert folder == "hydra.sweep.dir='${output_dir}/sweep_resampler_crop.overlap'"
    assert constant == "hydra.job.config.override_dirname.exclude_keys=['seed']"


def test_a_list_is_no_sweep() -> None:
    folder = as_sweep(["-m", "stage.run=[vision,resampler]", "seed=1,2"])[-2]
    assert folder.endswith("/sweep_seed'")


def test_slugs_need_no_quotes_and_stay_apart() -> None:
    assert slug("crop.overlap=0.0,model/resampler=mlp") == "crop.overlap-0.0_resampler-mlp"
    strange = [slug(f"question='{text}'") for text in ("a b", "a/b", "a:b", "뒤", "왼")]
    assert len(set(strange)) == len(strange)
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") for name in strange
    )
    assert len(slug("a=" + "x" * 500)) <= 96


@pytest.mark.parametrize(
    ("typed", "name", "constant"),
    [
        (["+experiment=overlap_sweep"], "overlap_sweep", "'experiment'"),
        (["+experiment=overlap_sweep", "-m", "seed=0,1"], "overlap_sweep_seed", "'experiment'"),
        (["+experiment=overlap_sweep", "crop.overlap=0.1"], "overlap_sweep", "'experiment'"),
        (["+experiment=[bimamba_overlap0,resampler_sweep]", "seed=1"], "resampler_sweep", "'experiment','seed'"),
        (["+experiment=overlap_sweep", "experiment_name='my, sweep'"], "my_-sweep-", "'experiment','experiment_name'"),
    ],
)
def test_an_overlay_that_varies_something_is_a_sweep(typed: list[str], name: str, constant: str) -> None:
    *same, folder, excluded = as_sweep(typed)
    assert same == typed
    assert folder.removeprefix("hydra.sweep.dir='${output_dir}/").startswith(name)
    assert excluded == f"hydra.job.config.override_dirname.exclude_keys=[{constant}]"


@pytest.mark.parametrize("typed", [["+experiment=bimamba_overlap0"], ["crop.overlap=0.0"], ["+experiment=nothing"]])
def test_other_commands_are_none(typed: list[str]) -> None:
    assert as_sweep(typed) == typed


def test_a_sweep_is_no_job_of_another() -> None:
    with pytest.raises(ValueError, match="overlap_sweep is a sweep itself"):
        as_sweep(["-m", "+experiment=overlap_sweep,bimamba_overlap0"])


@pytest.mark.parametrize("typed", [["-m", "seed=0,1"], ["+experiment=overlap_sweep"]])
def test_torchrun_starts_no_sweep(typed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ValueError, match=r"torchrun(.|\n)*hydra/launcher=parallel(.|\n)*tasks_per_node=2"):
        as_sweep(typed)
    assert as_sweep(["seed=1"]) == ["seed=1"]


def test_a_missing_launcher_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panollava.config.sweep_arguments.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"hydra/launcher=parallel needs .*\.\[joblib\]"):
        as_sweep(["-m", "seed=0,1", "hydra/launcher=parallel"])


def test_a_dry_run_has_its_folder_elsewhere() -> None:
    for typed in (["-m", "seed=0,1", "dry_run=true"], ["-m", "hydra.sweep.dir=runs/x", "seed=0,1", "dry_run=True"]):
        assert f"hydra.sweep.dir='{Path('scratch') / 'sweep_seed'}'" in as_sweep(typed)
