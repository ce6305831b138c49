"""Camera rows and the directions of patches."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from panollava.crop.cameras import (
    EQUIRECTANGULAR,
    PERSPECTIVE,
    Camera,
    Column,
    camera_tensor,
    needed_panorama_size,
    pixels_per_radian,
    point_directions,
    token_directions,
    view_directions,
)
from panollava.crop.sphere import direction_to_angles
from panollava.crop.strategies import AnyresE2pCrop

TILE = Camera(PERSPECTIVE, math.radians(90), math.radians(30), 0.0, math.pi / 2, math.pi / 2)
LETTERBOXED = Camera(EQUIRECTANGULAR, 0.0, 0.0, 0.0, 2 * math.pi, math.pi, box=(0.0, 0.25, 1.0, 0.75), is_global=True)


def test_rows_follow_the_columns():
    row = camera_tensor([LETTERBOXED])[0]
    assert row.shape == (len(Column),)
    assert row.dtype == torch.float32
    assert row[Column.PROJECTION] == EQUIRECTANGULAR
    assert row[Column.H_EXTENT] == pytest.approx(2 * math.pi)
    assert row[[Column.BOX_X0, Column.BOX_Y0, Column.BOX_X1, Column.BOX_Y1]].tolist() == [0.0, 0.25, 1.0, 0.75]
    assert row[Column.IS_GLOBAL] == 1
    assert camera_tensor([TILE])[0, Column.YAW] == pytest.approx(math.pi / 2)


def test_the_middle_patch_looks_where_the_view_looks():
    cameras = camera_tensor(AnyresE2pCrop(pitch_rows_deg=(-40, 0, 40)).cameras())
    tokens = token_directions(cameras, (3, 5))
    assert tokens.shape == (25, 3, 5, 3)
    assert_close(tokens[:, 1, 2], view_directions(cameras), atol=1e-6, rtol=0)
    assert_close(tokens.norm(dim=-1), torch.ones(25, 3, 5))


def test_patches_of_a_tile_lie_on_its_tangent_plane():
    """On a 4 x 4 grid at 90 degrees the patch centres are at -3/4, -1/4, 1/4, 3/4 of the plane z = 1."""
    ahead = camera_tensor([Camera(PERSPECTIVE, 0.0, 0.0, 0.0, math.pi / 2, math.pi / 2)])
    tokens = token_directions(ahead, (4, 4))[0]
    plane = tokens / tokens[..., 2:]
    offsets = torch.tensor([-0.75, -0.25, 0.25, 0.75])
    assert_close(plane[..., 0], offsets.expand(4, 4), atol=1e-6, rtol=0)
    assert_close(plane[..., 1], -offsets[:, None].expand(4, 4), atol=1e-6, rtol=0)


def test_patches_of_the_whole_panorama_are_linear_in_angle():
    whole = camera_tensor([Camera(EQUIRECTANGULAR, 0.0, 0.0, 0.0, 2 * math.pi, math.pi, is_global=True)])
    longitude, latitude = direction_to_angles(token_directions(whole, (2, 4))[0])
    degrees = torch.tensor([-135.0, -45.0, 45.0, 135.0])
    assert_close(torch.rad2deg(longitude), degrees.expand(2, 4))
    assert_close(torch.rad2deg(latitude), torch.tensor([[45.0], [-45.0]]).expand(2, 4))


def test_padding_patches_look_where_the_nearest_content_does():
    """Rows 2 to 5 of 8 are content; the two above and below take the latitude just inside the box."""
    longitude, latitude = direction_to_angles(token_directions(camera_tensor([LETTERBOXED]), (8, 8))[0])
    rows = torch.rad2deg(latitude[:, 0])
    assert_close(rows[2:6], torch.tensor([67.5, 22.5, -22.5, -67.5]))
    assert_close(rows[[0, 1]], torch.tensor([78.75, 78.75]))
    assert_close(rows[[6, 7]], torch.tensor([-78.75, -78.75]))
    assert_close(longitude, longitude[3].expand(8, 8), atol=1e-5, rtol=0)


def test_no_patch_of_a_letterbox_looks_exactly_at_a_pole():
    """On a 14 x 14 grid the patch centres of two rows lie on the edges of the box, where yaw is undefined."""
    longitude, latitude = direction_to_angles(token_directions(camera_tensor([LETTERBOXED]), (14, 14))[0])
    assert latitude.abs().max() < math.radians(89)
    assert_close(longitude, longitude[7].expand(14, 14), atol=1e-5, rtol=0)


def test_a_batch_may_mix_projections_and_batch_shapes():
    rows = camera_tensor([LETTERBOXED, TILE])
    mixed = token_directions(torch.stack([rows, rows.flip(0)]), (4, 6))
    assert mixed.shape == (2, 2, 4, 6, 3)
    assert_close(mixed[0, 0], token_directions(rows[:1], (4, 6))[0])
    assert_close(mixed[0, 1], token_directions(rows[1:], (4, 6))[0])
    assert_close(mixed[1], mixed[0].flip(0))


@pytest.mark.parametrize("extent_deg", [0.0, 180.0, 200.0])
def test_a_perspective_camera_refuses_half_the_sphere(extent_deg):
    with pytest.raises(ValueError, match="between 0 and 180"):
        Camera(PERSPECTIVE, 0.0, 0.0, 0.0, math.radians(extent_deg), math.radians(extent_deg))


def test_a_rectangle_of_the_panorama_refuses_to_roll():
    with pytest.raises(ValueError, match="cannot roll"):
        Camera(EQUIRECTANGULAR, 0.0, 0.0, 0.1, 1.0, 1.0)


def tile(fov_deg: float) -> Camera:
    return Camera(PERSPECTIVE, 0.0, 0.0, 0.0, math.radians(fov_deg), math.radians(fov_deg))


def test_pixels_per_radian_in_the_centre_and_at_the_edge_of_a_tile():
    """A 90-degree tile of 256 pixels has a focal length of 128, and twice as many pixels a radian at its edges."""
    centre, finest = pixels_per_radian(tile(90), (256, 256))
    assert centre == pytest.approx((128, 128))
    assert finest == pytest.approx((256, 256))
    step = 1e-4
    edge = point_directions(
        camera_tensor([tile(90)], torch.float64), torch.tensor([1 - step, 1.0]), torch.tensor([0.5])
    )
    (angle,) = torch.diff(direction_to_angles(edge)[0][0, 0])
    assert step * 256 / float(angle) == pytest.approx(256, rel=1e-3)


@pytest.mark.parametrize(
    ("camera", "view_size", "across"),
    [
        (tile(90), (256, 256), 1.24 * 256),
        (tile(30), (64, 64), 2 * 32 / math.tan(math.radians(15))),
        (LETTERBOXED, (256, 256), 2 * 256 / (2 * math.pi)),
    ],
)
def test_a_view_needs_two_pixels_for_one_in_its_centre_and_more_than_one_at_its_edges(camera, view_size, across):
    height, width = needed_panorama_size(camera, view_size)
    assert (height, width) == (math.ceil(math.pi * across - 1e-6), math.ceil(2 * math.pi * across - 1e-6))
