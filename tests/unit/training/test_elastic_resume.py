"""A run that goes on with another number of processes takes the same samples in every step."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from panollava.training.options import BatchSplit, StageOptions, elastic_resume


def options(batch_size: int, accumulate: int) -> StageOptions:
    return StageOptions(epochs=1, batch_size=batch_size, accumulate=accumulate, lr=1.0, max_text_length=8)


@pytest.mark.parametrize(
    ("before", "processes", "after"),
    [
        (BatchSplit(1, 4, 1), 2, (2, 1)),
        (BatchSplit(1, 4, 2), 2, (4, 1)),
        (BatchSplit(2, 4, 1), 1, (4, 2)),
        (BatchSplit(2, 4, 3), 4, (3, 2)),
        (BatchSplit(3, 2, 2), 2, (2, 3)),
        (BatchSplit(2, 1, 4), 2, (1, 4)),  # found by auto_batch: not what the config says
    ],
)
def test_a_step_keeps_its_samples_and_no_micro_batch_grows(
    before: BatchSplit, processes: int, after: tuple[int, int]
) -> None:
    result = elastic_resume(options(9, 9), asdict(before), processes, coupled=False)
    assert (result.batch_size, result.accumulate) == after
    assert processes * result.batch_size * result.accumulate == before.processes * before.batch_size * before.accumulate
    assert result.batch_size <= before.batch_size


def test_an_objective_of_a_micro_batch_keeps_it() -> None:
    result = elastic_resume(options(4, 2), asdict(BatchSplit(2, 4, 2)), 1, coupled=True)
    assert (result.batch_size, result.accumulate) == (8, 2)
    with pytest.raises(ValueError, match=r"8 samples in each micro-batch with 2 processes, which 3 .*1, 2, 4, 8"):
        elastic_resume(options(4, 2), asdict(BatchSplit(2, 4, 2)), 3, coupled=True)


def test_processes_that_cannot_share_a_step_are_refused() -> None:
    with pytest.raises(ValueError, match=r"6 samples in each optimiser step.*1, 2, 3, 6 processes"):
        elastic_resume(options(2, 1), asdict(BatchSplit(3, 2, 1)), 4, coupled=False)


def test_a_checkpoint_that_tells_no_share_changes_nothing() -> None:
    assert elastic_resume(options(2, 1), None, 4, coupled=False) == options(2, 1)
