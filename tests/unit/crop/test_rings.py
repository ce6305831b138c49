"""Neighbours, what they share, and which views close a ring."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panollava.crop.cameras import EQUIRECTANGULAR, PERSPECTIVE, Camera, camera_tensor
from panollava.crop.rings import closed_rings, neighbour_pairs, overlap_columns, pair_overlap
from panollava.crop.strategies import AnyresE2pCrop, CubemapCrop, E2pCrop, ResizeCrop, SlidingWindowCrop


def batch_of(*camera_lists: list[Camera]) -> tuple[Tensor, Tensor]:
    """Cameras and mask of a batch padded to its longest sample."""
    rows = [camera_tensor(cameras) for cameras in camera_lists]
    cameras = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.tensor([[view < len(row) for view in range(cameras.shape[1])] for row in rows])
    return cameras, mask


def test_every_tile_of_a_ring_has_its_right_neighbour_and_the_global_view_has_none():
    cameras, mask = batch_of(AnyresE2pCrop().cameras())
    pairs = neighbour_pairs(cameras, mask)
    assert pairs.dtype == torch.int64
    assert pairs.tolist() == [[0, view, view % 8 + 1] for view in range(1, 9)]
    assert pair_overlap(cameras, pairs).tolist() == pytest.approx([0.5] * 8, abs=1e-6)


def test_samples_of_a_batch_do_not_mix_and_padding_has_no_neighbour():
    cameras, mask = batch_of(E2pCrop(overlap=0.0).cameras(), AnyresE2pCrop(fov_deg=120, overlap=0.0).cameras())
    pairs = neighbour_pairs(cameras, torch.cat([mask, torch.zeros(2, 1, dtype=torch.bool)], 1)[:, :-1])
    assert pairs.tolist() == [[0, 0, 1], [0, 1, 2], [0, 2, 3], [0, 3, 0], [1, 1, 2], [1, 2, 3], [1, 3, 1]]
    mask[0, 2] = False
    assert neighbour_pairs(cameras, mask)[:2].tolist() == [[0, 0, 1], [0, 3, 0]]


def test_pitch_rows_are_rings_of_their_own():
    cameras, mask = batch_of(E2pCrop(overlap=0.0, pitch_rows_deg=(-45, 0, 45)).cameras())
    pairs = neighbour_pairs(cameras, mask)
    assert [view for _, view, _ in pairs.tolist()] == list(range(12))
    assert all(left // 4 == right // 4 for _, left, right in pairs.tolist())


def test_the_sides_of_a_cube_form_a_ring_and_its_poles_none():
    cameras, mask = batch_of(CubemapCrop(poles=True).cameras())
    pairs = neighbour_pairs(cameras, mask)
    assert pairs.tolist() == [[0, 0, 1], [0, 1, 2], [0, 2, 3], [0, 3, 0]]
    assert pair_overlap(cameras, pairs).tolist() == pytest.approx([0.0] * 4, abs=1e-6)


def test_a_single_view_has_no_neighbour():
    cameras, mask = batch_of(ResizeCrop().cameras(), [Camera(PERSPECTIVE, 0.0, 0.0, 0.0, 1.0, 1.0)])
    assert neighbour_pairs(cameras, mask).shape == (0, 3)
    assert pair_overlap(cameras, neighbour_pairs(cameras, mask)).shape == (0,)


def test_views_that_do_not_touch_or_differ_in_projection_are_no_neighbours():
    apart = [Camera(PERSPECTIVE, yaw, 0.0, 0.0, 1.0, 1.0) for yaw in (0.0, 1.1)]
    mixed = [apart[0], Camera(EQUIRECTANGULAR, 0.5, 0.0, 0.0, 1.0, 1.0)]
    same = [apart[0], apart[0]]
    assert neighbour_pairs(*batch_of(apart, mixed, same)).shape == (0, 3)


def test_neighbours_are_found_in_any_order_of_views():
    tiles = E2pCrop(fov_deg=60).cameras()
    order = torch.randperm(len(tiles), generator=torch.Generator().manual_seed(0)).tolist()
    pairs = neighbour_pairs(*batch_of([tiles[place] for place in order]))
    assert all(order[right] == (order[left] + 1) % len(tiles) for _, left, right in pairs.tolist())
    assert len(pairs) == len(tiles)


@settings(deadline=None)
@given(fov_deg=st.floats(10, 179), overlap=st.floats(0, 0.9), pitch_deg=st.sampled_from([0.0, 30.0]))
def test_rings_close_and_share_the_effective_overlap(fov_deg, overlap, pitch_deg):
    crop = E2pCrop(fov_deg=fov_deg, overlap=overlap, pitch_rows_deg=tuple({-pitch_deg, pitch_deg}))
    cameras, mask = batch_of(crop.cameras())
    pairs = neighbour_pairs(cameras, mask)
    assert sorted(pairs[:, 1].tolist()) == sorted(pairs[:, 2].tolist()) == list(range(cameras.shape[1]))
    shared = torch.full((len(pairs),), crop.effective_overlap)
    torch.testing.assert_close(pair_overlap(cameras, pairs), shared, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("width", "overlap", "columns"),
    [(16, 0.5, 8), (16, 0.0, 1), (15, 1 / 3, 5), (14, 0.2, 2), (1, 0.5, 1), (10, 0.9, 9)],
)
def test_columns_that_two_neighbours_pair(width, overlap, columns):
    assert overlap_columns(width, overlap) == columns


@pytest.mark.parametrize("width", [8, 14, 16, 24, 37])
def test_columns_of_overlaps_that_come_from_cameras_lose_none_to_rounding(width):
    for overlap in (0.0, 0.2, 0.5, 0.75, 0.8, 0.9):
        cameras, mask = batch_of(E2pCrop(overlap=overlap).cameras())
        measured = pair_overlap(cameras, neighbour_pairs(cameras, mask)).tolist()
        assert {overlap_columns(width, share) for share in measured} == {max(1, math.floor(width * overlap + 1e-6))}


def rings_of(*crops: list[Camera]) -> list[tuple[int, list[int]]]:
    return closed_rings(*batch_of(*crops))


def test_samples_of_different_crops_have_rings_of_their_own():
    rings = rings_of(AnyresE2pCrop(overlap=0.0).cameras(), ResizeCrop().cameras(), E2pCrop(fov_deg=60).cameras())
    assert rings == [(0, [1, 2, 3, 4]), (2, list(range(12)))]


def test_each_pitch_row_is_a_ring_and_poles_are_in_none():
    assert rings_of(E2pCrop(overlap=0.0, pitch_rows_deg=(-45, 45)).cameras()) == [(0, [0, 1, 2, 3]), (0, [4, 5, 6, 7])]
    assert rings_of(CubemapCrop(poles=True).cameras()) == [(0, [0, 1, 2, 3])]


def test_strips_wide_enough_make_a_ring_of_two():
    assert rings_of(SlidingWindowCrop(fov_deg=180, overlap=0.0).cameras()) == [(0, [0, 1])]
    assert rings_of(SlidingWindowCrop(fov_deg=360, overlap=0.0).cameras()) == []


def test_a_row_with_a_gap_is_no_ring():
    assert rings_of(E2pCrop(overlap=0.0).cameras()[:3]) == []


def test_views_in_any_order_are_walked_to_the_right():
    tiles = E2pCrop(overlap=0.0).cameras()
    assert rings_of([tiles[place] for place in (2, 0, 3, 1)]) == [(0, [0, 2, 1, 3])]


def test_a_way_into_a_ring_is_no_part_of_it():
    """A narrower view between two tiles: it leads into the ring, and one tile leads to it or around it."""
    tiles = E2pCrop(overlap=0.5).cameras()
    shifted = Camera(PERSPECTIVE, math.radians(10), 0.0, 0.0, math.radians(10), math.pi / 2)
    for cameras in ([shifted, *tiles], [*tiles, shifted]):
        (ring,) = rings_of(cameras)
        assert len(ring[1]) in (8, 9)
        assert len(set(ring[1])) == len(ring[1])
