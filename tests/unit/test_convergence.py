"""The check of the verdict "still learning" on jobs of two budgets: rows that come back, and the two shares."""

from __future__ import annotations

import csv
import io

import pytest

from experiments.convergence.validate import ROWS, Row, StageMeasures, summary


def row(job: str, twice: float, loss: float, low: float | None = 0.3, gain: float = 0.9) -> Row:
    """A job that scored 80 at the first budget."""
    stages = {"resampler": StageMeasures(0.3, 0.01, 0.8), "finetune": StageMeasures(loss, low, gain)}
    return Row("once", job, "resampler=mlp", "0", 80.0, twice, stages)


def test_a_row_comes_back_from_its_file() -> None:
    rows = [row("a", 90.0, 0.2), row("b", 80.5, 0.01, None)]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0].cells()))
    writer.writeheader()
    writer.writerows(one.cells() for one in rows)
    stream.seek(0)
    assert [Row.of_cells(cells) for cells in csv.DictReader(stream)] == rows


def test_both_shares_and_the_jobs_that_are_wrong() -> None:
    flagged = [row("rose", 90.0, 0.2), row("stood, flagged", 80.0, 0.2), row("between", 83.0, 0.2)]
    others = [row("rose, missed", 85.0, 0.001), *(row(f"stood {place}", 80.9, 0.001) for place in range(3))]
    found = summary([*flagged, *others])
    assert "7 jobs." in found
    assert "Of 2 that gained 5 points or more, 1 were flagged (50 %)." in found
    assert "Of 4 that gained less than 1, 1 were flagged (25 %)." in found
    assert "- once/rose, missed: 80.0 to 85.0: the loss is 0.0010" in found
    assert "- once/stood, flagged: 80.0 to 80.0" in found
    assert found.count("\n- ") == 2


@pytest.mark.skipif(not ROWS.is_file(), reason="no rows are committed")
def test_the_committed_rows_are_judged_as_they_say() -> None:
    with ROWS.open(encoding="utf-8", newline="") as stream:
        for cells in csv.DictReader(stream):
            assert Row.of_cells(cells).learning.verdict == cells["still learning"]
