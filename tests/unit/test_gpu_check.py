"""The GPU check's rows and table, its count of operations, and the peaks of GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experiments.gpu.check import PARTS, SECONDS
from experiments.gpu.flops import step_flops
from experiments.gpu.hardware import peak_tflops
from experiments.gpu.measure import agreement
from experiments.gpu.models import SMALL, Setting, instruct_stage, overlap_stage, panoramas, with_texts
from experiments.gpu.rows import (
    FAILED,
    NEEDS_GPU,
    NOT_INSTALLED,
    OK,
    WRONG,
    Check,
    Row,
    UnavailableError,
    compared,
    results,
    table,
)


def _raises(error: Exception) -> Callable[[], list[Row]]:
    def check() -> list[Row]:
        raise error

    return check


def test_a_check_that_raises_is_a_row_and_the_next_ones_run() -> None:
    def checks() -> Iterator[Check]:
        yield "lost", _raises(RuntimeError("no\n  memory"))
        yield "kernel", _raises(UnavailableError(NOT_INSTALLED, "no kernel"))
        yield "fp16", _raises(UnavailableError(NEEDS_GPU, "no fp16"))
        yield "two", lambda: [compared("good", 0.1, 0.1), compared("bad", 0.2, 0.1)]
        yield "none", lambda: [compared("none", float("nan"), 1.0)]
        raise ValueError("while building")

    tidied: list[bool] = []
    rows = list(results("part", checks(), lambda: tidied.append(True)))
    states = [FAILED, NOT_INSTALLED, NEEDS_GPU, OK, WRONG, WRONG, FAILED]
    assert [(row.what, row.state) for row in rows] == list(
        zip(["lost", "kernel", "fp16", "good", "bad", "none", "part"], states, strict=True)
    )
    assert rows[0].note == "RuntimeError: no memory"
    assert rows[-1].note == "ValueError: while building"
    assert len(tidied) == 6


def test_the_table_names_the_gpu_and_shows_every_row() -> None:
    fast = Row("step", note="a | b", milliseconds=12.34, tokens_per_second=56789.0, tflops=123.4, mfu=0.395)
    text = table(
        {"GPU": "NVIDIA L4, 24 GB", "flash-attn": "not installed"}, {"one": [compared("good", 0.001, 0.1), fast]}
    )
    assert "- GPU: NVIDIA L4, 24 GB" in text
    assert "| one | good | ok | 0.001 | 0.1 |  |" in text
    assert "| one | step | 12.3 | 56,789 | 123.4 | 39.5 |  | a \\| b |" in text


def test_all_parts_together_take_at_most_nine_minutes_on_a_gpu() -> None:
    assert sum(part.seconds for part in PARTS.values()) <= SECONDS["cuda"] <= 9 * 60


def test_gradients_may_differ_more_than_losses() -> None:
    expected = {"loss": torch.ones(1), "gradients": torch.ones(4)}
    found = {name: 1.1 * value for name, value in expected.items()}
    rows = agreement("step", found, expected, torch.bfloat16, "")
    assert [(row.what, row.state) for row in rows] == [("step: loss", WRONG), ("step: gradients", OK)]
    assert [row.error for row in rows] == pytest.approx([0.1, 0.1], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", None),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla T4", None),
    ],
)
def test_peaks_are_those_of_listed_gpus(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)  # put back afterwards
    return Setting.of("cpu", SMALL, tmp_path)


@pytest.mark.parametrize("name", ["vision", "resampler", "finetune"])
def test_operations_are_those_that_pytorch_counts(setting: Setting, name: str) -> None:
    if name == "vision":
        stage, batch = overlap_stage(setting, torch.float32, SMALL.resampler), panoramas(SMALL, 2)
    else:
        stage = instruct_stage(setting, SMALL.half_b, torch.float32, name, dropout=0.0)
        batch = with_texts(SMALL, SMALL.half_b, 2)
    counted = step_flops(stage, batch, setting.compute)
    # Fused kernels compute the scores again in the backward pass, which is no operation of the model; the covariance
    # of stage 1's loss is none of a layer, 1.8 % here.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        torch.stack(list(stage(batch).losses.values())).sum().backward()
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)
