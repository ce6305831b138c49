"""Matched places of views: they look the same way, and their tokens and weights say where they are."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panollava.crop.cameras import (
    EQUIRECTANGULAR,
    PERSPECTIVE,
    Camera,
    Column,
    camera_tensor,
    locate,
    point_directions,
    token_directions,
)
from panollava.crop.matches import Matches, column_matches, overlapping_pairs, ray_matches
from panollava.crop.strategies import (
    AnyresCrop,
    AnyresE2pCrop,
    CropStrategy,
    CubemapCrop,
    E2pCrop,
    ResizeCrop,
    SlidingWindowCrop,
    global_camera,
)

ONE_RING, THREE_RINGS = (0.0,), (-45.0, 0.0, 45.0)


def batch_of(*crops: CropStrategy) -> tuple[Tensor, Tensor]:
    """Cameras and mask of a batch padded to its longest sample."""
    rows = [camera_tensor(crop.cameras((64, 64))) for crop in crops]
    cameras = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return cameras, torch.tensor([[view < len(row) for view in range(cameras.shape[1])] for row in rows])


def looks_at(camera: Tensor, index: Tensor, weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """Direction of the weighted mean place of tokens ``(K)``, one place at a time."""
    height, width = grid
    x = ((index % width + 0.5) / width * weight).sum()
    y = ((index // width + 0.5) / height * weight).sum()
    return point_directions(camera, x[None], y[None])[0, 0]


def errors(matches: Matches, cameras: Tensor, grid: tuple[int, int]) -> Tensor:
    """Angle between matched directions, in patches, of all that is not masked."""
    found = []
    for pair, (sample, view, other) in enumerate(matches.pairs.tolist()):
        a, b = cameras[sample, view], cameras[sample, other]
        patch = min(float(a[Column.H_EXTENT]) / grid[1], float(a[Column.V_EXTENT]) / grid[0])
        for place in torch.nonzero(matches.mask[pair]).flatten().tolist():
            first = looks_at(a, matches.index_a[pair, place], matches.weight_a[pair, place], grid)
            second = looks_at(b, matches.index_b[pair, place], matches.weight_b[pair, place], grid)
            found.append(2 * math.asin(min(1.0, float((first - second).norm()) / 2)) / patch)
    return torch.tensor(found)


@pytest.mark.parametrize("rows", [ONE_RING, THREE_RINGS], ids=["one_ring", "three_rings"])
@pytest.mark.parametrize("overlap", [0.5, 0.25, 0.0])
def test_rays_match_directions_within_a_hundredth_of_a_patch(overlap, rows):
    cameras, mask = batch_of(AnyresE2pCrop(overlap=overlap, pitch_rows_deg=rows))
    assert errors(ray_matches(cameras, mask, (8, 8)), cameras, (8, 8)).max() < 0.01


@pytest.mark.parametrize(("overlap", "mean", "largest"), [(0.5, 1.18, 1.57), (0.25, 1.41, 1.60), (0.0, 0.61, 0.66)])
def test_columns_look_past_each_other_by_this_much(overlap, mean, largest):
    """What the published pairing costs, in patches of a 16 x 16 grid at 90 degrees."""
    cameras, mask = batch_of(AnyresE2pCrop(overlap=overlap))
    found = errors(column_matches(cameras, mask, (16, 16)), cameras, (16, 16))
    assert found.mean().item() == pytest.approx(mean, abs=0.01)
    assert found.max().item() == pytest.approx(largest, abs=0.01)


@pytest.mark.parametrize(
    "crop",
    [
        AnyresCrop(),
        CubemapCrop(poles=True),
        SlidingWindowCrop(overlap=0.25),
        SlidingWindowCrop(fov_deg=180, overlap=0.0),
        E2pCrop(overlap=0.02),
    ],
    ids=["anyres", "cubemap", "strips", "two_strips", "less_than_a_patch"],
)
def test_rays_match_directions_in_other_crops(crop):
    cameras, mask = batch_of(crop)
    matches = ray_matches(cameras, mask, (6, 10))
    assert errors(matches, cameras, (6, 10)).max() < 0.01
    assert (matches.mask.sum(dim=1) >= 2).all()


def test_every_patch_that_both_see_is_matched():
    """Counted by asking of each patch centre whether its direction lies in the other view."""
    cameras, mask = batch_of(E2pCrop(overlap=0.5))
    matches = ray_matches(cameras, mask, (16, 16))
    centres = (torch.arange(16) + 0.5) / 16
    for pair, (_, view, other) in enumerate(matches.pairs.tolist()):
        x, y, ahead = locate(cameras[0, other], point_directions(cameras[0, view], centres, centres).flatten(0, 1))
        seen = ahead & (x > 0) & (x < 1) & (y > 0) & (y < 1)
        assert matches.index_a[pair, matches.mask[pair], 0].tolist() == torch.nonzero(seen).flatten().tolist()
    assert (matches.weight_a == 1).all()
    assert matches.index_a.shape[2] == 1


def test_pairs_are_ring_neighbours_and_whatever_else_overlaps():
    one_ring = ray_matches(*batch_of(AnyresE2pCrop(overlap=0.5)), (8, 8))
    assert one_ring.pairs.tolist() == sorted([0, view, view % 8 + 1] for view in range(1, 9))
    dense = ray_matches(*batch_of(E2pCrop(overlap=0.75)), (8, 8))
    assert {(right - left) % 16 for _, left, right in dense.pairs.tolist()} >= {1, 2, 3}
    rings = ray_matches(*batch_of(E2pCrop(overlap=0.0, pitch_rows_deg=THREE_RINGS)), (8, 8))
    assert any(left // 4 != right // 4 for _, left, right in rings.pairs.tolist())
    for matches in (one_ring, dense, rings):
        unordered = [frozenset(pair[1:]) for pair in matches.pairs.tolist()]
        assert len(set(unordered)) == len(unordered)


def test_a_touching_edge_is_matched_where_both_views_end():
    cameras, mask = batch_of(E2pCrop(overlap=0.0))
    matches = ray_matches(cameras, mask, (5, 4))
    assert matches.mask.shape == (4, 5)
    assert matches.index_a[0].tolist() == [[4 * row + 3, 4 * row + 2] for row in range(5)]
    assert matches.index_b[0].tolist() == [[4 * row, 4 * row + 1] for row in range(5)]
    torch.testing.assert_close(matches.weight_b[0], torch.tensor([1.5, -0.5]).expand(5, 2), atol=1e-4, rtol=0)


def test_samples_of_different_crops_keep_apart():
    crops = (E2pCrop(overlap=0.0), AnyresE2pCrop(overlap=0.5), E2pCrop(overlap=0.0))
    cameras, mask = batch_of(*crops)
    together = ray_matches(cameras, mask, (6, 6))
    tokens = torch.randn(3, cameras.shape[1], 36, 4)
    for sample, crop in enumerate(crops):
        alone = ray_matches(*batch_of(crop), (6, 6))
        own = together.pairs[:, 0] == sample
        assert together.pairs[own, 1:].tolist() == alone.pairs[:, 1:].tolist()
        for side, expected in zip(together.take(tokens), alone.take(tokens[sample : sample + 1]), strict=True):
            torch.testing.assert_close(side[own][together.mask[own]], expected[alone.mask], atol=1e-5, rtol=1e-5)


def test_fields_that_are_linear_in_a_view_are_read_exactly():
    """A token that holds its own place is interpolated, and extrapolated, to the matched place."""
    cameras, mask = batch_of(SlidingWindowCrop(overlap=0.25))
    longitude = (torch.arange(12) + 0.5) / 12 - 0.5
    turns = longitude * cameras[0, :, None, Column.H_EXTENT] + cameras[0, :, None, Column.YAW]
    tokens = turns[:, None, :].expand(-1, 7, -1).reshape(1, len(turns), 84, 1)
    matches = ray_matches(cameras, mask, (7, 12))
    a, b = (side[matches.mask] for side in matches.take(tokens))
    apart = torch.remainder(a - b + math.pi, 2 * math.pi) - math.pi
    assert apart.abs().max() < 1e-5


def test_columns_are_matched_across_the_common_edge():
    cameras, mask = batch_of(SlidingWindowCrop(overlap=0.5))
    names = torch.arange(8 * 10, dtype=torch.float32).reshape(1, 8, 10, 1)
    matches = column_matches(cameras, mask, (2, 5))
    a, b = matches.take(names)
    image = names.reshape(8, 2, 5)
    assert a.shape == b.shape == (8, 4, 1)
    for pair in range(8):
        assert a[pair, :, 0].tolist() == image[pair, :, 3:].flatten().tolist()
        assert b[pair, :, 0].tolist() == image[(pair + 1) % 8, :, :2].flatten().tolist()


@pytest.mark.parametrize("match", [column_matches, ray_matches])
def test_nothing_matches_in_a_single_view(match):
    cameras, mask = batch_of(ResizeCrop())
    matches = match(cameras, mask, (4, 4))
    assert matches.pairs.shape == (0, 3)
    assert matches.take(torch.randn(1, 1, 16, 3))[0].shape[0] == 0


def test_padding_inside_a_tile_is_matched_with_nothing():
    half = [
        Camera(PERSPECTIVE, yaw, 0.0, 0.0, math.pi / 2, math.pi / 4, (0.0, 0.25, 1.0, 0.75))
        for yaw in (0.0, math.pi / 4)
    ]
    cameras = camera_tensor(half)[None]
    matches = ray_matches(cameras, torch.ones(1, 2, dtype=torch.bool), (8, 8))
    rows = torch.cat([side[matches.mask].flatten() // 8 for side in (matches.index_a, matches.index_b)])
    assert set(rows.tolist()) <= {2, 3, 4, 5}
    assert errors(matches, cameras, (8, 8)).max() < 0.01


def test_gradients_flow_to_what_was_matched_and_nowhere_else():
    cameras, mask = batch_of(AnyresE2pCrop(overlap=0.5))
    tokens = torch.randn(1, 9, 64, 3, requires_grad=True)
    sum(side.sum() for side in ray_matches(cameras, mask, (8, 8)).take(tokens)).backward()
    assert not tokens.grad[:, 0].any()
    assert tokens.grad[:, 1:].flatten(2).any(dim=2).all()


@settings(deadline=None, max_examples=60)
@given(
    projection=st.sampled_from([PERSPECTIVE, EQUIRECTANGULAR]),
    yaw=st.floats(-3.1, 3.1),
    pitch=st.floats(-1.2, 1.2),
    roll=st.floats(-3, 3),
    extents=st.tuples(st.floats(0.2, 2.5), st.floats(0.1, 0.6)),
)
def test_locate_undoes_point_directions(projection, yaw, pitch, roll, extents):
    roll = roll if projection == PERSPECTIVE else 0.0
    camera = Camera(projection, yaw, pitch, roll, *extents, box=(0.1, 0.2, 0.9, 1.0))
    row = camera_tensor([camera], dtype=torch.float64)[0]
    x, y = torch.tensor([0.1, 0.4, 0.9]).double(), torch.tensor([0.2, 0.7, 1.0]).double()
    found_x, found_y, ahead = locate(row, point_directions(row, x, y).flatten(0, 1))
    assert ahead.all()
    torch.testing.assert_close(found_x.view(3, 3), x.expand(3, 3), atol=1e-9, rtol=0)
    torch.testing.assert_close(found_y.view(3, 3), y[:, None].expand(3, 3), atol=1e-9, rtol=0)


def test_what_lies_behind_a_tile_is_not_ahead_of_it():
    tile = camera_tensor([Camera(PERSPECTIVE, 0.3, 0.2, 0.0, 1.0, 1.0)])[0]
    behind = -point_directions(tile, torch.tensor([0.5]), torch.tensor([0.5]))[0]
    x, y, ahead = locate(tile, behind)
    assert not ahead.any()
    assert torch.isfinite(x).all()
    assert torch.isfinite(y).all()


def test_pairs_share_a_part_of_the_smaller_view() -> None:
    """A small view inside a large one, two that share a quarter, and two that hardly touch."""

    def tile(yaw_deg: float, fov_deg: float) -> Camera:
        fov = math.radians(fov_deg)
        return Camera(PERSPECTIVE, math.radians(yaw_deg), 0.0, 0.0, fov, fov)

    cameras = camera_tensor([global_camera("resize", (1, 1)), tile(0, 90), tile(10, 45), tile(60, 45), tile(-89, 90)])
    every = torch.ones(1, 5, dtype=torch.bool)
    assert overlapping_pairs(cameras[None], every, 0.125)[:, 1:].tolist() == [[1, 2], [1, 3]]
    hidden = every.clone()
    hidden[0, 2] = False
    assert overlapping_pairs(cameras[None], hidden, 0.125)[:, 1:].tolist() == [[1, 3]]
    grid = (6, 6)
    plain, chosen = (ray_matches(cameras[None], every, grid, least_common=least) for least in (0.0, 0.125))
    assert chosen.pairs[:, 1:].tolist() == [[1, 2], [1, 3]]
    assert set(map(tuple, chosen.pairs.tolist())) < set(map(tuple, plain.pairs.tolist()))
    first, second = chosen.take(token_directions(cameras[None], grid).flatten(2, 3))
    assert torch.nn.functional.cosine_similarity(first, second, dim=-1)[chosen.mask].min() > 0.99
    alone = ray_matches(cameras[None, :2], every[:, :2], grid, least_common=0.125)
    assert len(alone.pairs) == 0
