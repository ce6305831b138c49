"""trainer.compile: the same steps and the same names, and a word where there is no compiler."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.runs import QUICK, UNTRACKED, backbones, run_train, stage_folder
from support.toy_training import Toy, steps

from panollava.checkpoint import BEST
from panollava.training.parallel import check_compiler


def test_a_compiled_stage_takes_the_same_steps_under_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain, compiled = Toy(tmp_path / "plain"), Toy(tmp_path / "compiled")
    plain.fit(steps(3))
    compiled.fit(steps(3), compile=True)
    assert torch.equal(compiled.weight(), plain.weight())
    assert set(load_file(tmp_path / "compiled" / BEST / "trained.safetensors")) == {"weight"}
    assert compiled.checkpoints() == plain.checkpoints()


def fails(*_: object) -> None:
    """A backend without a header, in the words of torch 2.15's."""
    raise RuntimeError(
        "C++ compile error\n\nCommand:\ng++ a.cpp\n\nOutput:\na.cpp:1: fatal error: Python.h: No such file."
    )


def is_stopped(*_: object) -> None:
    """A backend whose compiler gets the Ctrl-C that this process gets."""
    os.kill(os.getpid(), signal.SIGINT)
    raise RuntimeError("C++ compile error")


def test_what_stops_the_compiler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.compile
    monkeypatch.setattr(torch, "compile", functools.partial(original, backend=fails))
    with pytest.raises(
        ValueError, match=r"torch\.compile failed: .*Python\.h: No such file\. Use trainer\.compile=false"
    ):
        Toy(tmp_path / "fails").fit(steps(3), compile=True)
    monkeypatch.setattr(torch, "compile", functools.partial(original, backend=is_stopped))
    with pytest.raises(KeyboardInterrupt):
        Toy(tmp_path / "stopped").fit(steps(3), compile=True)


@pytest.mark.skipif("PANOLLAVA_COMPILE" not in os.environ, reason="minutes: set PANOLLAVA_COMPILE=1")
@pytest.mark.parametrize("stage", ["vision", "resampler", "finetune"])
def test_the_default_backend_trains_the_same(
    backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [*backbones(backbone), *QUICK, UNTRACKED, f"stage={stage}", "evaluation.enabled=false", "optim.eps=1.0"]
    for compiled in ("false", "true"):
        run_train(*asked, f"trainer.compile={compiled}", f"experiment_name={compiled}", "trainer.max_steps=2")
    kept = [load_file(stage_folder(name, stage) / BEST / "trained.safetensors") for name in ("false", "true")]
    assert kept[0].keys() == kept[1].keys()
    for name, value in kept[0].items():
        torch.testing.assert_close(kept[1][name], value, rtol=1e-3, atol=1e-4)


def test_no_compiler_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"C\+\+ compiler, and no-such-compiler is not found.*trainer\.compile=false"):
        check_compiler("cpu")
    monkeypatch.setenv("CXX", "python3")
    check_compiler("cpu")
