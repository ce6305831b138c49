"""The start of a sweep, and what its last lines say."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from panollava.config.sweep import Sweep, _open


def opened(folder: Path, *, overwrite: bool = False) -> Sweep:
    """A start of a sweep, which has ended."""
    hydra = {"sweep": {"dir": str(folder)}, "launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher"}}
    keys = {"hydra": hydra, "tracking": {"type": "none"}, "dry_run": False, "overwrite": overwrite}
    cfg = OmegaConf.create(keys)
    assert isinstance(cfg, DictConfig)
    sweep = _open(cfg)
    sweep.lock.release()
    return sweep


def test_a_requeued_sweep_is_the_same_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    ids = [opened(tmp_path).start.id for _ in range(2)]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    ids += [opened(tmp_path).start.id for _ in range(2)]
    monkeypatch.setenv("SLURM_JOB_ID", "471")
    ids.append(opened(tmp_path).start.id)
    assert ids[1] == ids[2] == ids[3]
    assert len(set(ids)) == 3


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_command_that_resumes_a_sweep_has_no_overwrite(tmp_path: Path, overwrite: bool) -> None:
    said = opened(tmp_path, overwrite=overwrite)._summary([], [], [], is_whole=False)
    which = " without overwrite=true" if overwrite else ""
    assert f"Run the same command{which} to resume what is not finished." in said
