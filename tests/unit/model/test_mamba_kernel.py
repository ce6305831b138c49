"""mamba-ssm's kernels: parity where they can run; elsewhere a stand-in with their signature, and the refusals."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

from panollava.model.resampler.bimamba import BimambaResampler
from panollava.model.state_space import scan as mamba_kernel
from panollava.model.state_space.scan import check_mamba_ssm, mamba_scan, state_space_scan

MODULE = "mamba_ssm.ops.triton.ssd_combined"


def inputs(device: str = "cpu") -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 300, 4, 64), (2, 3, 300, 4), (2, 4), (2, 3, 300, 16), (2, 3, 300, 16), (2, 4)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[1], tensors[2] = tensors[1].sigmoid(), tensors[2].exp()
    return [x.to(device).requires_grad_() for x in tensors]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("periodic", [False, True])
def test_parity_with_the_torch_scan(periodic):
    pytest.importorskip("mamba_ssm")
    results = []
    for kernel in ("torch", "mamba_ssm"):
        leaves = inputs("cuda")
        result = state_space_scan(*leaves, periodic=periodic, kernel=kernel)
        result.square().mean().backward()
        results.append([result.detach(), *(leaf.grad for leaf in leaves)])
    for expected, ours in zip(*results, strict=True):
        assert (ours - expected).abs().max() < 2e-2 * expected.abs().max()


@pytest.mark.parametrize("periodic", [False, True])
def test_what_the_kernels_are_given(periodic, monkeypatch):
    """transformers' own scan in torch has the kernels' signature, and the state in their layout."""
    module = ModuleType(MODULE)
    module.mamba_chunk_scan_combined = mamba2_chunk_scan
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, MODULE, module)
    expected = state_space_scan(*inputs(), periodic=periodic)
    for index in range(2):
        ours = mamba_scan(*(x[index] for x in inputs()), periodic=periodic)
        torch.testing.assert_close(ours, expected[index], rtol=1e-4, atol=1e-4)


def test_refused_without_cuda_or_package(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"kernel=mamba_ssm needs a CUDA device.*kernel=torch"):
        BimambaResampler(input_width=6, output_width=8, width=16, head_width=8, kernel="mamba_ssm")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mamba_kernel, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"kernel=mamba_ssm needs the package mamba-ssm"):
        check_mamba_ssm()


def test_refused_on_another_device():
    with pytest.raises(ValueError, match=r"runs on CUDA alone, and the model is on cpu"):
        state_space_scan(*inputs(), kernel="mamba_ssm")
