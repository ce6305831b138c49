"""A misspelt key is answered with the one that was meant."""

from __future__ import annotations

import pytest

from panollava.config.canonical import canonical
from panollava.config.hint import misspelt_key
from panollava.config.resolvers import register_resolvers


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["crop.overlp=0.3"], "crop.overlap"),
        (["resampler=bimamba", "resampler.with=3"], "model.resampler.width"),
        (["stage.vison.lr=1"], "stage.vision.lr"),
        (["sed=1"], "seed"),
    ],
)
def test_the_meant_key_is_named(arguments: list[str], meant: str) -> None:
    register_resolvers()
    message = misspelt_key("train", canonical(arguments))
    assert message is not None
    assert f"Did you mean {meant}?" in message


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["crop=cubemap", "crop.poles=true"],
        ["resampler=bimamba", "lora.rank=4", "experiment_name=a=b"],
        ["+crop.new=1"],
        ["-m", "crop.overlp=0,1"],
        ["resampler=bimambo"],
    ],
)
def test_what_is_right_or_hydras_business_passes(arguments: list[str]) -> None:
    register_resolvers()
    assert misspelt_key("train", canonical(arguments)) is None
