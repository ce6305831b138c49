"""What resamplers of learnt tokens share: attention reads patches in any order, and tokens attend to each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from panollava.model.resampler.perceiver import PerceiverResampler
from panollava.model.resampler.qformer import QformerResampler

COMMON = {"input_width": 6, "output_width": 32, "width": 16, "heads": 2}
KINDS = ["qformer", "perceiver"]
pytestmark = pytest.mark.parametrize("kind", KINDS)


def build(kind: str, layers: int = 2, **changes: float) -> tuple[nn.Module, Tensor]:
    """The resampler, and what its tokens start from."""
    torch.manual_seed(0)
    if kind == "qformer":
        qformer = QformerResampler(**{**COMMON, "queries": 5, "layers": layers, **changes}).double()
        return qformer, qformer.queries
    perceiver = PerceiverResampler(**{**COMMON, "latents": 5, "depth": layers, **changes}).double()
    return perceiver, perceiver.latents


def run(resampler: nn.Module, features: Tensor) -> Tensor:
    mask = torch.ones(features.shape[:2], dtype=torch.bool)
    return resampler(features, grid=(1, features.shape[2]), view_mask=mask, cameras=torch.zeros(*mask.shape, 11))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_without_a_shortcut_the_order_of_patches_is_not_seen_and_there_is_no_grid(kind):
    (resampler, _), features = build(kind, shortcut=False), draw(2, 3, 7, 6)
    assert resampler.token_grid((1, 7)) is None
    tokens = run(resampler, features)
    torch.testing.assert_close(run(resampler, features[:, :, torch.randperm(7)]), tokens, rtol=0, atol=1e-12)
    assert (run(resampler, features.roll(1, dims=-1)) - tokens).abs().max() > 1e-2


def test_a_token_starts_from_the_mean_of_its_rectangle(kind):
    """With the layers switched off it depends on nothing else."""
    (resampler, start), features = build(kind, layers=1), draw(1, 1, 5 * 4, 6)
    assert resampler.token_grid((2, 10)) == (1, 5)
    with torch.no_grad():
        for name, weight in resampler.layers.named_parameters():
            if "factors" in name:
                torch.testing.assert_close(weight, torch.full_like(weight, 0.1))
                weight.zero_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    tokens = resampler(features, grid=(2, 10), view_mask=mask, cameras=torch.zeros(1, 1, 11))[0, 0]
    normed = resampler.shortcut.norm(features[0, 0]).unflatten(0, (2, 5, 2)).mean(dim=(0, 2))  # (5, 6), by rectangle
    expected = resampler.norm(resampler.output_projection(start + resampler.shortcut.linear(normed)))
    torch.testing.assert_close(tokens, expected)


def test_branches_are_scaled_beside_a_shortcut_alone(kind):
    """Up to version 0.2 there was neither."""
    with_it, without = (build(kind, shortcut=shortcut)[0].state_dict() for shortcut in (True, False))
    assert without.keys() == {name for name in with_it if "factors" not in name and "shortcut" not in name}
    assert any("factors" in name for name in with_it)


@pytest.mark.parametrize("one", [0, 4])
def test_every_token_hears_every_other(kind, one):
    """The first and the last, so there is no order among them either."""
    (resampler, start), features = build(kind, layers=1), draw(1, 1, 7, 6)
    before = run(resampler, features)
    with torch.no_grad():
        start[one] += draw(16)
    assert ((run(resampler, features) - before).abs().amax(-1)[0, 0] > 1e-6).all()


def test_every_token_reads_every_patch(kind):
    (resampler, _), features = build(kind, layers=1), draw(1, 1, 7, 6)
    before = run(resampler, features)
    for patch in range(7):
        changed = features.clone()
        changed[0, 0, patch] += draw(6)
        assert ((run(resampler, changed) - before).abs().amax(-1)[0, 0] > 1e-6).all()


def test_tokens_start_different(kind):
    tokens = run(build(kind)[0], draw(1, 1, 7, 6))[0, 0]
    assert torch.pdist(tokens).min() > 0.5


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_tokens_have_unit_scale_whatever_the_encoders(kind, scale):
    tokens = run(build(kind)[0], scale * draw(2, 3, 7, 6))
    torch.testing.assert_close(tokens.square().mean(-1), torch.ones(2, 3, 5).double(), rtol=1e-2, atol=1e-2)


def test_dropout_is_of_training_alone(kind):
    (resampler, _), features = build(kind, dropout=0.5), draw(1, 1, 7, 6)
    assert not torch.equal(run(resampler, features), run(resampler, features))
    resampler.eval()
    assert torch.equal(run(resampler, features), run(build(kind)[0], features))


def test_heads_must_divide_the_width(kind):
    with pytest.raises(ValueError, match=r"model\.resampler\.heads=3 does not divide model\.resampler\.width=16"):
        build(kind, heads=3)
