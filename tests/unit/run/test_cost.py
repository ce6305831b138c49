"""The formulas of memory and FLOPs beside what autograd keeps and what PyTorch counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from support.picture_files import by_pillow, noise
from support.runs import QUICK, UNTRACKED, backbones, opened
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from panollava.model.backbones import Backbones
from panollava.model.lora import add_lora
from panollava.model.trainable import named_weights
from panollava.model.vision import VisionTower
from panollava.run.build_stage import build_stage
from panollava.run.config_check import Gpu
from panollava.run.cost import Block, MicroBatch, Setting, flops, measure, memory
from panollava.run.memory import estimate
from panollava.run.plan import GPUS, peak_of, plan_run

ROWS, LENGTH = 2, 96
SHAPE: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
}
FAMILIES = ("siglip", "clip", "dinov2", "timm_vit")


class Kept:
    """What autograd keeps, in bytes, without the weights of a module."""

    def __init__(self, module: nn.Module) -> None:
        self._weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
        self._found: dict[int, int] = {}

    def note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._found[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self._found.values())


def counted(run: Callable[[], torch.Tensor], module: nn.Module) -> tuple[int, int, int]:
    """Bytes kept, and FLOPs of the forward and the backward pass."""
    kept = Kept(module)
    hooks = torch.autograd.graph.saved_tensors_hooks(kept.note, lambda tensor: tensor)
    with FlopCounterMode(display=False) as forward, hooks:
        output = run()
    with FlopCounterMode(display=False) as backward:
        output.float().sum().backward()
    return kept.bytes, forward.get_total_flops(), backward.get_total_flops()


def block_flops(block: Block, rows: int = ROWS, length: int = LENGTH) -> tuple[int, int]:
    """FLOPs of a block, forward and backward, by the formula of the paper, written out."""
    matrices = 2 * rows * length * block.weights
    scores = 2 * 2 * rows * length * length * block.queries
    return matrices + scores, matrices + 2 * rows * length * block.trained + 5 * scores // 2


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize(("trains", "dropout"), [(False, None), (True, None), (False, 0.1), (False, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_what_a_language_model_keeps_and_computes(
    name: str, dtype: torch.dtype, trains: bool, dropout: float | None, ragged: bool
) -> None:
    model: PreTrainedModel = MODELS[name]().to(torch.float32 if trains else dtype).requires_grad_(trains)
    holder: Any = SimpleNamespace(language_model=model, named_parameters=model.named_parameters)
    if dropout is not None:
        add_lora(holder, rank=8, dropout=dropout)
    decoder = model.get_decoder().train()
    inputs = torch.randn(ROWS, LENGTH, SHAPE["hidden_size"], dtype=dtype, requires_grad=True)
    mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
    mask[0, -8:] = 1 - int(ragged)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            return decoder(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state

    kept, *operations = counted(forward, model)
    blocks = [measure(block, Setting(dtype, is_gpu=False)) for block in decoder.layers]
    scores = ROWS * LENGTH**2 * dtype.itemsize * len(blocks) if ragged else 0
    last_norm = ROWS * LENGTH * SHAPE["hidden_size"] * 4
    copies = dtype.itemsize * sum(block.trained for block in blocks) if dtype is torch.bfloat16 else 0  # of autocast
    found = ROWS * LENGTH * sum(block.kept for block in blocks) + scores + last_norm + copies
    assert 1 / 1.25 < found / kept < 1.25
    expected = [sum(parts) for parts in zip(*map(block_flops, blocks), strict=True)]
    assert operations == pytest.approx(expected, rel=0.05)
    trained = sum(weight.numel() for block in decoder.layers for weight in block.parameters() if weight.requires_grad)
    assert sum(block.trained for block in blocks) == pytest.approx(trained, rel=0.02)  # without norms


@pytest.mark.parametrize("name", FAMILIES)
def test_what_an_encoder_keeps_and_computes(name: str, backbone: Callable[[str], Path]) -> None:
    tower = VisionTower.from_pretrained(backbone(name), attn_implementation="sdpa")
    tower.train_only("all")
    views = torch.zeros(3, 3, *tower.image_size, dtype=torch.uint8)
    kept, forward, backward = counted(lambda: tower.train()(views), tower)
    blocks = [measure(block, Setting(torch.float32, is_gpu=False)) for block in tower.blocks]
    patches = tower.grid[0] * tower.grid[1]
    assert 1 / 1.5 < 3 * patches * sum(block.kept for block in blocks) / kept < 1.5  # a prefix token, the embeddings
    tokens = patches + tower.family.prefix_tokens + int(tower.family.is_timm)
    conv = sum(one.weight.numel() for one in tower.modules() if isinstance(one, nn.Conv2d))
    expected = [sum(parts) for parts in zip(*(block_flops(block, 3, tokens) for block in blocks), strict=True)]
    assert forward == pytest.approx(expected[0] + 2 * 3 * patches * conv, rel=0.02)
    assert backward == pytest.approx(expected[1] + 2 * 3 * patches * conv, rel=0.02)  # pixels have no gradient


@pytest.mark.parametrize("stage", ["vision", "resampler", "finetune"])
@pytest.mark.parametrize("resampler", ["mlp", "qformer", "perceiver", "c_abstractor", "bimamba"])
def test_flops_of_a_stage(
    stage: str, resampler: str, backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [*backbones(backbone), *QUICK, UNTRACKED, f"resampler={resampler}", "store.enabled=false"]
    with opened(*asked, f"stage.{stage}.vision_trainable_blocks=1") as run:
        module, options = build_stage(run, stage).train(), run.stage_options(stage)
        batch = next(iter(run.batches(stage, options).windows(0)))[0]
        with FlopCounterMode(display=False) as counter:
            output = module(batch)
            torch.stack(list(output.losses.values())).sum().backward()
        text = 0 if batch.input_ids is None else batch.input_ids.shape[1] - run.backbones.image_tokens
        found = flops(module, MicroBatch.of(run, module, options, text), Setting.of(run))
    # Scans and correlations of the objective are not counted; layers of a resampler that see fewer tokens are, in full.
    assert 0.5 < (found.encoder + found.forward + found.backward) / counter.get_total_flops() < 2


@pytest.mark.parametrize("name", ["siglip", "clip", "dinov2", "timm_vit"])
def test_models_without_weights_have_the_same_shapes(
    name: str, backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(*backbones(backbone, name), *QUICK, UNTRACKED) as run:
        known = run.backbones
        outline = Backbones(known.model, known.crop_spec, dtype=known.dtype, weights=False)
        one, other = known.composite(), outline.composite()
    shapes = [{n: (tuple(w.shape), w.dtype) for n, w in named_weights(each).items()} for each in (one, other)]
    assert shapes[0] == shapes[1]
    assert all(weight.is_meta for weight in other.parameters())
    assert outline.image_tokens == known.image_tokens
    assert outline.crop.camera_rows.equal(known.crop.camera_rows)


@pytest.mark.parametrize("more", ["stage.finetune.language_trainable_blocks=1", "trainer.checkpoint_activations=true"])
def test_a_plan_is_of_the_opened_model(
    more: str, backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(*backbones(backbone), *QUICK, UNTRACKED, more) as run:
        planned = {stage.name: stage for stage in plan_run(run).stages}
        for name in run.pending:
            module, options = build_stage(run, name), run.stage_options(name)
            assert planned[name].memory == estimate(run, module, options)
            assert planned[name].parameters == sum(weight.numel() for weight in module.parameters())
            assert planned[name].trained == sum(weight.numel() for weight in module.trained().values())


def test_a_micro_batch_is_that_of_the_loader(
    backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows about each of three pictures; with shared prefixes two samples are a row."""
    monkeypatch.chdir(tmp_path)
    for place, name in enumerate("abc", start=1):
        Path(f"{name}.png").write_bytes(by_pillow(noise(64 * place, 128 * place), "PNG"))
    lines = [f"{name}.png,what {number}?,red {number}" for name in "abc" for number in range(2)]
    for split in ("train", "val", "test"):
        Path(f"{split}.csv").write_text("\n".join(["image,question,answer", *lines]) + "\n")
    asked = [*backbones(backbone), *(one for one in QUICK if not one.startswith("data.")), UNTRACKED, "data=csv"]
    for shares, rows in ((False, 4), (True, 2)):
        with opened(*asked, "data.dir=.", f"data.shared_prefix={str(shares).lower()}") as run:
            module, options = build_stage(run, "finetune"), run.stage_options("finetune")
            batch = next(iter(run.batches("finetune", options).windows(0)))[0]
            image = run.backbones.image_tokens
            assert batch.input_ids is not None
            text = (batch.input_ids.shape[1] - image) * rows // 4  # of a sample
            found = MicroBatch.of(run, module, options, text)
            assert found.rows == len(batch.input_ids) == rows
            assert found.length == pytest.approx(batch.input_ids.shape[1], abs=1)  # by rounding
            assert found.prefix == (image if shares else 0)


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_the_peak_of_a_gpu_by_its_name(name: str, gpu: Gpu | None) -> None:
    assert peak_of(name) == (None if gpu is None else GPUS[gpu].peak)
    assert set(GPUS) == set(get_args(Gpu))


def test_memory_follows_the_settings(
    backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [*backbones(backbone), *QUICK, UNTRACKED, "stage.finetune.vision_trainable_blocks=1"]
    with opened(*asked) as run:
        module, options = build_stage(run, "finetune"), run.stage_options("finetune")
        batch = MicroBatch.of(run, module, options, 64)
        plain = memory(module, batch, Setting(torch.float32))
        shards = memory(module, batch, Setting(torch.float32, shards=4))
        recomputed = memory(module, batch, Setting(torch.float32, recomputes=True))
        eager = memory(module, batch, Setting(torch.float32, attention="eager"))
        small = memory(module, batch, Setting(torch.float32, is_4bit=True))
    trained = sum(weight.numel() for weight in module.trained().values())
    assert (plain.gradients, plain.optimiser) == (4 * trained, 8 * trained)
    assert (shards.gradients, shards.activations) == (trained, plain.activations)
    assert recomputed.activations < plain.activations < eager.activations
    assert small.weights < plain.weights
    assert plain.total == plain.weights + plain.gradients + plain.optimiser + plain.step
