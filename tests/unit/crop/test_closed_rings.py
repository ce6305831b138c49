"""Which views close a ring."""

from __future__ import annotations

import math

import torch

from panollava.crop.cameras import PERSPECTIVE, Camera, camera_tensor
from panollava.crop.rings import closed_rings
from panollava.crop.strategies import AnyresE2pCrop, CubemapCrop, E2pCrop, ResizeCrop, SlidingWindowCrop


def rings_of(*crops: list[Camera]) -> list[tuple[int, list[int]]]:
    cameras = torch.nn.utils.rnn.pad_sequence([camera_tensor(crop) for crop in crops], batch_first=True)
    mask = torch.tensor([[view < len(crop) for view in range(cameras.shape[1])] for crop in crops])
    return closed_rings(cameras, mask)


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
