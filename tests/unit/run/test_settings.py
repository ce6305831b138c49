"""Which runs are of one setting: all that matters to what is learnt, and nothing of where a run was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.runs import config

from panollava.checkpoint import BEST, FORMAT_VERSION, STATE, point
from panollava.run.settings import settings_of, trained_with, unlike_training
from panollava.run_folder import write_metadata


def recorded(*overrides: str) -> dict[str, Any]:
    """A run's ``config.yaml``."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(config("tracking=none", *overrides), resolve=True)
    return values


def settings_alone(*lines: tuple[str, ...]) -> tuple[list[dict[str, str]], list[str]]:
    return settings_of([recorded(*line) for line in lines], ["finetune"] * len(lines))


def test_seeds_folders_and_speed_make_no_setting() -> None:
    ways = ("experiment_name=x", "output_dir=elsewhere", "trainer.num_workers=3", "evaluation.blank=false")
    assert settings_alone(("seed=0",), ("seed=1", *ways), ("seed=2", "store.enabled=false")) == ([{}] * 3, [])


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("resampler=bimamba", "resampler", "bimamba"),
        ("crop.overlap=0.0", "crop.overlap", "0.0"),
        ("stage.finetune.epochs=7", "stage.finetune.epochs", "7"),
        ("trainer.max_steps=5", "trainer.max_steps", "5"),
        ("stage=finetune", "stage.run", "[finetune]"),
        ("data.seed=3", "data.seed", "3"),
    ],
)
def test_what_matters_is_a_key_of_the_setting(override: str, key: str, value: str) -> None:
    settings, differing = settings_alone(("seed=0",), ("seed=1", override), ("seed=2", override))
    assert settings[1] == settings[2] == {key: value}
    assert settings[0] != settings[1]
    assert key in differing


def test_as_few_keys_as_tell_them_apart() -> None:
    grid = [(f"resampler={kind}", f"crop.overlap={overlap}") for kind in ("mlp", "bimamba") for overlap in (0.0, 0.5)]
    settings, differing = settings_alone(*grid)
    assert [list(one) for one in settings] == [["resampler", "crop.overlap"]] * 4
    assert "resampler.width" in differing  # follows from the type


def test_a_key_that_an_older_run_lacks_is_no_difference() -> None:
    old, new = recorded("seed=0"), recorded("seed=1")
    del old["trainer"]["clip_norm"]
    assert settings_of([old, new], ["finetune", "finetune"]) == ([{}, {}], [])


def test_the_stage_of_a_run_tells_its_checkpoints_apart() -> None:
    same = recorded("seed=0")
    settings, _ = settings_of([same, same], ["resampler", "finetune"])
    assert settings == [{"stage": "resampler"}, {"stage": "finetune"}]


def test_settings_of_a_stage_that_is_not_run_do_not_matter() -> None:
    lines = ("stage=finetune",), ("stage=finetune", "stage.vision.epochs=9")
    assert settings_alone(*lines) == ([{}, {}], [])


def trained(root: Path, *, texts: str = "t", vision: str = "v", processes: int = 1, date: str = "2026-11-29") -> Path:
    """The folder of a last stage, with an earlier one, and a digest, a date or a number of processes of its own."""
    share = {"processes": processes, "batch_size": 8, "accumulate": 2}
    for stage in ("vision", "finetune", "detect"):
        best = root / stage / "x" / "one.ckpt"
        best.mkdir(parents=True)
        state = {"format_version": FORMAT_VERSION, "stage": stage, "number_format": "float32", "share": share}
        (best / STATE).write_text(json.dumps(state))
        point(best.with_name(BEST), best)
    files = {
        "vision": {"files": {"config.json": vision, "a": "b" * 64}},
        "train": {"texts": texts},
        "val": {"texts": "t"},
    }
    prompt = {"template": "p", "system": None, "date": date}
    metadata: dict[str, Any] = {"stage": "finetune", "experiment_name": root.name, "model": {}, "crop": {}}
    write_metadata(root / "finetune" / "x", {**metadata, "inputs": files, "prompt": prompt}, "")
    return root / "finetune" / "x"


STAGES = "stage.run=[vision,finetune]"


def said(*folders: Path, overrides: tuple[str, ...] = ()) -> list[str]:
    """Of runs of one setting, or of a setting each."""
    lines = [[f"seed={seed}", STAGES, *overrides[seed : seed + 1]] for seed in range(len(folders))]
    configs = [recorded(*line) for line in lines]
    settings, _ = settings_of(configs, ["finetune"] * len(configs))
    records = {one.parents[1].name: trained_with(one, own) for one, own in zip(folders, configs, strict=True)}
    return unlike_training(records, configs, settings)


def test_what_a_run_was_trained_with_is_that_of_its_stages(tmp_path: Path) -> None:
    found = trained_with(trained(tmp_path / "a", processes=4), recorded(STAGES))
    samples = {f"the number of samples of a step of stage {stage}": 64 for stage in ("vision", "finetune")}
    formats = {f"the number format of stage {stage}": "float32" for stage in ("vision", "finetune")}
    known = {"train.texts": "t", "val.texts": "t", "prompt.template": "p", "prompt.date": "2026-11-29"}
    files = {"vision.files.config.json": "v", "vision.files.a": "b" * 16}
    assert found == {**samples, **formats, **known, **files}


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"texts": "corrected"}, ["train.texts is t (a, c), corrected (b)"]),
        ({"vision": "w"}, ["vision.files.config.json is v (a, c), w (b)"]),
        ({"date": "2026-11-30"}, ["prompt.date is 2026-11-29 (a, c), 2026-11-30 (b)"]),
        ({}, []),
        (
            {"processes": 4},
            [f"the number of samples of a step of stage {one} is 16 (a, c), 64 (b)" for one in ("vision", "finetune")],
        ),
    ],
)
def test_seeds_that_differ_in_more_are_named(other: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    found = said(trained(tmp_path / "a"), trained(tmp_path / "b", **other), trained(tmp_path / "c"))
    assert len(found) == bool(expected)
    for part in expected:
        assert part in found[0]
    assert sum(one.count(" is ") for one in found) == len(expected)


def test_settings_on_the_same_data_share_their_records_and_no_more(tmp_path: Path) -> None:
    runs = trained(tmp_path / "a"), trained(tmp_path / "b", texts="corrected", vision="w", processes=4)
    (line,) = said(*runs, overrides=("crop.overlap=0.0", "crop.overlap=0.5"))
    assert line.endswith(" alike: train.texts is t (a), corrected (b)")
    assert said(*runs, overrides=("data.train_scenes=16", "data.train_scenes=17")) == []


def test_a_run_without_a_record_differs_in_nothing(tmp_path: Path) -> None:
    older = tmp_path / "older" / "finetune" / "x"
    older.mkdir(parents=True)
    assert trained_with(older, recorded()) == {}
    assert said(trained(tmp_path / "a"), older) == []
