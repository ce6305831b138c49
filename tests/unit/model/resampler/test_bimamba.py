"""What sets the bimamba resampler apart: order matters, and each token knows both sides of its view."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from panollava.crop.cameras import Camera, camera_tensor
from panollava.crop.strategies import AnyresE2pCrop, CubemapCrop, E2pCrop, ResizeCrop
from panollava.model.resampler.bimamba import BimambaResampler


def build(**changes: int | str) -> BimambaResampler:
    torch.manual_seed(0)
    return BimambaResampler(
        **{"input_width": 6, "output_width": 8, "width": 16, "layers": 1, "state": 4, "head_width": 8} | changes
    )


def run(resampler: BimambaResampler, features: Tensor) -> Tensor:
    mask = torch.ones(features.shape[:2], dtype=torch.bool)
    return resampler(features, grid=(1, features.shape[2]), view_mask=mask, cameras=torch.zeros(*mask.shape, 11))


def test_depends_on_the_order_of_tokens():
    resampler, features = build(), torch.randn(1, 2, 9, 6)
    order = torch.tensor([3, 1, 0, 2, 4, 5, 8, 7, 6])
    gap = run(resampler, features[:, :, order]) - run(resampler, features)[:, :, order]
    assert gap.abs().max() > 1e-3


@pytest.mark.parametrize("length", [20, 150])
def test_every_token_hears_of_every_other(length):
    """One layer suffices: later tokens through the forward scan, earlier ones through the backward scan."""
    resampler, features = build(), torch.randn(1, 1, length, 6)
    changed = features.clone()
    changed[0, 0, length // 2] += 3
    heard = (run(resampler, changed) - run(resampler, features)).abs().amax(-1)[0, 0]
    assert (heard > 0).all()


@pytest.mark.parametrize("silent", [0, 1])
def test_each_direction_hears_one_side_only(silent):
    resampler, features = build(), torch.randn(1, 1, 11, 6)
    with torch.no_grad():
        resampler.layers[0].out_projection.weight.chunk(2)[silent].zero_()
    changed = features.clone()
    changed[0, 0, 5] += 3
    heard = (run(resampler, changed) - run(resampler, features)).abs().amax(-1)[0, 0] > 0
    expected = [i <= 5 for i in range(11)] if silent == 0 else [i >= 5 for i in range(11)]
    assert heard.tolist() == expected


def test_views_do_not_see_each_other():
    resampler, features = build(layers=2), torch.randn(1, 3, 9, 6)
    alone = run(resampler, features[:, 1:2])
    torch.testing.assert_close(run(resampler, features)[:, 1:2], alone, rtol=0, atol=1e-6)


def test_heads_must_divide_the_inner_width():
    with pytest.raises(ValueError, match=r"head_width=12 does not divide the inner width 32 \(expand=2 x width=16\)"):
        build(head_width=12)


GRID = (3, 4)


def ring_features(*view_counts: int) -> tuple[Tensor, Tensor]:
    """Features of a padded batch and its mask."""
    mask = torch.tensor([[view < count for view in range(max(view_counts))] for count in view_counts])
    return torch.randn(*mask.shape, 12, 6, generator=torch.Generator().manual_seed(0)), mask


def run_crops(resampler: BimambaResampler, features: Tensor, mask: Tensor, crops: list[list[Camera]]) -> Tensor:
    cameras = torch.nn.utils.rnn.pad_sequence([camera_tensor(crop) for crop in crops], batch_first=True)
    return resampler(features, grid=GRID, view_mask=mask, cameras=cameras.to(features.dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("crop", [AnyresE2pCrop(), AnyresE2pCrop(fov_deg=120, overlap=0.0), AnyresE2pCrop(fov_deg=60)])
def test_turning_the_panorama_by_a_tile_turns_the_tokens(crop, dtype, tolerance):
    cameras = crop.cameras()
    resampler = build(layers=2, scan="ring").to(dtype)
    features, mask = ring_features(len(cameras))
    features = features.to(dtype)
    turned = torch.cat([features[:, :1], features[:, 1:].roll(1, dims=1)], dim=1)
    tokens = run_crops(resampler, features, mask, [cameras])
    expected = torch.cat([tokens[:, :1], tokens[:, 1:].roll(1, dims=1)], dim=1)
    torch.testing.assert_close(run_crops(resampler, turned, mask, [cameras]), expected, rtol=0, atol=tolerance)


def test_a_ring_is_walked_column_by_column():
    """One tile's bottom left token, with a convolution that reaches one step and a scan that is silenced."""
    crop = E2pCrop(overlap=0.0).cameras()
    resampler = build(scan="ring", conv=2)
    with torch.no_grad():
        resampler.layers[0].step_bias.fill_(-1e4)
        resampler.layers[0].out_projection.weight[16:].zero_()
    features, mask = ring_features(4)
    before = run_crops(resampler, features, mask, [crop])
    features[0, 1, 2 * 4 + 0] += 3
    heard = (run_crops(resampler, features, mask, [crop]) - before).abs().amax(-1)[0] > 0
    assert torch.nonzero(heard).tolist() == [[1, 1], [1, 8]]
    features[0, 3, 2 * 4 + 3] += 3
    heard = (run_crops(resampler, features, mask, [crop]) - before).abs().amax(-1)[0] > 0
    assert torch.nonzero(heard).tolist() == [[0, 0], [1, 1], [1, 8], [3, 11]]


def test_around_a_ring_every_tile_hears_of_every_other_and_the_global_view_of_none():
    cameras = AnyresE2pCrop(overlap=0.0).cameras()
    resampler, (features, mask) = build(scan="ring"), ring_features(5)
    before = run_crops(resampler, features, mask, [cameras])
    features[0, 2, 5] += 3
    heard = (run_crops(resampler, features, mask, [cameras]) - before).abs().amax(-1)[0]
    assert (heard[1:] > 0).all()
    assert (heard[0] == 0).all()


def test_views_in_no_ring_are_read_as_by_view():
    """The global view, the poles of a cube, a single view and padding."""
    crops = [AnyresE2pCrop(overlap=0.0).cameras(), CubemapCrop(poles=True).cameras(), ResizeCrop().cameras()]
    features, mask = ring_features(5, 6, 1)
    by_view, around = (run_crops(build(scan=scan), features, mask, crops) for scan in ("view", "ring"))
    alone = [(0, 0), (0, 5), (1, 4), (1, 5), *((2, view) for view in range(6))]
    for sample, view in alone:
        torch.testing.assert_close(around[sample, view], by_view[sample, view], rtol=0, atol=1e-6)
    assert ((around - by_view).abs().amax((-1, -2)) > 1e-3).sum() == 18 - len(alone)


def test_rings_of_a_batch_are_read_as_each_alone():
    crops = [AnyresE2pCrop(overlap=0.0).cameras(), E2pCrop(fov_deg=60, pitch_rows_deg=(-30, 30)).cameras(), []]
    crops[2] = crops[0]
    features, mask = ring_features(5, 24, 5)
    features[0, 5:], features[2, 5:] = 1e4, -1e4
    resampler = build(scan="ring")
    together = run_crops(resampler, features, mask, crops)
    for sample, crop in enumerate(crops):
        views = len(crop)
        alone = run_crops(resampler, features[sample : sample + 1, :views], mask[sample : sample + 1, :views], [crop])
        torch.testing.assert_close(together[sample, :views], alone[0], rtol=0, atol=1e-5)
    assert torch.isfinite(together).all()


@pytest.mark.parametrize("scan", ["view", "ring"])
def test_says_whether_views_see_each_other(scan):
    assert build(scan=scan).mixes_views == (scan == "ring")
