"""Running out of memory: what the message says, and the batch that trainer.auto_batch finds."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.processes import succeed
from support.runs import (
    QUICK,
    UNTRACKED,
    assert_same_bits,
    backbones,
    checkpoint_tensors,
    command,
    opened,
    run_train,
    stage_folder,
)

from panollava import predict
from panollava.checkpoint import LAST, read_state
from panollava.model.api import PanoLlava
from panollava.run.build_stage import build_stage
from panollava.run.memory import auto_batch_size, is_out_of_memory, longest, smaller
from panollava.stages.language import InstructStage
from panollava.stages.vision import OverlapStage
from panollava.training.options import StageOptions

Backbone = Callable[[str], Path]
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
)


@pytest.fixture
def arguments(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A quick run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return [*backbones(backbone), *QUICK, UNTRACKED]


def memory_for(
    monkeypatch: pytest.MonkeyPatch,
    samples: int,
    error: Exception = CUDA,
    kind: type = OverlapStage,
    *,
    training: bool = True,
) -> list[tuple[int, int]]:
    """Training, or validating, takes no more than so many samples at once.

    Returns:
        Samples and tokens of each batch that was tried.
    """
    original, tried = kind.forward, []  # type: ignore[attr-defined]

    def forward(self: Any, batch: Any) -> Any:
        if self.training == training:
            tried.append((len(batch), 0 if batch.input_ids is None else batch.input_ids.shape[1]))
            if len(batch) > samples:
                raise error
        return original(self, batch)

    monkeypatch.setattr(kind, "forward", forward)
    return tried


def test_what_is_out_of_memory() -> None:
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    for error in (CUDA, CPU, MemoryError(), RuntimeError("CUDA error: out of memory"), killed):
        assert is_out_of_memory(error)
    for other in (RuntimeError("shape mismatch"), ValueError("empty"), KeyboardInterrupt()):
        assert not is_out_of_memory(other)


@pytest.mark.parametrize(
    ("batch", "accumulate", "expected"),
    [(8, 1, (4, 2)), (6, 1, (3, 2)), (5, 2, (2, 5)), (3, 2, (2, 3)), (7, 1, (1, 7)), (1, 8, None)],
)
def test_a_smaller_batch_has_as_many_samples_a_step(batch: int, accumulate: int, expected: Any) -> None:
    found = smaller(StageOptions(epochs=1, batch_size=batch, accumulate=accumulate, lr=1.0, max_text_length=8))
    assert (found and (found.batch_size, found.accumulate)) == expected


@pytest.mark.parametrize(("error", "training"), [(CUDA, True), (CPU, True), (MemoryError(), False)])
def test_the_message_says_what_to_lower(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception, training: bool
) -> None:
    memory_for(monkeypatch, 2, error, training=training)
    asked = [argument for argument in arguments if not argument.startswith("crop.overlap")]
    with pytest.raises(ValueError, match="Out of memory in stage vision") as refused:
        run_train(*asked, "stage=vision", "stage.vision.batch_size=8", "experiment_name=x")
    assert refused.value.__cause__ is error
    doing = "training" if training else "validating"
    for part in (
        f"{doing} with stage.vision.batch_size=8 (9 views a sample",
        "stage.vision.batch_size=4 stage.vision.accumulate=2 keeps the objective",
        "crop.overlap (0.5)",
        "trainer.auto_batch=true",
        "are free",
    ):
        assert part in str(refused.value)
    for absent in ("max_text_length", "checkpoint_activations"):  # of no use in stage 1
        assert absent not in str(refused.value)
    assert "Out of memory" in (Path("runs/x") / "stage_state.json").read_text("utf-8")


def test_a_loss_over_the_whole_batch_is_not_said_to_stay_the_same(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_for(monkeypatch, 2)
    asked = [*arguments, "stage=vision", "stage.vision.batch_size=8", "stage.vision.loss.type=vicreg_batch"]
    for auto in ("false", "true"):
        with pytest.raises(ValueError, match=r"batch_size=4 needs less, but is another objective") as refused:
            run_train(*asked, f"trainer.auto_batch={auto}", f"experiment_name={auto}")
        assert "keeps the objective" not in str(refused.value)
        assert "auto_batch" not in str(refused.value)


def test_the_batch_that_fits_is_found_and_the_objective_stays(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*arguments, "stage=finetune", "evaluation.enabled=false", "lora.dropout=0.3"]
    sizes = "stage.finetune.batch_size={} stage.finetune.accumulate={}"
    run_train(*asked, "experiment_name=roomy", *sizes.format(2, 3).split())
    tried = memory_for(monkeypatch, 2, kind=InstructStage)
    run_train(*asked, "experiment_name=tight", *sizes.format(6, 1).split(), "trainer.auto_batch=true")
    assert [samples for samples, _ in tried[:3]] == [6, 3, 2]
    tight, roomy = (checkpoint_tensors(stage_folder(name, "finetune") / LAST) for name in ("tight", "roomy"))
    assert_same_bits(tight, roomy)


def test_a_trial_takes_the_longest_texts_and_leaves_nothing_behind(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = memory_for(monkeypatch, 1, kind=InstructStage)
    with opened(*arguments, "trainer.auto_batch=true", "stage.finetune.max_text_length=100") as run:
        stage = build_stage(run, "finetune")
        options = run.stage_options("finetune")
        before = {name: value.clone() for name, value in stage.state_dict().items()}
        state = torch.random.get_rng_state()
        found = auto_batch_size(run, "finetune", stage, options)
        length = run.backbones.image_tokens + options.max_text_length
        assert torch.equal(torch.random.get_rng_state(), state)
        short = next(iter(run.batches("finetune", options).windows(0)))[0]
    assert (found.batch_size, found.accumulate) == (1, options.batch_size)
    assert {tokens for _, tokens in tried} == {length}
    assert all(torch.equal(value, before[name]) for name, value in stage.state_dict().items())
    assert all(parameter.grad is None for parameter in stage.parameters())
    assert short.input_ids is not None
    assert short.input_ids.shape[1] < length
    same = longest(short, 4).input_ids
    assert same is not None
    assert torch.equal(same, short.input_ids)


def tight_on_the_second(*typed: str) -> list[tuple[int, int]]:
    """Trains in one of several processes, the second of which has memory for two samples alone."""
    with pytest.MonkeyPatch.context() as patch:
        tried = memory_for(patch, 2 if os.environ["RANK"] == "1" else 100, kind=InstructStage)
        run_train(*typed)
        return tried


def test_processes_take_a_batch_only_where_all_of_them_can(arguments: list[str]) -> None:
    asked = [*arguments, "stage=finetune", "trainer.auto_batch=true", "trainer.max_steps=1", "evaluation.enabled=false"]
    tried = succeed(partial(tight_on_the_second, *asked, "experiment_name=x"), Path("ranks"))
    assert [[samples for samples, _ in of_one] for of_one in tried] == [[4, 2, 2, 2]] * 2
    assert read_state(stage_folder("x", "finetune") / LAST)["share"] == {
        "processes": 2, "batch_size": 2, "accumulate": 2
    }  # fmt: skip


def test_a_run_that_goes_on_keeps_the_batch_that_was_found(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a machine with more memory: the end is the same to the bit. On one with less the objective stays."""
    asked = [*arguments, "stage=finetune", "trainer.auto_batch=true", "lora.dropout=0.3", "evaluation.enabled=false"]
    asked += ["trainer.save_every_steps=1", "stage.finetune.batch_size=6", "stage.finetune.epochs=2"]
    with monkeypatch.context() as patch:
        memory_for(patch, 2, kind=InstructStage)
        run_train(*asked, "experiment_name=whole")
        run_train(*asked, "experiment_name=cut", "trainer.max_steps=1")
    tried = memory_for(monkeypatch, 100, kind=InstructStage)
    run_train(*asked, "experiment_name=cut")
    assert [samples for samples, _ in tried] == [2] + [2] * 9  # three steps of three
    cut, whole = (checkpoint_tensors(stage_folder(name, "finetune") / LAST) for name in ("cut", "whole"))
    assert_same_bits(cut, whole)
    memory_for(monkeypatch, 1, kind=InstructStage)
    more = [*(one for one in asked if "auto_batch" not in one), "stage.finetune.epochs=3", "experiment_name=cut"]
    way = "With trainer.auto_batch=true or trainer.checkpoint_activations=true the same command resumes"
    with pytest.raises(ValueError, match=way):
        run_train(*more)
    run_train(*more, "trainer.auto_batch=true", "trainer.checkpoint_activations=true")
    state = read_state(stage_folder("cut", "finetune") / LAST)
    assert (state["progress"]["global_step"], state["share"]["batch_size"], state["share"]["accumulate"]) == (6, 1, 6)


def test_not_even_one_sample(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    memory_for(monkeypatch, 0)
    with pytest.raises(ValueError, match="The batch is 1 already"):
        run_train(*arguments, "stage=vision", "trainer.auto_batch=true")


def test_a_model_that_does_not_fit(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def to(self: Any, *args: Any) -> Any:
        raise CUDA

    monkeypatch.setattr(OverlapStage, "to", to)
    with pytest.raises(ValueError, match=r"before its first step: the model itself does not fit.*precision=bf16"):
        run_train(*arguments, "stage=vision")


def test_an_evaluation_says_it_too(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(self: Any, batch: Any, **options: Any) -> list[str]:
        raise CUDA

    monkeypatch.setattr(PanoLlava, "answer", answer)
    with pytest.raises(
        ValueError, match=r"batch_size=4 \(evaluation\.batch_size=4 in training\).*run the same command"
    ):
        run_train(*arguments, "stage=resampler", "evaluation.batch_size=8", "experiment_name=x")
    Image.new("RGB", (64, 32)).save("sphere.png")
    asked = ["checkpoint=runs/x", "image=sphere.png", "question=What?"]
    assert command(monkeypatch, predict, *asked) == 1
    assert "Out of memory while answering" in capsys.readouterr().err
