"""What is told of a stage before its first step, beside what autograd really keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.runs import QUICK, UNTRACKED, backbones, opened

from panollava.logs import configure_console
from panollava.run.build_stage import build_stage
from panollava.run.memory import _free, check_whole, estimate, forecast, longest


@pytest.mark.parametrize(
    ("stage", "argument"),
    [("vision", "vision_trainable_blocks=0"), ("vision", "vision_trainable_blocks=all"), ("finetune", "lr=0.1")],
)
def test_the_estimate_is_of_the_right_size(
    backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, argument: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(*backbones(backbone), *QUICK, UNTRACKED, f"stage.{stage}.{argument}") as run:
        module, options = build_stage(run, stage).train(), run.stage_options(stage)
        window = next(iter(run.batches(stage, options).windows(0)))
        batch = longest(window[0], run.backbones.image_tokens + options.max_text_length)
        memory = estimate(run, module, options)
        weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = module(batch)
        assert output.losses
    assert 1 / 2 < memory.step / sum(kept.values()) < 2
    trained = sum(parameter.numel() for parameter in module.trained().values())
    assert (memory.gradients, memory.optimiser) == (4 * trained, 8 * trained)
    everything = [*module.parameters(), *module.buffers()]
    assert memory.weights == sum(tensor.numel() * tensor.element_size() for tensor in everything)


def test_what_is_told(
    backbone: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(*backbones(backbone), *QUICK, UNTRACKED) as run:
        module = build_stage(run, "finetune")
        capsys.readouterr()
        forecast(run, "finetune", module, run.stage_options("finetune"))
        told = capsys.readouterr().err
        assert "Its sequences: 80 image tokens and up to 64 of text, 144 of 512 positions." in told
        assert "a batch of 4" in told
        assert "may not fit" not in told
        monkeypatch.setattr("panollava.run.memory._free", lambda device: 1000)
        forecast(run, "finetune", module, run.stage_options("finetune"))
        assert "may not fit: use a smaller stage.finetune.batch_size" in capsys.readouterr().err


def test_what_earlier_stages_have_left_to_the_allocator_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("mem_get_info", (30, 140)), ("memory_reserved", 100), ("memory_allocated", 40)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert _free(torch.device("cuda", 0)) == 90


@pytest.mark.parametrize(("total", "is_sharded", "warns"), [(899, True, True), (900, True, False), (1, False, False)])
def test_a_model_in_shards_that_no_gpu_can_evaluate_is_told_of(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    total: int,
    is_sharded: bool,
    warns: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=total))
    parts = {"tower": SimpleNamespace(model=torch.nn.Linear(20, 10)), "language": torch.nn.Linear(23, 10)}
    run: Any = SimpleNamespace(
        is_sharded=is_sharded,
        backbones=SimpleNamespace(**parts),
        compute=SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.bfloat16),
    )
    configure_console()
    check_whole(run)
    told = capsys.readouterr().err
    assert ("evaluation.enabled=false, and afterwards python -m panollava.eval <run> device=cpu" in told) is warns
