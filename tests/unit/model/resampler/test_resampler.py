"""What every resampler must do; a new one joins by an entry in ``SMALL``."""

from __future__ import annotations

import inspect

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from panollava.component import component_names
from panollava.crop.cameras import camera_tensor
from panollava.crop.strategies import AnyresE2pCrop
from panollava.model.components import build_component, component_class, keeps_width
from panollava.model.resampler.mlp import MlpResampler
from panollava.model.trainable import refuse_buffers

SMALL: dict[str, dict[str, int]] = {
    "bimamba": {"width": 16, "layers": 2, "state": 4, "head_width": 8},
    "c_abstractor": {"width": 16, "depth": 2, "tokens_per_side": 3},
    "identity": {},
    "mlp": {"depth": 3, "width": 16},
    "perceiver": {"latents": 5, "depth": 2, "width": 16, "heads": 2},
    "pool": {"tokens_per_side": 2},
    "qformer": {"queries": 5, "layers": 2, "width": 16, "heads": 2},
}
NAMES = component_names("model.resampler", "Resampler")
GRID = (3, 4)
VIEWS = 5


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return component_class("resampler", name)(input_width=6, output_width=output_width(name), **SMALL[name])


def output_width(name: str) -> int:
    return 6 if keeps_width(component_class("resampler", name)) else 10


def run(resampler: nn.Module, features: Tensor, *, grid: tuple[int, int] = GRID, masked: int | None = None) -> Tensor:
    cameras = camera_tensor(AnyresE2pCrop(overlap=0.0).cameras())[: features.shape[1]]
    view_mask = torch.ones(features.shape[:2], dtype=torch.bool)
    if masked is not None:
        view_mask[:, masked] = False
    cameras = cameras.expand(len(features), -1, -1)
    return resampler(features, grid=grid, view_mask=view_mask, cameras=cameras)


def features(grid: tuple[int, int] = GRID) -> Tensor:
    return torch.randn(2, VIEWS, grid[0] * grid[1], 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_typed_keywords(name):
    parameters = list(inspect.signature(component_class("resampler", name)).parameters.values())
    assert all(p.kind is p.KEYWORD_ONLY and p.annotation is not p.empty for p in parameters)
    required = {p.name for p in parameters if p.default is p.empty}
    assert required == {"input_width", "output_width"}


@pytest.mark.parametrize("grid", [GRID, (4, 4), (1, 7)])
@pytest.mark.parametrize("name", NAMES)
def test_token_count_and_grid_are_known_beforehand(name, grid):
    resampler = build(name)
    count, kept = resampler.token_count(grid), resampler.token_grid(grid)
    assert run(resampler, features(grid), grid=grid).shape == (2, VIEWS, count, output_width(name))
    assert kept is None or kept[0] * kept[1] == count


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter_and_the_features(name):
    resampler, inputs = build(name), features().requires_grad_()
    out = run(resampler, inputs)
    (out * torch.linspace(-1, 2, out.numel()).view_as(out).cos()).sum().backward()
    for label, tensor in [("features", inputs), *resampler.named_parameters()]:
        assert tensor.grad is not None, label
        assert torch.isfinite(tensor.grad).all(), label
        assert tensor.grad.abs().sum() > 0, label


@pytest.mark.parametrize("content", [0.0, 1e4])
@pytest.mark.parametrize("name", NAMES)
def test_a_padding_view_touches_no_other(name, content):
    resampler, inputs = build(name), features()
    others = [0, 1, 3, 4]
    before = run(resampler, inputs, masked=2)
    inputs[:, 2] = content
    after = run(resampler, inputs, masked=2)
    torch.testing.assert_close(after[:, others], before[:, others], rtol=0, atol=1e-6)
    assert torch.isfinite(after).all()


@pytest.mark.parametrize("name", NAMES)
def test_samples_do_not_touch_each_other(name):
    resampler, inputs = build(name), features()
    torch.testing.assert_close(run(resampler, inputs)[1:], run(resampler, inputs[1:]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_stays_near_float32(name):
    resampler, inputs = build(name), features().requires_grad_()
    full = run(resampler, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run(resampler, inputs)
        mixed.float().square().sum().backward()
    assert (mixed.float() - full).norm() < 0.03 * full.norm()
    assert all(torch.isfinite(leaf.grad).all() for leaf in (inputs, *resampler.parameters()))
    low = run(resampler.bfloat16(), inputs.bfloat16())
    assert low.dtype == torch.bfloat16
    assert (low.float() - full).norm() < 0.05 * full.norm()


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_the_same_to_more_places(name):
    resampler, inputs = build(name), features()
    full = run(resampler, inputs)
    more = run(resampler.double(), inputs.double())
    assert more.dtype == torch.float64
    torch.testing.assert_close(full.double(), more, rtol=0, atol=1e-4)
    assert not torch.equal(more.float().double(), more) or name == "identity"


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_input(name):
    """One view of one patch of one panorama."""
    resampler = build(name)
    tokens = run(resampler, features((1, 1))[:1, :1], grid=(1, 1))
    assert tokens.shape == (1, 1, resampler.token_count((1, 1)), output_width(name))
    assert torch.isfinite(tokens).all()


@pytest.mark.parametrize("name", NAMES)
def test_without_memory_it_still_knows_its_tokens(name):
    """As a run asks before any weight is made."""
    with torch.device("meta"):
        outline = build(name)
    assert (outline.token_count(GRID), outline.token_grid(GRID)) == (
        build(name).token_count(GRID),
        build(name).token_grid(GRID),
    )
    assert all(parameter.is_meta for parameter in outline.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_everything_it_knows_is_in_its_weights(name):
    """A buffer would come out of a construction on the meta device as noise."""
    assert list(build(name).buffers()) == []


class NormedResampler(MlpResampler):
    """One of another package, with running statistics."""

    def __init__(self, *, input_width: int, output_width: int) -> None:
        super().__init__(input_width=input_width, output_width=output_width)
        self.out = nn.Sequential(nn.BatchNorm1d(output_width))


def test_buffers_which_no_checkpoint_has_are_refused(monkeypatch):
    monkeypatch.setattr("panollava.model.components.component_class", lambda *_: NormedResampler)
    said = (
        "^model.resampler.type=lab:Normed: checkpoints .* the buffer out.0.running_mean of BatchNorm1d. Take LayerNorm"
    )
    with pytest.raises(ValueError, match=said):
        build_component("resampler", {"type": "lab:Normed"}, seed=0, input_width=6, output_width=10)


def test_a_stage_may_have_constants_and_the_buffers_of_the_backbones():
    stage, model = nn.Module(), nn.ModuleDict({"language_model": nn.BatchNorm1d(2), "vision": nn.Module()})
    stage.model, model["vision"].tower = model, nn.BatchNorm1d(2)
    stage.register_buffer("weights", torch.ones(2), persistent=False)
    refuse_buffers(stage, "stage.own", constants=True)
    refuse_buffers(nn.ModuleDict({"vision": model["vision"]}), "stage.own", constants=True)
    stage.register_buffer("codebook", torch.ones(2))
    with pytest.raises(ValueError, match=r"^stage.own: .* buffer codebook of Module.*persistent=False"):
        refuse_buffers(stage, "stage.own", constants=True)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_is_the_same(name, tmp_path):
    resampler = build(name)
    expected = run(resampler, features())
    save_model(resampler, str(tmp_path / "resampler.safetensors"))
    twin = build(name)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(torch.nan)
    load_model(twin, str(tmp_path / "resampler.safetensors"))
    torch.testing.assert_close(run(twin, features()), expected, rtol=0, atol=0)
