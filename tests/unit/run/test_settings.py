"""Which runs are of one setting: all that matters to what is learnt, and nothing of where a run was made."""

from __future__ import annotations

from typing import Any

import pytest
from support.runs import config

from panollava.run.settings import settings_of


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
