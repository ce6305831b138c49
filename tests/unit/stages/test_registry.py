"""The order of the stages, and at which one an experiment's folder is opened."""

from __future__ import annotations

import pytest

from panollava.run.run import answering_stage, finding_stage
from panollava.stages.registry import STAGES, in_order, last_first


def test_an_experiment_is_opened_at_its_last_stage_that_answers() -> None:
    assert in_order(STAGES) == ["vision", "resampler", "finetune", "detect"]
    assert last_first() == ["finetune", "resampler", "detect", "vision"]


@pytest.mark.parametrize(
    ("names", "answers", "finds"),
    [
        (["vision", "resampler", "finetune"], "finetune", None),
        (["vision", "resampler", "finetune", "detect"], "finetune", "detect"),
        (["vision", "detect"], None, "detect"),
        (["detect"], None, "detect"),
        (["vision"], None, None),
    ],
)
def test_which_stages_are_evaluated(names: list[str], answers: str | None, finds: str | None) -> None:
    assert answering_stage(names, STAGES) == answers
    assert finding_stage(names, STAGES) == finds
