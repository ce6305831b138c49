"""What sets the C-Abstractor apart: a token hears the patches around its place, and of the others only their mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from panollava.model.resampler.c_abstractor import CAbstractorResampler, SqueezeExcitation


def build(**changes: int) -> CAbstractorResampler:
    torch.manual_seed(0)
    settings = {
        "input_width": 6,
        "output_width": 32,
        "width": 16,
        "depth": 1,
        "tokens_per_side": 6,
        "positions_per_side": 4,
    }
    return CAbstractorResampler(**settings | changes)


def run(resampler: CAbstractorResampler, features: Tensor, grid: tuple[int, int]) -> Tensor:
    mask = torch.ones(features.shape[:2], dtype=torch.bool)
    return resampler(features, grid=grid, view_mask=mask, cameras=torch.zeros(*mask.shape, 11))


def changes(resampler: CAbstractorResampler, grid: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """How much each token ``(H', W')`` changes with one patch."""
    features = torch.randn(1, 1, grid[0] * grid[1], 6, generator=torch.Generator().manual_seed(0)).double()
    before = run(resampler, features, grid)
    features[0, 0, patch[0] * grid[1] + patch[1]] += 1
    side = resampler.tokens_per_side
    return (run(resampler, features, grid) - before).norm(dim=-1)[0, 0].unflatten(0, (side, side))


@torch.no_grad()
def hold_gates(resampler: CAbstractorResampler) -> None:
    """Every gate at one half, whatever the view."""
    for module in resampler.modules():
        if isinstance(module, SqueezeExcitation):
            module.excite.weight.zero_()
            module.excite.bias.zero_()


def reach(patch: int, patches: int, depth: int, tokens: int) -> set[int]:
    """Tokens along one side that a patch can reach: ``depth`` patches further, pooled, ``depth`` tokens further."""
    touched = {
        token
        for token in range(tokens)
        for near in range(max(0, patch - depth), min(patches, patch + depth + 1))
        if token * patches < (near + 1) * tokens and near * tokens < (token + 1) * patches
    }
    return set(range(max(0, min(touched) - depth), min(tokens, max(touched) + depth + 1)))


@pytest.mark.parametrize("patch", [(0, 0), (5, 9), (11, 4)])
@pytest.mark.parametrize("depth", [1, 2])
def test_with_the_gates_held_a_patch_reaches_the_tokens_around_it(depth, patch):
    resampler = build(depth=depth, tokens_per_side=8).double()
    hold_gates(resampler)
    heard = changes(resampler, (12, 16), patch) > 0
    rows, columns = reach(patch[0], 12, depth, 8), reach(patch[1], 16, depth, 8)
    expected = {(row, column) for row in rows for column in columns}
    assert {tuple(place) for place in heard.nonzero().tolist()} == expected
    assert len(expected) < 64


def test_through_the_gates_the_rest_hears_little():
    """A gate depends on the mean of the view, to which one patch in 192 adds little."""
    heard = changes(build(tokens_per_side=8).double(), (12, 16), (5, 4))
    rows, columns = sorted(reach(5, 12, 1, 8)), sorted(reach(4, 16, 1, 8))
    near = torch.zeros(8, 8, dtype=torch.bool)
    near[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    assert (heard[~near] > 0).all()
    assert heard[~near].max() < 0.05 * heard[near].max()


def test_depends_on_where_patches_are():
    resampler, features = build(), torch.randn(1, 1, 36, 6)
    turned = run(resampler, features.flip(2), (6, 6)).flip(2)
    assert (turned - run(resampler, features, (6, 6))).abs().max() > 1e-2


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_tokens_have_unit_scale_whatever_the_encoders(scale):
    tokens = run(build(), scale * torch.randn(2, 3, 20, 6), (4, 5))
    torch.testing.assert_close(tokens.square().mean(-1), torch.ones(2, 3, 36), rtol=1e-2, atol=1e-2)


def test_defaults_are_the_documented_ones():
    with torch.device("meta"):
        resampler = CAbstractorResampler(input_width=6, output_width=8)
    assert (len(resampler.before), len(resampler.after), resampler.token_grid((16, 16))) == (3, 3, (12, 12))
    assert resampler.after[0].gate.squeeze.out_features == 1024 // 4
    assert resampler.positions.shape == (16 * 16, 6)


def test_each_patch_has_a_position_of_its_own_and_other_grids_share_them():
    resampler, plain = build(), build(positions_per_side=0)
    plain.load_state_dict({key: value for key, value in resampler.state_dict().items() if key != "positions"})
    features, positions = torch.randn(1, 1, 16, 6), resampler.positions
    torch.testing.assert_close(run(resampler, features, (4, 4)), run(plain, features + positions, (4, 4)))
    halved = positions.unflatten(0, (2, 2, 2, 2)).mean(dim=(1, 3)).flatten(0, 1)
    few = features[:, :, :4]
    torch.testing.assert_close(run(resampler, few, (2, 2)), run(plain, few + halved, (2, 2)))
    run(resampler, features, (4, 4)).square().sum().backward()
    assert positions.grad is not None
    assert (positions.grad.abs().sum(dim=1) > 0).all()


def test_gates_have_the_activation_that_is_asked_for():
    patches = torch.randn(2, 3, 3, 8)
    for gate, activation in (("silu", functional.silu), ("relu", functional.relu)):
        block = SqueezeExcitation(8, squeezed=4, gate=gate)
        inner = activation(block.squeeze(patches.mean(dim=(1, 2))))
        expected = patches * torch.sigmoid(block.excite(inner))[:, None, None]
        torch.testing.assert_close(block(patches), expected)
