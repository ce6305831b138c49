"""Stages 2 and 3: what trains, and that the loss is the next token's on the labelled tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from panollava.batch import IGNORE_INDEX, Batch
from panollava.stages.language import InstructStage

Build = Callable[..., Any]
BIMAMBA = ("resampler=bimamba", "resampler.width=16", "resampler.state=4", "resampler.head_width=8")
CASES = [
    pytest.param("resampler", ("lora=lora",), id="resampler"),
    pytest.param("finetune", ("lora=lora", "lora.dropout=0.1"), id="finetune-lora"),
    pytest.param("finetune", ("lora=lora", "lora.use_dora=true"), id="finetune-dora"),
    pytest.param("finetune", ("lora=none",), id="finetune-without-lora"),
    pytest.param("finetune", ("lora=lora", *BIMAMBA), id="finetune-bimamba"),
]


def should_train(names: set[str], stage: str, arguments: tuple[str, ...]) -> set[str]:
    """DESIGN's table: resampler, position's weights and projector, and in finetune the adapter."""
    new = ("model.vision.resampler.", "model.position.", "model.projector.")
    adapted = stage == "finetune" and "lora=lora" in arguments
    return {name for name in names if name.startswith(new) or (adapted and ".lora_" in name)}


@pytest.mark.parametrize(("stage", "arguments"), CASES)
def test_what_the_table_says_trains_and_nothing_else(built: Build, stage: str, arguments: tuple[str, ...]) -> None:
    case = built(stage, *arguments)
    before = case.tensors()
    case.train(steps=3)  # an adapter's A moves from the second step on: its B starts at zero
    after = case.tensors()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = should_train(set(before), stage, arguments)
    assert changed == expected
    assert {f"model.{name}" for name in case.stage.trained()} == expected
    assert any(".lora_" in name for name in before) == (stage == "finetune" and "lora=lora" in arguments)
    assert {"model.vision.tower.mean"} < set(before)  # buffers were compared too


@pytest.mark.parametrize(("stage", "arguments"), CASES)
def test_every_trained_parameter_gets_a_gradient(built: Build, stage: str, arguments: tuple[str, ...]) -> None:
    case = built(stage, *arguments)
    case.train(steps=1)
    case.stage(case.batch).losses["language"].backward()
    assert [name for name, p in case.stage.trained().items() if p.grad is None or not p.grad.any()] == []
    assert [name for name, p in case.stage.named_parameters() if not p.requires_grad and p.grad is not None] == []


def test_backbones_are_in_training_mode_only_where_they_learn(built: Build) -> None:
    frozen = built("resampler").stage.train()
    for part in (frozen.model.vision.tower, frozen.model.language_model):
        assert not any(module.training for module in part.modules())
    for part in (frozen.model.vision.resampler, frozen.model.projector):
        assert all(module.training for module in part.modules())
    recomputed = built("resampler", "trainer.checkpoint_activations=true").stage.train().model.language_model
    # transformers asks the blocks for their mode, and nothing in them may drop anything.
    blocks = set(recomputed.model.layers)
    assert {module for module in recomputed.modules() if module.training} == blocks
    adapted = built("finetune", "lora=lora").stage.train()
    assert not any(module.training for module in adapted.model.vision.tower.modules())
    dropouts = [module for name, module in adapted.model.named_modules() if name.endswith("lora_dropout")]
    assert dropouts
    assert all(module.training for module in dropouts)
    assert not any(module.training for module in adapted.eval().modules())


@pytest.mark.parametrize("stage", ["resampler", "finetune"])
def test_loss_and_count_are_those_of_one_sample_and_token_at_a_time(built: Build, stage: str) -> None:
    case = built(stage)
    lengths = case.batch.attention_mask.sum(dim=1)
    assert len(set(lengths.tolist())) > 1 or stage == "resampler"
    total, count, right = 0.0, 0, 0
    case.stage.eval()
    for index, length in enumerate(lengths.tolist()):
        ids, labels = case.batch.input_ids[index, :length], case.batch.labels[index, :length]
        logits = full_logits(case.stage, case.batch, index, length)
        for place in range(1, length):
            if labels[place] != IGNORE_INDEX:
                assert labels[place] == ids[place]
                total -= float(logits[place - 1].double().log_softmax(dim=-1)[labels[place]])
                right += int(logits[place - 1].argmax() == labels[place])
                count += 1
    output = case.stage(case.batch)
    assert case.stage.counts(case.batch) == {"language": count}
    assert output.losses["language"].item() == pytest.approx(total, rel=1e-5)
    assert output.metrics["language/token_accuracy"].item() == right


@torch.no_grad()
def full_logits(stage: InstructStage, batch: Batch, index: int, length: int) -> torch.Tensor:
    """Logits of one sample by itself, without its padding."""
    row = slice(index, index + 1)
    assert batch.input_ids is not None
    return stage.model(
        input_ids=batch.input_ids[row, :length],
        attention_mask=torch.ones(1, length, dtype=torch.long),
        pixel_values=batch.pixel_values[row],
        cameras=batch.cameras[row],
    ).logits[0]


def test_gradients_are_those_of_the_full_logits(built: Build) -> None:
    case = built("resampler")
    case.stage.train()
    parameters = list(case.stage.trained().values())
    batch = case.batch
    kept = torch.autograd.grad(case.stage(batch).losses["language"], parameters)
    output = case.stage.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.pixel_values,
        cameras=batch.cameras,
        view_mask=batch.view_mask,
    )
    logits, targets = output.logits[:, :-1], batch.labels[:, 1:]
    loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
    for one, other in zip(kept, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_batch_with_nothing_to_learn_costs_nothing(built: Build) -> None:
    case = built("finetune")
    case.batch.labels.fill_(IGNORE_INDEX)
    output = case.stage(case.batch)
    assert case.stage.counts(case.batch) == {"language": 0}
    assert output.losses["language"].item() == 0
    output.losses["language"].backward()
    assert all(p.grad is None or not p.grad.any() for p in case.stage.trained().values())


def test_stage_two_reads_all_text_and_stage_three_the_answers(built: Build) -> None:
    wide, narrow = built("resampler").batch, built("finetune").batch
    assert int((wide.labels != IGNORE_INDEX).sum()) > int((narrow.labels != IGNORE_INDEX).sum()) > 0
