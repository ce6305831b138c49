"""The number format of a command about pictures: its own, else that of the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from panollava.run import image_commands
from panollava.run.image_commands import command_compute
from panollava.run_folder import METADATA


@pytest.mark.parametrize(
    ("given", "recorded", "dtype"),
    [(None, "bf16", torch.bfloat16), ("fp32", "bf16", torch.float32), (None, None, torch.float32)],
)
def test_a_command_computes_as_the_run_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, recorded: str | None, dtype: torch.dtype
) -> None:
    metadata = {} if recorded is None else {"precision": recorded}
    monkeypatch.setattr(image_commands, "find_trained", lambda path, order: (tmp_path, tmp_path / "best.ckpt"))
    monkeypatch.setattr(image_commands, "recorded_metadata", lambda folder: metadata)
    assert command_compute(str(tmp_path), "cpu", given).dtype is dtype  # type: ignore[arg-type]


def test_what_is_no_run_is_left_to_its_opening(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        assert command_compute(str(path), "cpu", None).dtype is torch.float32
    (tmp_path / METADATA).write_text("{")
    assert command_compute(str(tmp_path), "cpu", None).dtype is torch.float32
