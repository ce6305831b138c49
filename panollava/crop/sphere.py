"""Directions on the sphere, rotations and panorama pixels: the axis conventions of the whole project.

x is right, y up, z forward. Yaw 0 is the centre of the panorama, +yaw looks right, +pitch looks up, +roll
rotates the camera clockwise, so that the right edge of its view looks down. Angles are radians. Pixel centres:
column ``c`` of ``W`` is longitude ``((c + 1/2) / W - 1/2) * 2 pi``, row ``r`` of ``H`` is latitude
``(1/2 - (r + 1/2) / H) * pi``.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator of a function whose first argument is a tensor: it computes in the types of its inputs.

    Under autocast a product of directions in bfloat16 would be off by up to half a degree.
    """

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        first: Any = args[0]
        with torch.autocast(first.device.type, enabled=False):
            return function(*args, **options)

    return call


@without_autocast
def rotation_matrix(yaw_rad: Tensor, pitch_rad: Tensor, roll_rad: Tensor) -> Tensor:
    """Camera-to-world rotations ``(..., 3, 3)`` for column vectors, of angles ``(...)``.

    Roll about z is applied first, then pitch about x, then yaw about y.
    """
    sin_yaw, cos_yaw = torch.sin(yaw_rad), torch.cos(yaw_rad)
    sin_pitch, cos_pitch = torch.sin(pitch_rad), torch.cos(pitch_rad)
    sin_roll, cos_roll = torch.sin(roll_rad), torch.cos(roll_rad)
    zero, one = torch.zeros_like(yaw_rad), torch.ones_like(yaw_rad)
    yaw = _matrix(cos_yaw, zero, sin_yaw, zero, one, zero, -sin_yaw, zero, cos_yaw)
    pitch = _matrix(one, zero, zero, zero, cos_pitch, sin_pitch, zero, -sin_pitch, cos_pitch)
    roll = _matrix(cos_roll, sin_roll, zero, -sin_roll, cos_roll, zero, zero, zero, one)
    return yaw @ pitch @ roll


def _matrix(*entries: Tensor) -> Tensor:
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def angles_to_direction(longitude_rad: Tensor, latitude_rad: Tensor) -> Tensor:
    """Unit vectors ``(..., 3)`` of longitudes and latitudes ``(...)``. A latitude may go on past a pole."""
    ring = torch.cos(latitude_rad)  # radius of the circle of latitude
    return torch.stack(
        (ring * torch.sin(longitude_rad), torch.sin(latitude_rad), ring * torch.cos(longitude_rad)), dim=-1
    )


def direction_to_angles(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Longitude in (-pi, pi] and latitude of vectors ``(..., 3)`` of any length."""
    x, y, z = directions.unbind(-1)
    # arcsin would lose half of the digits near the poles.
    return torch.atan2(x, z), torch.atan2(y, torch.hypot(x, z))


def direction_to_pixel(directions: Tensor, panorama_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Column in [-1/2, W - 1/2] and row in [-1/2, H - 1/2] of directions ``(..., 3)``; whole numbers are centres."""
    return angles_to_pixel(*direction_to_angles(directions), panorama_size)


def angles_to_pixel(
    longitude_rad: Tensor, latitude_rad: Tensor, panorama_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Column and row, each ``(...)``, of longitudes and latitudes ``(...)`` in an (H, W) panorama."""
    height, width = panorama_size
    column = (longitude_rad / (2 * math.pi) + 0.5) * width - 0.5
    row = (0.5 - latitude_rad / math.pi) * height - 0.5
    return column, row


def pixel_to_direction(column: Tensor, row: Tensor, panorama_size: tuple[int, int]) -> Tensor:
    """Unit vectors ``(..., 3)`` of columns and rows ``(...)`` in an (H, W) panorama."""
    height, width = panorama_size
    longitude_rad = ((column + 0.5) / width - 0.5) * 2 * math.pi
    latitude_rad = (0.5 - (row + 0.5) / height) * math.pi
    return angles_to_direction(longitude_rad, latitude_rad)
