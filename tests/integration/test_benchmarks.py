"""Benchmark scripts at a tiny size: they run, and what they compare is the same work."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support import ROOT

FOLDER = ROOT / "experiments/benchmarks"
TINY = ["--side", "32", "--encoder", "32", "2", "--language", "32", "2", "--steps", "4", "--batch", "2"]


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import peers  # type: ignore[import-not-found]

    monkeypatch.setattr(sys, "argv", ["peers.py", *TINY, "--threads", str(torch.get_num_threads())])
    return peers


def test_scoring_measures_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "scoring.json"
    monkeypatch.setattr(sys, "argv", ["scoring.py", "--answers", "60", "--rounds", "1", "--output", str(output)])
    runpy.run_path(str(FOLDER / "scoring.py"), run_name="__main__")
    found = json.loads(output.read_text())
    assert found["answers"] == 60
    assert found["pycocoevalcap_to_ours"].keys() == {"BLEU", "ROUGE-L", "CIDEr"}
    assert found["seconds"].keys() > {"command", "imports alone", "reading", "words", "pycocoevalcap, CIDEr"}


def test_our_loop_and_the_peer_train_the_same_weights_from_the_same_loss(peers: ModuleType, tmp_path: Path) -> None:
    options = peers._options()
    peers.prepare(tmp_path, 600, options)
    runs: dict[str, Any] = {arm: [peers._run(arm, tmp_path, options)] for arm in (peers.OURS, peers.PEER)}
    options.name = "filling"
    filling = peers._run(peers.STORE, tmp_path, options)
    options.name = "0"
    runs[peers.STORE] = [peers._run(peers.STORE, tmp_path, options)]
    found = peers._summary(runs, filling)  # refuses other numbers of weights and other losses
    assert found["samples_per_cpu_second"]["median"].keys() == {*peers.ARMS}
    assert "transformers" in peers._table({"600": found})
    ours, peer = runs[peers.OURS][0], runs[peers.PEER][0]
    # Features are stored one panorama at a time; some processors round a batch of them differently.
    assert ours["loss_after"] == pytest.approx(runs[peers.STORE][0]["loss_after"], rel=1e-5)
    assert ours["loss_after"] != ours["loss_before"]
    assert ours["loss_after"] == pytest.approx(peer["loss_after"], rel=1e-2)
