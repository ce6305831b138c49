"""The GPU check on a CPU at small sizes: its parts, and the command with parts that fail, take too long or are done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT

from experiments.gpu import check, numerics, training
from experiments.gpu.models import SMALL, Setting, tidy
from experiments.gpu.rows import NOT_HERE, NOT_INSTALLED, OK, WRONG, Row, results
from panollava.training import checkpointer

SCRIPT = ROOT / "experiments" / "gpu" / "check.py"
MISSING = ("hydra", "omegaconf", "mlflow", "equilib", "annotated_types", "simplejpeg")
"""What a machine without network may lack."""


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)  # put back afterwards
    return Setting.of("cpu", SMALL, tmp_path)


def rows_of(name: str, setting: Setting) -> dict[str, Row]:
    return {row.what: row for row in results(name, check._checks(name, setting), tidy)}


COMPARED = {
    "precision": {"fp32, sdpa: gradients", "bf16, sdpa: logits", "bf16, PyTorch's flash kernel"},
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
    assert {row.state for row in rows.values()} <= {OK, NOT_HERE, NOT_INSTALLED}, rows
    for what in COMPARED[name]:
        assert rows[what].error is not None
        assert 0 <= rows[what].error <= rows[what].limit  # type: ignore[operator]
    if name == "parallel":
        assert "the same bits" in rows["FSDP2, fp32: weights"].note


@pytest.mark.parametrize(("name", "count"), [("stage_1", 4), ("stages_0.5b", 4), ("stages_7b", 4), ("llava", 2)])
def test_steps_are_timed(name: str, count: int, setting: Setting) -> None:
    rows = rows_of(name, setting)
    assert [row.state for row in rows.values()] == [OK] * count, rows
    assert all(row.milliseconds and row.tokens_per_second for row in rows.values())
    assert all(row.mfu is None for row in rows.values())  # a CPU has no listed peak
    assert name == "llava" or all(row.tflops for row in rows.values())


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
    assert {row.state for row in rows_of("memory", setting).values()} <= {WRONG, "failed"}


HARDWARE = {"device": "cpu", "GPU": "none", "size": "small"}


def fake(monkeypatch: pytest.MonkeyPatch, programs: dict[str, str]) -> list[str]:
    """Parts run these programs, to which ``path`` is their JSON; gives the parts that were started."""
    started: list[str] = []

    def command(name: str, options: Any) -> list[str]:
        started.append(name)
        path = options.out.absolute() / f"{name}.json"
        head = f"import json, sys, time, pathlib; path = pathlib.Path({str(path)!r})\n"
        return [sys.executable, "-c", head + programs[name]]

    monkeypatch.setattr(check, "_command", command)
    return started


def written(rows: str = "", *, complete: bool = True) -> str:
    """A program that writes a part's JSON."""
    make = f"content = dict(part=path.stem, complete={complete}, seconds=1.0, rows=[{rows}])"
    return f"{make}; path.write_text(json.dumps(content))\n"


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["check.py", "--out", str(folder), *arguments])
    with pytest.raises(SystemExit) as end:
        check.main()
    return int(end.value.code or 0)


def states(folder: Path, name: str) -> list[tuple[str, str]]:
    return [(row["what"], row["state"]) for row in json.loads((folder / f"{name}.json").read_text())["rows"]]


def test_a_part_that_fails_is_a_row_and_a_rerun_skips_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = {
        "hardware": f"path.write_text({json.dumps(HARDWARE)!r})",
        "precision": written("{'what': 'first', 'state': 'ok', 'note': ''}", complete=False)
        + "sys.exit('kernel lost')",
        "mamba": written("{'what': 'scan', 'state': 'ok', 'note': ''}"),
    }
    started = fake(monkeypatch, programs)
    asked = ("--parts", "precision", "mamba")
    assert run(monkeypatch, tmp_path, *asked) == 1
    assert states(tmp_path, "precision") == [("first", "ok"), ("precision", "failed")]
    assert states(tmp_path, "mamba") == [("scan", "ok")]
    text = (tmp_path / "table.md").read_text()
    assert "- GPU: none" in text
    assert "| precision | precision | failed |  |  | its process ended with 1: kernel lost |" in text
    assert "| mamba | scan | ok |" in text

    programs["precision"] = written("{'what': 'first', 'state': 'ok', 'note': ''}")
    started.clear()
    assert run(monkeypatch, tmp_path, *asked) == 0
    assert started == ["hardware", "precision"]  # the other one is done
    assert run(monkeypatch, tmp_path, *asked, "--again") == 0
    assert started[2:] == ["hardware", "precision", "mamba"]


def test_parts_without_time_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "SMALL_SECONDS", 0.5)
    waiting = written("{'what': 'first', 'state': 'ok', 'note': ''}", complete=False) + "time.sleep(60)"
    hardware = f"path.write_text({json.dumps(HARDWARE)!r})"
    started = fake(monkeypatch, {"hardware": hardware, "precision": waiting, "mamba": waiting})
    assert run(monkeypatch, tmp_path, "--minutes", "0.05", "--parts", "precision", "mamba") == 0
    assert started == ["hardware", "precision"]
    assert states(tmp_path, "precision") == [("first", "ok"), ("precision", "no time left")]
    assert states(tmp_path, "mamba") == [("mamba", "no time left")]


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
    """In processes that cannot find them, from another folder."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER, "utf-8")
    environment = {**os.environ, "MISSING": ",".join(MISSING), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--out", "found", "--parts", "memory", "mamba"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [state for _, state in states(tmp_path / "found", "memory")] == [OK, OK]
    assert ("scan against the recurrence", OK) in states(tmp_path / "found", "mamba")
    text = (tmp_path / "found" / "table.md").read_text("utf-8")
    assert "stood in for: annotated-types, simplejpeg" in text
    assert f"- torch: {torch.__version__}" in text
    assert (json.loads((tmp_path / "found" / "memory.json").read_text()))["hardware"]["GPU"] == "none, on a CPU"
