"""Painting: each pixel gets a token that truly shows it, from the right tile, across the seam and at the poles."""

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
    camera_tensor,
    point_directions,
    token_directions,
)
from panollava.crop.sphere import angles_to_direction, pixel_to_direction
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
from panollava.evaluation.explain import TokenMap, nearest_tokens, showing_tokens

SIZE = (90, 180)
GRID = (6, 8)
CROPS: list[CropStrategy] = [
    AnyresE2pCrop(),
    AnyresE2pCrop(global_view="resize", overlap=0.0),
    E2pCrop(fov_deg=75.0, overlap=0.25, pitch_rows_deg=[-60.0, 0.0, 60.0]),
    CubemapCrop(poles=True),
    SlidingWindowCrop(),
    AnyresCrop(max_tiles=8),
    ResizeCrop(),
]


def rows(strategy: CropStrategy) -> Tensor:
    return camera_tensor(strategy.cameras((64, 64)))


def pixels(size: tuple[int, int] = SIZE) -> Tensor:
    """Directions (H, W, 3) of a panorama's pixels."""
    row, column = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in size), indexing="ij")
    return pixel_to_direction(column, row, size)


def towards(yaw_deg: float, pitch_deg: float) -> Tensor:
    angles = torch.tensor([yaw_deg, pitch_deg], dtype=torch.float64).deg2rad()
    return angles_to_direction(angles[0], angles[1])[None]


def angle(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(-1).clamp(-1, 1).acos()


def half_patches(cameras: Tensor, grid: tuple[int, int]) -> Tensor:
    """Angle (V·Q) from the centre of each patch to the furthest point of its edge, content or not."""
    height, width = grid
    steps = 8
    x = torch.arange(width * steps + 1, dtype=torch.float64) / (width * steps)
    y = torch.arange(height * steps + 1, dtype=torch.float64) / (height * steps)
    box = cameras.double()[:, 6:10]
    x, y = x.clamp(box[:, :1], box[:, 2:3]), y.clamp(box[:, 1:2], box[:, 3:])
    points = point_directions(cameras.double(), x, y)
    centres = token_directions(cameras.double(), grid)
    patches = points.unfold(1, steps + 1, steps).unfold(2, steps + 1, steps)  # (V, H', W', 3, 9, 9)
    return angle(patches.movedim(3, -1), centres[:, :, :, None, None]).amax(dim=(-2, -1)).flatten()


@pytest.mark.parametrize("strategy", CROPS, ids=lambda strategy: type(strategy).__name__)
def test_tokens_that_hold_their_direction_paint_the_direction_of_each_pixel(strategy: CropStrategy) -> None:
    cameras = rows(strategy)
    lie = TokenMap(cameras, GRID, SIZE)
    painted = lie.paint(token_directions(cameras.double(), GRID).flatten(0, 2))
    allowed = lie.paint(half_patches(cameras, GRID))
    apart = angle(painted, pixels())
    assert not apart.isnan().any()  # each of these crops looks everywhere
    assert (apart <= allowed + 2e-3).all()
    for place in (apart[:, 0], apart[:, -1], apart[0], apart[-1]):  # both sides of the seam, and both poles
        assert place.max() < 0.9
        assert place.max() > 0


@settings(max_examples=60, deadline=None)
@given(
    yaw=st.floats(-180, 180),
    pitch=st.floats(-90, 90),
    roll=st.floats(-180, 180),
    h=st.floats(20, 140),
    v=st.floats(20, 140),
)
def test_a_patch_shows_its_own_centre_and_no_other_patch_of_the_view_does(
    yaw: float, pitch: float, roll: float, h: float, v: float
) -> None:
    camera = Camera(PERSPECTIVE, *(math.radians(one) for one in (yaw, pitch, roll, h, v)))
    cameras = camera_tensor([camera])
    centres = token_directions(cameras.double(), GRID).flatten(0, 2)
    assert showing_tokens(cameras, GRID, centres)[0].tolist() == list(range(48))
    assert (showing_tokens(cameras, GRID, -centres) == -1).all()  # what is behind is not shown, though it projects


def test_padding_of_a_letterbox_shows_nothing() -> None:
    cameras = camera_tensor([global_camera("letterbox", (64, 64))])
    found = showing_tokens(cameras, (8, 8), pixels().flatten(0, 1))[0]
    assert set(found.tolist()) == set(range(16, 48))  # rows 2 to 5 of 8


def test_the_tile_of_a_pixel_is_the_one_in_whose_middle_it_is() -> None:
    cameras = rows(AnyresE2pCrop())
    for yaw in range(-179, 180, 5):
        token = int(nearest_tokens(cameras, GRID, towards(yaw, 10))[0])
        assert token // 48 == 1 + round(yaw / 45) % 8  # the global view is number 0
    assert int(nearest_tokens(cameras, GRID, towards(20, 80))[0]) // 48 == 0  # no tile looks so high


def test_where_no_view_looks_nothing_is_painted() -> None:
    lie = TokenMap(rows(E2pCrop()), GRID, SIZE)
    painted = lie.paint(torch.ones(8 * 48))
    assert painted[:10].isnan().all()
    assert painted[-10:].isnan().all()
    assert (painted[30:60] == 1).all()
    assert 0 < lie.is_painted.sum() < 8 * 48  # outer columns are shown better by a neighbour


def test_all_pixels_together_are_the_sphere() -> None:
    assert float(TokenMap(rows(ResizeCrop()), (1, 1), (7, 12)).steradians.sum()) == pytest.approx(4 * math.pi)


@pytest.mark.parametrize("strategy", CROPS, ids=lambda strategy: type(strategy).__name__)
def test_what_is_spread_adds_up_to_the_weights(strategy: CropStrategy) -> None:
    cameras = rows(strategy)
    lie = TokenMap(cameras, GRID, SIZE)
    weights = torch.rand(len(cameras), 48, generator=torch.Generator().manual_seed(0))
    has_place = torch.ones_like(weights)
    for view, camera in enumerate(strategy.cameras((64, 64))):
        if camera.box != (0.0, 0.0, 1.0, 1.0):
            has_place.view(-1, *GRID)[view, [0, -1]] = 0  # of 6 rows a quarter is 1.5: the outer ones are padding
    total = float((lie.spread(weights) * lie.steradians).sum())
    assert total == pytest.approx(float((weights * has_place).sum()), rel=1e-6)


def test_the_weight_of_one_token_lies_in_its_patch_also_over_the_seam() -> None:
    camera = Camera(EQUIRECTANGULAR, math.pi, 0.0, 0.0, math.radians(88), math.pi)  # from 136 to 224 degrees
    lie = TokenMap(camera_tensor([camera]), (1, 2), SIZE)
    left, right = (lie.spread(torch.tensor([[float(one), float(not one)]])) for one in (True, False))
    assert set((left > 0).nonzero()[:, 1].tolist()) == set(range(158, 180))
    assert set((right > 0).nonzero()[:, 1].tolist()) == set(range(22))
    assert left[:, -1].tolist() == pytest.approx([1 / (math.pi * 4 * 44 / 360)] * 90)


def test_views_that_show_the_same_add_up() -> None:
    camera = Camera(PERSPECTIVE, 0.3, 0.2, 0.0, 1.0, 1.0)
    one, two = (TokenMap(camera_tensor([camera] * count), GRID, SIZE) for count in (1, 2))
    weights = torch.rand(1, 48, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(two.spread(weights.expand(2, -1)), 2 * one.spread(weights))
