"""What a job of a sweep does before its work."""

from __future__ import annotations

from pathlib import Path

import pytest

from panollava.config.job import name_cluster_job


def test_a_job_of_slurm_is_named_by_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    name_cluster_job("sweep/resampler-mlp_seed-0")  # outside of SLURM
    assert not (tmp_path / "asked").exists()
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    name_cluster_job("sweep/resampler-mlp_seed-0")  # the job in which a sweep was started keeps its name
    assert not (tmp_path / "asked").exists()
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    name_cluster_job("sweep/resampler-mlp_seed-0")
    monkeypatch.setenv("SLURM_PROCID", "1")  # one process of the job names it
    name_cluster_job("sweep/resampler-mlp_seed-1")
    assert (tmp_path / "asked").read_text() == "update JobId=4711 Name=sweep/resampler-mlp_seed-0\n"


def test_a_missing_program_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    name_cluster_job("sweep/resampler-mlp_seed-0")
