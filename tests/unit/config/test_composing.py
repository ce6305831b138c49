"""What the tests keep of Hydra's work is what Hydra would compose; see ``tests/support/composing.py``."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from panollava.config.command_line import CONF
from panollava.config.sweep_arguments import register_resolvers


def composed(*overrides: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model/resampler=bimamba", "crop.overlap=0.0"),
        ("model/resampler=bimamba", "crop=cubemap", "+debug=default"),
        ("+experiment=decisive", "+experiment/decisive=mlp_overlap0", "hydra.mode=RUN"),
        ("model=siglip_qwen", "data=quic360", "~model/lora"),
    ],
)
def test_kept_configs_are_those_of_hydra(overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    first = composed(*overrides)
    expected = OmegaConf.to_yaml(first)
    first.seed = -1
    assert OmegaConf.to_yaml(composed(*overrides)) == expected
    monkeypatch.setattr("support.composing.TRACING", [True])  # nothing is kept
    assert OmegaConf.to_yaml(composed(*overrides)) == expected


def test_a_wrong_choice_is_wrong_again() -> None:
    for _ in range(2):
        with pytest.raises(HydraException, match="Could not find 'crop/none'"):
            composed("crop=none")
