"""Axis conventions, stated here once more in numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from panollava.crop.sphere import (
    angles_to_direction,
    direction_to_angles,
    direction_to_pixel,
    pixel_to_direction,
    rotation_matrix,
)

HALF_ROOT = math.sqrt(0.5)


def rotate(vector: tuple[float, float, float], yaw: float, pitch: float, roll: float) -> Tensor:
    angles = (torch.tensor(math.radians(angle), dtype=torch.float64) for angle in (yaw, pitch, roll))
    return rotation_matrix(*angles) @ torch.tensor(vector, dtype=torch.float64)


@pytest.mark.parametrize(
    ("vector", "angles_deg", "expected"),
    [
        ((0, 0, 1), (90, 0, 0), (1, 0, 0)),
        ((0, 0, 1), (0, 90, 0), (0, 1, 0)),
        ((1, 0, 0), (0, 0, 90), (0, -1, 0)),
        ((0, 0, 1), (90, 45, 0), (HALF_ROOT, HALF_ROOT, 0)),
        ((1, 0, 0), (0, 90, 90), (0, 0, 1)),
    ],
    ids=["yaw looks right", "pitch looks up", "roll lowers the right edge", "pitch before yaw", "roll before pitch"],
)
def test_rotations_turn_the_way_the_conventions_say(vector, angles_deg, expected):
    assert_close(rotate(vector, *angles_deg), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_centre_of_the_panorama_is_forward_and_its_right_half_is_right():
    forward = pixel_to_direction(torch.tensor(3.5), torch.tensor(1.5), (4, 8))
    right = pixel_to_direction(torch.tensor(5.5), torch.tensor(1.5), (4, 8))
    top = pixel_to_direction(torch.tensor(3.5), torch.tensor(-0.5), (4, 8))
    assert_close(forward, torch.tensor([0.0, 0.0, 1.0]))
    assert_close(right, torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0)
    assert_close(top, torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)


def test_pixels_and_directions_are_inverse():
    row, column = torch.meshgrid(torch.arange(7.0), torch.arange(13.0), indexing="ij")
    back = direction_to_pixel(3 * pixel_to_direction(column, row, (7, 13)), (7, 13))
    assert_close(back, (column, row), atol=1e-4, rtol=0)


def test_a_latitude_past_the_pole_goes_on_behind_it():
    beyond = angles_to_direction(torch.tensor(0.3), torch.tensor(math.pi / 2 + 0.1))
    longitude, latitude = direction_to_angles(beyond)
    assert float(longitude) == pytest.approx(0.3 - math.pi, abs=1e-5)
    assert float(latitude) == pytest.approx(math.pi / 2 - 0.1, abs=1e-5)
