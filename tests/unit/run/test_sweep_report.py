"""Which jobs of a sweep are one setting, and which are compared at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from panollava.evaluation.predictions import Prediction
from panollava.run.sweep_report import Job, _compared
from panollava.sweep_folder import JobRecord


def job(resampler: str, seed: int, epochs: int, share: float, *, swept: dict[str, str]) -> tuple[JobRecord, Job]:
    """An evaluated job with about this share of right answers."""
    own = np.random.default_rng([seed, epochs])
    answers = [
        Prediction(f"s{at}", f"i{at // 4}", "k", "q", "yes" if own.random() < share else "no", ("yes",), 0.1)
        for at in range(80)
    ]
    name = f"{resampler}_{epochs}_{seed}"
    config: dict[str, Any] = {
        "form": 4,
        "seed": seed,
        "data": {"type": "world"},
        "model": {"resampler": {"type": resampler}},
        "stage": {"run": ["finetune"], "finetune": {"epochs": epochs}},
    }
    metrics = {
        "settings": {"image_tokens": 81, "timing": {"device": "cpu", "batch_size": 8}},
        "captions": {"words": "unicode"},
        "count": len(answers),
        "exact_match": share,
        "latency": {"mean_s": 0.1},
        "blank_exact_match": None,
    }
    record = JobRecord(name, "x", "finished", {**swept, "seed": str(seed)})
    return record, Job(name, config, {"finetune": {}}, metrics, answers, 1000, stage="finetune")


def report(jobs: list[tuple[JobRecord, Job]], folder: Path) -> str:
    return "\n".join(_compared(jobs, "exact match", folder))


def test_settings_of_one_start_have_their_swept_values(tmp_path: Path) -> None:
    jobs = [
        job(kind, seed, 3, share, swept={"model.resampler": kind})
        for kind, share in (("mlp", 0.9), ("qformer", 0.5))
        for seed in (1, 2, 3)
    ]
    text = report(jobs, tmp_path)
    assert "The settings differ in resampler.\n" in text
    assert "- resampler=qformer is worse than resampler=mlp over seeds: " in text
    assert "epochs" not in text
    assert "times of an answer" not in text


def test_other_epochs_in_the_same_folder_are_named(tmp_path: Path) -> None:
    """Epochs may change on resuming, so that a second start has the same folder."""
    jobs = [
        job(kind, seed, epochs, share, swept={"model.resampler": kind})
        for kind, epochs, share in (("mlp", 10, 0.9), ("qformer", 3, 0.5))
        for seed in (1, 2, 3)
    ]
    assert "The settings differ in resampler, stage.finetune.epochs.\n" in report(jobs, tmp_path)


def test_other_epochs_are_another_setting(tmp_path: Path) -> None:
    jobs = [
        job("mlp", seed, epochs, 0.8, swept={"model.resampler": "mlp"}) for epochs in (3, 10) for seed in (epochs, 2)
    ]
    text = report(jobs, tmp_path)
    assert "| stage.finetune.epochs | seeds | " in text
    assert "| 3 | 2 | " in text
    assert "| 10 | 2 | " in text
    of_starts = [replace(record, swept={"seed": record.swept["seed"]}) for record, _ in jobs[:2]]
    mixed = [*zip(of_starts, (own for _, own in jobs[:2]), strict=True), *jobs[2:]]
    assert report(mixed, tmp_path) == text


def test_seeds_trained_on_other_records_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The records were corrected before the last seed: their files have the same names, and the configs are equal."""
    jobs = [job("mlp", seed, 3, 0.8, swept={}) for seed in (1, 2, 3)]
    texts = zip(jobs, ("before", "before", "corrected"), strict=True)
    jobs = [(record, replace(own, training={"train.texts": text})) for (record, own), text in texts]
    line = "were not trained alike: train.texts is before (mlp_3_1, mlp_3_2), corrected (mlp_3_3).\n"
    with caplog.at_level("WARNING"):
        assert line in report(jobs, tmp_path)
    assert line.strip() in caplog.text
    assert "not trained alike" not in report(jobs[:2], tmp_path)


def test_a_job_whose_last_start_failed_is_not_compared(tmp_path: Path) -> None:
    """It has answers of an earlier start, whose last stage was another one."""
    jobs = [job("mlp", seed, 3, 0.8, swept={}) for seed in (1, 2, 3)]
    failed = replace(jobs[0][0], status="failed"), replace(jobs[0][1], stage="resampler")
    text = report([failed, *jobs[1:]], tmp_path)
    assert text.startswith("Not compared, as their last start did not finish: mlp_3_1.\n")
    assert "mlp_3_1 " not in text.split("\n", 1)[1]
    assert report([failed], tmp_path) == text.split("\n")[0] + "\n"
