"""What is told of a stage before its first step, beside what autograd really keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.runs import QUICK, UNTRACKED, backbones, opened

from panollava.run.build_stage import build_stage
from panollava.run.memory import estimate, forecast, longest


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
