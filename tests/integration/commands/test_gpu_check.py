"""The GPU check on a CPU at small sizes: its parts, and the command with parts that fail, take too long or are done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT

from experiments.gpu import check, numerics, training
from experiments.gpu.measure import tidy
from experiments.gpu.models import SMALL, Setting
from experiments.gpu.rows import FAILED, NEEDS_GPU, NO_TIME, NOT_INSTALLED, OK, WRONG, Row, results
from panollava.training import checkpointer

MISSING = ("hydra", "omegaconf", "mlflow", "equilib", "annotated_types", "simplejpeg")
"""What a machine without network may lack."""


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)  # put back afterwards
    return Setting.of("cpu", SMALL, tmp_path)


def rows_of(name: str, setting: Setting) -> dict[str, Row]:
    return {row.what: row for row in results(name, check.checks_of(name, setting), tidy)}


COMPARED = {
    "precision": {"fp32, sdpa: gradients", "bf16, sdpa: logits", "bf16, PyTorch's flash kernel: outputs"},
    "mamba": {"scan against the recurrence"},
    "prefix": {"fp32, eager: gradients", "fp32, sdpa: gradients", "flex attention: outputs"},
    "parallel": {"DDP, fp32: weights", "FSDP2, fp32: losses", "FSDP2, fp32: weights"},
    "resume": {"resumed, fp32"},
    "memory": {"auto_batch", "message out of memory"},
    "views": {"views, largest difference"},
}
"""Errors that a CPU can measure, of each part."""


@pytest.mark.parametrize("name", COMPARED)
def test_errors_on_a_cpu_are_below_their_limits(name: str, setting: Setting) -> None:
    rows = rows_of(name, setting)
    assert {row.state for row in rows.values()} <= {OK, NEEDS_GPU, NOT_INSTALLED}, rows
    for what in COMPARED[name]:
        assert rows[what].error is not None
        assert 0 <= rows[what].error <= rows[what].limit  # type: ignore[operator]
    if name == "parallel":
        assert "the same bits" in rows["FSDP2, fp32: weights"].note


@pytest.mark.parametrize(("name", "count"), [("stage_1", 4), ("stages_7b", 4), ("llava", 2)])
def test_steps_are_timed(name: str, count: int, setting: Setting) -> None:
    rows = rows_of(name, setting)
    assert [row.state for row in rows.values()] == [OK] * count, rows
    assert all(row.milliseconds and row.tokens_per_second for row in rows.values())
    assert all(row.mfu is None for row in rows.values())  # a CPU has no listed peak
    assert name == "llava" or all(row.tflops for row in rows.values())


def test_a_compiled_stage_agrees(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graph without the C++ compiler, which takes half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    rows = rows_of("compile", setting)
    assert {name: row.state for name, row in rows.items()} == {
        "compiled, fp32: loss": OK,
        "compiled, fp32: gradients": OK,
    }, rows


def test_a_wrong_scan_is_found(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    right = numerics.state_space_scan
    monkeypatch.setattr(numerics, "state_space_scan", lambda *args: right(*args) * 1.001)
    assert rows_of("mamba", setting)["scan against the recurrence"].state == WRONG


def test_a_prefix_that_later_texts_see_is_found(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def causal(segments: torch.Tensor) -> torch.Tensor:
        """Every text sees those before it."""
        length = segments.shape[1]
        return torch.ones(1, 1, length, length, dtype=torch.bool).tril().expand(len(segments), -1, -1, -1)

    monkeypatch.setattr("panollava.model.shared_prefix.packed_mask", causal)
    assert rows_of("prefix", setting)["fp32, eager: gradients"].state == WRONG


def test_a_run_that_resumes_with_other_dropout_is_found(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointer, "load_random", lambda *_: None)
    assert rows_of("resume", setting)["resumed, fp32"].state == WRONG


def test_a_batch_that_stays_too_large_is_found(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "auto_batch_size", lambda _run, _name, _stage, options: options)
    assert {row.state for row in rows_of("memory", setting).values()} <= {WRONG, FAILED}


FIRST = json.dumps({"what": "first", "state": OK})


def fake(monkeypatch: pytest.MonkeyPatch, programs: dict[str, str]) -> list[str]:
    """Parts run these programs, to which ``rows`` is their file of rows; gives the parts that were started."""
    started: list[str] = []

    def command(name: str, options: Any) -> list[str]:
        started.append(name)
        head = f"import sys, time; rows = open({str(check._rows_file(options, name))!r}, 'w')\n"
        return [sys.executable, "-c", head + programs[name]]

    monkeypatch.setattr(check, "_command", command)
    return started


WRITES = f"rows.write({FIRST!r} + chr(10)); rows.flush()\n"


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *parts: str) -> int:
    command = ["check.py", "--device", "cpu", "--out", str(folder), "--parts", *parts]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        check.main()
    assert isinstance(end.value.code, int), end.value.code
    return end.value.code


def states(folder: Path, name: str) -> list[tuple[str, str]]:
    return [(row["what"], row["state"]) for row in json.loads((folder / f"{name}.json").read_text())["rows"]]


def test_a_part_that_fails_is_a_row_and_a_rerun_takes_parts_without_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = fake(monkeypatch, {"precision": WRITES + "sys.exit('kernel lost')", "mamba": WRITES})
    assert run(monkeypatch, tmp_path, "precision", "mamba") == 1
    assert states(tmp_path, "precision") == [("first", OK), ("precision", FAILED)]
    assert states(tmp_path, "mamba") == [("first", OK)]
    text = (tmp_path / "table.md").read_text()
    assert "- GPU: none, on a CPU" in text
    assert "| precision | precision | failed |  |  | its process ended with 1: kernel lost |" in text
    assert "| mamba | first | ok |" in text

    (tmp_path / "mamba.json").unlink()
    assert run(monkeypatch, tmp_path, "precision", "mamba") == 1
    assert started == ["precision", "mamba", "mamba"]
    assert (tmp_path / "table.md").read_text() == text


def test_results_of_another_machine_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, {"mamba": WRITES})
    assert run(monkeypatch, tmp_path, "mamba") == 0
    path = tmp_path / "mamba.json"
    path.write_text(path.read_text().replace("none, on a CPU", "NVIDIA L4"))
    with pytest.raises(AssertionError, match=r"mamba\.json was made with another GPU: NVIDIA L4\. Choose"):
        run(monkeypatch, tmp_path, "mamba")


def test_a_part_that_takes_too_long_leaves_the_later_ones_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "SECONDS", {"cpu": check.PARTS["mamba"].seconds + 1})
    fake(monkeypatch, {"precision": WRITES + "time.sleep(60)", "mamba": WRITES})
    assert run(monkeypatch, tmp_path, "precision", "mamba") == 1
    assert states(tmp_path, "precision") == [("first", OK), ("precision", NO_TIME)]
    assert states(tmp_path, "mamba") == [("first", OK)]


BLOCKER = """
import os, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        missing = name.partition(".")[0] in os.environ["MISSING"].split(",")
        return None if missing else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def test_the_script_runs_where_libraries_are_missing(tmp_path: Path) -> None:
    """In processes that cannot find them, from another folder; the first one also imports what no part of this runs."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER, "utf-8")
    environment = {**os.environ, "MISSING": ",".join(MISSING), "PYTHONPATH": str(tmp_path)}
    program = "import sys; sys.path.insert(0, sys.argv.pop(1)); from experiments.gpu import stand_ins; "
    program += "stand_ins.install(); import experiments.gpu.numerics, experiments.gpu.speed, experiments.gpu.llava; "
    program += "from experiments.gpu.check import main; main()"
    command = [sys.executable, "-c", program, str(ROOT), "--device", "cpu", "--out", "found", "--parts", "memory"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [state for _, state in states(tmp_path / "found", "memory")] == [OK, OK]
    assert f"- torch: {torch.__version__}" in (tmp_path / "found" / "table.md").read_text("utf-8")
