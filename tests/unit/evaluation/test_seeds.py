"""Settings repeated over seeds: both sources of chance in one table, none of them surer than its data."""

from __future__ import annotations

import numpy as np
import pytest

from panollava.evaluation.comparison import Repeat, settings_table


def repeat(setting: str, share: float, seed: int, pictures: int = 40) -> Repeat:
    """A model that answers a share of three questions a picture rightly."""
    right = np.random.default_rng(seed).random((pictures, 3)) < share
    asked = [(f"{picture}-{question}", picture, question) for picture in range(pictures) for question in range(3)]
    return Repeat(
        setting=(setting,),
        correct={name: float(right[picture, question]) for name, picture, question in asked},
        scene_of={name: str(picture) for name, picture, _ in asked},
    )


def test_differences_have_verdicts_that_agree_with_their_intervals() -> None:
    shares = {"mlp": 0.5, "bimamba": 0.9, "qformer": 0.5}
    repeats = [repeat(name, share, 10 * n + seed) for n, (name, share) in enumerate(shares.items()) for seed in (1, 2)]
    text = settings_table(repeats, ["resampler"])
    assert "Holm's correction" in text
    (far,) = [line for line in text.splitlines() if line.startswith("| bimamba − mlp: +")]
    assert "points (+" in far
    assert "| yes |" in far
    (near,) = [line for line in text.splitlines() if line.startswith("| qformer − mlp: ")]
    assert "(-" in near
    assert "| no |" in near


@pytest.mark.parametrize("seeds", [1, 2])
def test_nothing_is_said_of_seeds_that_do_not_differ(seeds: int) -> None:
    repeats = [repeat(name, share, 7) for name, share in (("a", 0.5), ("b", 0.9)) for _ in range(seeds)]
    (line,) = [line for line in settings_table(repeats, ["x"]).splitlines() if line.startswith("| b − a")]
    assert line.endswith("| – | – |")
    same = settings_table([repeat("a", 0.5, 7), repeat("b", 0.5, 7)], ["x"])
    assert "| b − a: +0.0 points | the same scores | no |" in same
    assert "| – |" in settings_table([repeat("a", 0.5, 7, pictures=3)], ["x"])
