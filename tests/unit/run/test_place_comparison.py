"""Detection runs compared in pairs: p-values that many pairs can reach, words, and keys that are of answers alone."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

import numpy as np
import pytest

from panollava.crop.boxes import PictureBoxes
from panollava.evaluation.statistics import Interval, holm
from panollava.run import place_comparison
from panollava.run.options import CompareOptions
from panollava.run.place_comparison import Found, _markdown, _verdicts, compare_detections


def boxes(pictures: int, shift: float) -> dict[str, PictureBoxes]:
    rng = np.random.default_rng(0)
    true = np.stack([rng.uniform(-150, 150, pictures), *np.full((4, pictures), [[0], [20], [20], [0]])], axis=1)
    true[:, 0] += shift
    return {str(at): PictureBoxes(box[None], np.zeros(1, int), np.ones(1)) for at, box in enumerate(true)}


def test_many_pairs_can_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The swaps of 105 pairs are enough for the smallest p-value to survive Holm's correction."""
    asked = []

    def compare(*args: Any, swaps: int) -> list[place_comparison.PlaceComparison]:
        asked.append(swaps)
        return [place_comparison.PlaceComparison("AP", Interval(0.1, 0.0, 0.2), 1 / swaps)]

    monkeypatch.setattr(place_comparison, "compare_boxes", compare)
    none = Found({}, {}, {"AP": Interval(0.5, None, None)}, {})
    found = _verdicts({}, {}, {str(run): none for run in range(15)}, 1)
    assert len(found) == 105
    assert min(holm([1 / asked[0]] * 105)[0]) < 0.05 / 2
    asked.clear()
    _verdicts({}, {}, {str(run): none for run in range(7)}, 1)
    assert set(asked) == {2000}  # as many as one pair has


def test_the_table_says_what_was_tested() -> None:
    truth = boxes(8, 0.0)
    score = {"AP": Interval(0.5, None, None)}
    found = {name: Found(boxes(8, shift), {}, score, {}) for name, shift in {"a": 0.0, "b": 9.0}.items()}
    text = _markdown("Two runs", found, _verdicts(truth, {}, found, 1))
    (line,) = (line for line in text.splitlines() if line.startswith("| AP50 |"))
    assert line.startswith("| AP50 | b less a | ")
    assert " points" in line
    assert "95 % ones of the jackknife over pictures, from five on, and are not corrected." in text
    assert "about these trained models and not about their settings" in text
    assert "one seed" not in text


@pytest.mark.parametrize(
    ("wrong", "measure", "generation", "named"),
    [
        ({"table": "latex"}, "auto", None, "table:"),
        ({"words": "ptb", "score_by": ["kind"]}, "auto", None, "words, score_by:"),
        ({}, "CIDEr", 3, "measure, generation.num_beams:"),
    ],
)
def test_keys_of_answers_are_refused(wrong: dict[str, Any], measure: str, generation: int | None, named: str) -> None:
    plain = {one.name: None for one in fields(CompareOptions)} | {"words": "unicode"}
    options = CompareOptions(**cast(Any, plain | wrong))
    sections = {"evaluation": {"measure": measure}, "generation": {"num_beams": generation}, "store": {}}
    with pytest.raises(ValueError, match=f"{named} no effect on runs of stage detect"):
        compare_detections({}, {}, options, sections)
