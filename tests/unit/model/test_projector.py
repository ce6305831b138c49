"""Projectors: shapes, options, gradients, precision and saving."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_model, save_model

from panollava.component import component_names
from panollava.model.components import component_class
from panollava.model.projector import LinearProjector, MlpProjector


@pytest.mark.parametrize("input_norm", [False, True])
@pytest.mark.parametrize("name", component_names("model.projector", "Projector"))
def test_contract(name, input_norm, tmp_path):
    projector = component_class("projector", name)(input_width=6, output_width=10, input_norm=input_norm)
    tokens = torch.randn(2, 3, 4, 6)
    out = projector(tokens)
    assert out.shape == (2, 3, 4, 10)
    torch.testing.assert_close(projector(tokens[1, 2]), out[1, 2])
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projector.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(projector(tokens).float(), out, rtol=0.05, atol=0.05)
    save_model(projector, str(tmp_path / "p.safetensors"))
    twin = component_class("projector", name)(input_width=6, output_width=10, input_norm=input_norm)
    load_model(twin, str(tmp_path / "p.safetensors"))
    torch.testing.assert_close(twin(tokens), out, rtol=0, atol=0)


@pytest.mark.parametrize("projector", [LinearProjector, MlpProjector])
def test_input_norm_makes_the_scale_irrelevant(projector):
    tokens = torch.randn(5, 6)
    normed = projector(input_width=6, output_width=4, input_norm=True)
    torch.testing.assert_close(normed(tokens), normed(100 * tokens), rtol=1e-3, atol=1e-3)


def test_mlp_width_defaults_to_the_language_models():
    assert MlpProjector(input_width=3, output_width=5).layers[0].out_features == 5
    assert MlpProjector(input_width=3, output_width=5, width=7).layers[0].out_features == 7


def test_linear_is_linear_and_mlp_is_not():
    a, b = torch.randn(2, 6), torch.randn(2, 6)
    for projector, linear in ((LinearProjector, True), (MlpProjector, False)):
        built = projector(input_width=6, output_width=4)
        gap = (built(a + b) - built(a) - built(b) + built(torch.zeros(2, 6))).abs().max()
        assert (gap < 1e-5) == linear
