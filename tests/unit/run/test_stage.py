"""What a stage records of its end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from panollava.run.stage import _record_failure


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "interrupted"), (SystemExit(-1), "interrupted"), (ValueError("no"), "failed")],
    ids=["Ctrl-C", "requeued by submitit", "an error"],
)
def test_a_stage_that_can_go_on_is_interrupted(error: BaseException, status: str) -> None:
    recorded: dict[str, str] = {}
    run = SimpleNamespace(experiment=SimpleNamespace(record=lambda _name, **values: recorded.update(values)))
    _record_failure(run, "vision", error)
    assert recorded["status"] == status
