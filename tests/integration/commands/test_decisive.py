"""The decisive study on real runs: what a result keeps of a run, and the sweep of its overlay."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from support.runs import QUICK, UNTRACKED, backbones, command

from experiments.decisive.report import write_report
from experiments.decisive.results import CONTRASTS, RAW, Study, read_results, read_study, write_result
from experiments.decisive.run import collect
from panollava import train
from panollava.run.sweep_report import read_job

ARMS = ("mlp_overlap0", "qformer_cubemap")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two arms and a seed, in a folder without results."""
    lines = ["seeds: [0]", "contrasts:", f"  - {{about: both, first: {ARMS[0]}, second: {ARMS[1]}}}"]
    (tmp_path / CONTRASTS).write_text("\n".join(lines))
    return read_study(tmp_path)


@pytest.mark.usefixtures("in_recorded")
def test_a_result_keeps_what_the_report_needs(study: Study) -> None:
    run = Path("runs/recorded")
    one = write_result(study, ARMS[0], 0, run, Path())
    path = study.folder / RAW / f"{ARMS[0]}_seed-0.json"
    assert path.stat().st_size < 6000
    (again,) = read_results(study)
    assert json.dumps(again.kinds) == json.dumps(one.kinds)
    assert replace(again, kinds={}) == replace(one, kinds={})
    job = read_job(run)
    assert job is not None
    assert one.exact_match == pytest.approx(job.scores["exact match"].value, abs=1e-6)
    right = [answer.prediction.strip().casefold() in answer.references for answer in job.predictions]
    pictures = [answer.image_id for answer in job.predictions]
    of_each = [
        int(np.sum([ok for ok, name in zip(right, pictures, strict=True) if name == picture]))
        for picture in dict.fromkeys(pictures)
    ]
    assert (list(one.right), sum(one.asked)) == (of_each, len(right))
    assert one.image_tokens == job.image_tokens
    assert one.learning == (job.learning.verdict if job.learning else "unknown")
    assert set(one.seconds) == {"vision", "resampler", "finetune"}
    assert (study.folder / "configs" / f"{ARMS[0]}.yaml").is_file()
    with pytest.raises(ValueError, match="has seed 0, and not 1"):
        write_result(study, ARMS[0], 1, run, Path())
    with pytest.raises(ValueError, match=f"is of arm {ARMS[0]}, and not of {ARMS[1]}"):
        write_result(study, ARMS[1], 0, run, Path())
    path = study.folder / "configs" / f"{ARMS[0]}.yaml"
    config = yaml.safe_load(path.read_text())
    for key, value in (("trainer", {"max_steps": 9}), ("stage", {"run": ["finetune"]}), ("generation", {"top_k": 9})):
        path.write_text(yaml.safe_dump({**config, key: {**config[key], **value}}))
        with pytest.raises(
            ValueError, match=rf"is not of arm {ARMS[0]}: its config differs from .* in .*{key}\."
        ) as told:
            write_result(study, ARMS[0], 0, run, Path())
        assert next(iter(value)) in str(told.value)


def test_the_sweep_of_the_overlay_is_collected(
    study: Study, backbone: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(study.folder)
    quick = [one for one in QUICK if not one.startswith(("crop.", "data."))]
    quick += [f"data.{part}_scenes={count}" for part, count in (("train", 4), ("val", 2), ("test", 1))]
    asked = ["+experiment=decisive", f"+experiment/decisive={','.join(ARMS)}", "seed=0", "trainer.max_steps=1"]
    try:
        assert command(monkeypatch, train, *asked, *quick, *backbones(backbone), UNTRACKED) == 0
        assert "2 jobs started, 2 finished" in capsys.readouterr().err
    finally:
        HydraConfig.instance().cfg = None  # a sweep's mode would stay for tests that run without Hydra
    assert collect(study, Path("runs/decisive")) == 2
    assert collect(study, Path("runs/decisive")) == 0
    assert [(one.arm, one.seed, one.image_tokens) for one in read_results(study)] == [
        ("mlp_overlap0", 0, 80), ("qformer_cubemap", 0, 78)
    ]  # fmt: skip
    assert "2 of 2 jobs have results" in write_report(study)
