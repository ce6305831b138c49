"""Whole runs in processes of their own, each in its own folder, that are stopped, gone on with and compared."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from safetensors.torch import load_file

from panollava import train
from panollava.checkpoint import BEST, LAST, follow, read_state
from panollava.config.entrypoint import _guarded
from panollava.tracking.store import open_client
from panollava.training.checkpointer import Progress
from support.faults import Cut, in_child
from support.runs import CLOCKED, QUICK, assert_same_bits, backbones, checkpoint_tensors, config, predictions

EVERYTHING = os.environ.get("PANOLLAVA_EVERY_CUT") == "1"
"""Strike at every operation; else at a few."""
STAGES = ("vision", "finetune")
VARYING = {"tracking_run", "started", "finished", "updated", "seconds", "evaluated", "error"}
"""Of the states: times, and ids that MLflow draws."""


class Runs:
    """Runs of one command line, each in a folder of its own, in forked processes."""

    def __init__(self, root: Path, cfg: DictConfig, database: Path) -> None:
        self.root, self.cfg, self.database = root, cfg, database

    def new(self, name: str) -> Path:
        """An empty working directory with an empty MLflow store."""
        folder = self.root / name
        folder.mkdir()
        shutil.copyfile(self.database, folder / "mlflow.db")
        return folder

    def work(self, folder: Path, cut: Cut | None = None, told: Path | None = None) -> Callable[[], None]:
        """``panollava.train`` in a folder."""

        def run() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.chdir(folder)
            if cut is not None:
                cut.install()
            _guarded(train.main.__wrapped__, None)(self.cfg)  # type: ignore[attr-defined]
            if cut is not None and told is not None:
                told.write_text(json.dumps(cut.seen))

        return run

    def run(self, folder: Path, cut: Cut | None = None, told: Path | None = None) -> int:
        """Its exit status."""
        return in_child(self.work(folder, cut, told), quiet=folder / "said.txt")

    def untouched(self, among: Sequence[str]) -> tuple[Path, list[str]]:
        """The folder of a run that nobody disturbs, and what it did to its files in some folders."""
        folder, told = self.new("whole"), self.root / "whole.json"
        assert self.run(folder, Cut(folder, among=among), told) == 0, (folder / "said.txt").read_text()[-3000:]
        return folder, json.loads(told.read_text())

    def finish(self, folder: Path) -> None:
        """Starts it again, to the end."""
        assert self.run(folder) == 0, (folder / "said.txt").read_text()[-3000:]


def make(tmp_path_factory: pytest.TempPathFactory, backbone: Callable[[str], Path], *more: str) -> Runs:
    """Two stages, six and three steps, with saves in mid-epoch, an adapter, MLflow and an evaluation."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  once, before the processes fork
    from sqlalchemy.orm import configure_mappers

    import panollava.run.evaluate
    import panollava.run.stage  # noqa: F401

    configure_mappers()
    root = tmp_path_factory.mktemp("kills")
    quick = [*QUICK, "stage.run=[vision,finetune]", "stage.vision.epochs=2", "trainer.save_every_steps=2"]
    quick += ["lora.dropout=0.3", "evaluation.blank=false", "evaluation.max_samples=2", "experiment_name=x"]
    database = root / "empty.db"
    assert in_child(lambda: void(open_client(f"sqlite:///{database}")), quiet=root / "said.txt") == 0
    return Runs(root, config(*backbones(backbone), *quick, *more), database)


def void(_value: Any) -> None:
    """Nothing."""


def history(folder: Path) -> dict[tuple[str, int], float | str]:
    """MLflow's metrics: (key, step) -> value, of the one run that has any; numbers of the clock without their value."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        rows = database.execute("select run_uuid, key, step, value from metrics").fetchall()
    assert len({run for run, *_ in rows}) == 1
    points = [(key, step) for _, key, step, _ in rows if step]  # measures of the whole run may be taken anew
    assert len(points) == len(set(points)), "a point was logged twice"
    return {(key, step): "clock" if any(w in key for w in CLOCKED) else value for _, key, step, value in rows}


def states(folder: Path) -> dict[str, dict[str, Any]]:
    """Stage states without what differs from run to run."""
    document = json.loads((folder / "runs/x/stage_state.json").read_text())["stages"]
    varying = VARYING | set(CLOCKED) | {"peak_memory_gb"}
    return {name: {k: v for k, v in entry.items() if k not in varying} for name, entry in document.items()}


def names(folder: Path) -> list[str]:
    """Everything below the run's folder but logs, of which every start leaves one."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix != ".log")


def results(folder: Path) -> list[str]:
    """Everything below the results of evaluations, times left out."""
    return [re.sub(r"predictions_\d+_\d+", "predictions", name) for name in names(folder / "results")]


def assert_same(folder: Path, whole: Path) -> None:
    """Weights, optimiser, random state, records, answers and MLflow history equal to the bit; nothing left over."""
    assert names(folder / "runs") == names(whole / "runs")
    assert results(folder) == results(whole)
    for name in STAGES:
        one, other = (next((each / "runs/x" / name).iterdir()) for each in (folder, whole))
        for link in (BEST, LAST):
            found = [follow(each / link) for each in (one, other)]
            assert found[0] is not None
            assert found[1] is not None
            assert found[0].name == found[1].name
            assert_same_bits(checkpoint_tensors(found[0]), checkpoint_tensors(found[1]))
            told = [{k: v for k, v in read_state(each).items() if k not in VARYING} for each in found if each]
            places = [Progress(**one.pop("progress")) for one in told]
            assert places[0] == places[1]
            assert told[0] == told[1]
        assert (one / "model_final.safetensors").read_bytes() == (other / "model_final.safetensors").read_bytes()
        metadata = [json.loads((each / "checkpoint_metadata.json").read_text()) for each in (one, other)]
        assert metadata[0].pop("workplace") != metadata[1].pop("workplace")
        assert metadata[0] == metadata[1]
        settings = [(each / "config.yaml").read_text().splitlines() for each in (one, other)]
        assert [line for line in settings[0] if "num_workers" not in line] == [
            line for line in settings[1] if "num_workers" not in line
        ]
    adapters = [load_file(next(each.glob("runs/x/finetune/*/lora_weights/*.safetensors"))) for each in (folder, whole)]
    assert_same_bits(adapters[0], adapters[1])
    assert states(folder) == states(whole)
    assert history(folder) == history(whole)
    here = Path.cwd()
    try:
        answers = [(os.chdir(each), predictions("x"))[1] for each in (folder, whole)]
    finally:
        os.chdir(here)
    assert answers[0] == answers[1]
