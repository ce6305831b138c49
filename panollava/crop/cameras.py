"""The camera of each view: its row in a batch tensor, the directions of its pixels, and how finely it samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from panollava.crop.sphere import angles_to_direction, direction_to_angles, rotation_matrix, without_autocast

PERSPECTIVE = 0  # projection code of a pinhole view: straight lines stay straight
EQUIRECTANGULAR = 1  # projection code of a rectangle of the panorama itself: angles are linear in pixels

CENTRE_MARGIN, FINEST_MARGIN = 2.0, 1.24
"""Panorama pixels per view pixel, each way, in the view's centre and where the view is finest. With fewer, views of
photographs are blurred: they differ more from the mean over each pixel than views cut from the whole photograph
without anti-aliasing."""


class Column(IntEnum):
    """Columns of a camera row. Angles are radians, boxes fractions of the view."""

    PROJECTION = 0
    YAW = 1
    PITCH = 2
    ROLL = 3
    H_EXTENT = 4
    V_EXTENT = 5
    BOX_X0 = 6
    BOX_Y0 = 7
    BOX_X1 = 8
    BOX_Y1 = 9
    IS_GLOBAL = 10


@dataclass(frozen=True)
class Camera:
    """One view of a panorama: its centre, the angles that its content covers, and where this lies in the view."""

    projection: int  # PERSPECTIVE or EQUIRECTANGULAR
    yaw_rad: float
    pitch_rad: float
    roll_rad: float  # clockwise; 0 in equirectangular views
    h_extent_rad: float  # from the left to the right edge of the content, along its middle row
    v_extent_rad: float  # from top to bottom, along its middle column
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # x0, y0, x1, y1 of the content; the rest is black
    is_global: bool = False  # it shows the whole panorama, and is in no ring of tiles

    def __post_init__(self) -> None:
        if self.projection == PERSPECTIVE and not 0 < max(self.h_extent_rad, self.v_extent_rad) < math.pi:
            raise ValueError(
                f"A perspective camera cannot see {math.degrees(self.h_extent_rad):g} x "
                f"{math.degrees(self.v_extent_rad):g} degrees: both extents must lie between 0 and 180. "
                "Use an equirectangular camera for a wider view."
            )
        if self.projection == EQUIRECTANGULAR and self.roll_rad != 0:
            raise ValueError(
                f"roll_rad={self.roll_rad:g}: an equirectangular view is a rectangle of the panorama and "
                "cannot roll. Use roll_rad=0, or a perspective camera."
            )

    def row(self) -> tuple[float, ...]:
        """The camera as numbers, in the order of ``Column``."""
        angles = (self.yaw_rad, self.pitch_rad, self.roll_rad, self.h_extent_rad, self.v_extent_rad)
        return (float(self.projection), *angles, *self.box, float(self.is_global))


def camera_tensor(cameras: Sequence[Camera], dtype: torch.dtype = torch.float32) -> Tensor:
    """Camera rows ``(V, C)``."""
    return torch.tensor([camera.row() for camera in cameras], dtype=dtype)


def view_directions(cameras: Tensor) -> Tensor:
    """Unit vectors ``(..., 3)`` of the view centres of cameras ``(..., C)``."""
    return angles_to_direction(cameras[..., Column.YAW], cameras[..., Column.PITCH])


def token_directions(cameras: Tensor, grid: tuple[int, int]) -> Tensor:
    """Unit vectors ``(..., H', W', 3)`` of the patch centres of cameras ``(..., C)`` with a grid (H', W') of patches.

    A patch whose centre lies in the padding of a letterboxed view takes the direction of the nearest content, a
    quarter of a patch inside the box: on the edge itself, which may be a pole, the yaw would be undefined.
    """
    height, width = grid
    x = (torch.arange(width, device=cameras.device, dtype=cameras.dtype) + 0.5) / width
    y = (torch.arange(height, device=cameras.device, dtype=cameras.dtype) + 0.5) / height
    x = _into_box(x, cameras[..., Column.BOX_X0, None], cameras[..., Column.BOX_X1, None], 0.25 / width)
    y = _into_box(y, cameras[..., Column.BOX_Y0, None], cameras[..., Column.BOX_Y1, None], 0.25 / height)
    return point_directions(cameras, x, y)


@without_autocast
def point_directions(cameras: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Unit vectors ``(..., h, w, 3)`` of a lattice of points in each view of cameras ``(..., C)``.

    x ``(w)`` or ``(..., w)`` runs from 0 at the view's left edge to 1 at the right, y ``(h)`` or ``(..., h)`` from 0
    at the top to 1 at the bottom.
    """
    right = _centred(x, cameras[..., Column.BOX_X0, None], cameras[..., Column.BOX_X1, None])[..., None, :]
    up = -_centred(y, cameras[..., Column.BOX_Y0, None], cameras[..., Column.BOX_Y1, None])[..., :, None]
    right, up = torch.broadcast_tensors(right, up)
    yaw, pitch, roll = (cameras[..., column] for column in (Column.YAW, Column.PITCH, Column.ROLL))
    h_extent, v_extent = cameras[..., Column.H_EXTENT, None, None], cameras[..., Column.V_EXTENT, None, None]
    is_perspective = cameras[..., Column.PROJECTION, None, None] == PERSPECTIVE

    # Perspective: a point of the plane z = 1, normalised. A global view has no tangent plane; its extents are
    # replaced so that no infinity reaches the torch.where below.
    half_width = torch.tan(torch.where(is_perspective, h_extent, 1.0) / 2)
    half_height = torch.tan(torch.where(is_perspective, v_extent, 1.0) / 2)
    rays = torch.stack((2 * right * half_width, 2 * up * half_height, torch.ones_like(right)), dim=-1)
    rays = rays / rays.norm(dim=-1, keepdim=True)
    # One matrix product per view; one per point would take a hundred times as long.
    rotation = rotation_matrix(yaw, pitch, roll).transpose(-1, -2)
    rays = (rays.flatten(-3, -2) @ rotation).reshape(rays.shape)

    # Equirectangular: angles are linear in the position.
    linear = angles_to_direction(yaw[..., None, None] + right * h_extent, pitch[..., None, None] + up * v_extent)
    return torch.where(is_perspective.unsqueeze(-1), rays, linear)


@without_autocast
def locate(cameras: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of unit vectors ``(..., N, 3)`` in the views of cameras ``(..., C)``; inverts ``point_directions``.

    Returns:
        x and y ``(..., N)``, from 0 at the view's left and top edge to 1 at the opposite one, and whether the
        direction is in front of the camera. If it is not, x and y are finite and have no meaning.
    """
    yaw, pitch, roll = (cameras[..., column, None] for column in (Column.YAW, Column.PITCH, Column.ROLL))
    h_extent, v_extent = cameras[..., Column.H_EXTENT, None], cameras[..., Column.V_EXTENT, None]
    is_perspective = cameras[..., Column.PROJECTION, None] == PERSPECTIVE

    # Row vectors times the rotation: its inverse, from world to camera.
    right, up, forward = (directions @ rotation_matrix(yaw[..., 0], pitch[..., 0], roll[..., 0])).unbind(-1)
    is_ahead = forward > 1e-6
    forward = torch.where(is_ahead, forward, 1.0)
    half_width = torch.tan(torch.where(is_perspective, h_extent, 1.0) / 2)
    half_height = torch.tan(torch.where(is_perspective, v_extent, 1.0) / 2)

    longitude, latitude = direction_to_angles(directions)
    turn = torch.remainder(longitude - yaw + math.pi, 2 * math.pi) - math.pi
    across = torch.where(is_perspective, right / forward / half_width / 2, turn / h_extent)
    down = -torch.where(is_perspective, up / forward / half_height / 2, (latitude - pitch) / v_extent)
    x0, y0, x1, y1 = cameras[..., Column.BOX_X0 : Column.BOX_Y1 + 1, None].unbind(-2)
    return (across + 0.5) * (x1 - x0) + x0, (down + 0.5) * (y1 - y0) + y0, is_ahead | ~is_perspective


def _into_box(position: Tensor, start: Tensor, end: Tensor, margin: float) -> Tensor:
    middle = (start + end) / 2
    return position.clamp(torch.minimum(start + margin, middle), torch.maximum(end - margin, middle))


def _centred(position: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Position in the content box: -1/2 at its start, 1/2 at its end."""
    return (position - start) / (end - start) - 0.5


def needed_panorama_size(camera: Camera, view_size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of the coarsest panorama from which a view of (h, w) pixels can be cut without a measurable loss.

    It has ``CENTRE_MARGIN`` pixels per pixel in the view's centre and, as perspective views are finer towards
    their edges, ``FINEST_MARGIN`` where the view is finest.
    """
    centre, finest = pixels_per_radian(camera, view_size)
    down, across = (
        max(CENTRE_MARGIN * middle, FINEST_MARGIN * edge) for middle, edge in zip(centre, finest, strict=True)
    )
    if camera.projection == PERSPECTIVE:
        down = across = max(down, across)
    return max(1, math.ceil(math.pi * down - 1e-6)), max(2, math.ceil(2 * math.pi * across - 1e-6))


def pixels_per_radian(camera: Camera, view_size: tuple[int, int]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Pixels per radian (down, across) of a view of (h, w) pixels, in its centre and where it is finest.

    A perspective view of focal length f (pixels) has f in its centre and f / cos²(extent / 2), the derivative of
    f tan(angle), at the middle of an edge. An equirectangular view is the same everywhere.
    """
    x0, y0, x1, y1 = camera.box
    sides, extents = (view_size[0] * (y1 - y0), view_size[1] * (x1 - x0)), (camera.v_extent_rad, camera.h_extent_rad)
    if camera.projection == EQUIRECTANGULAR:
        down, across = (side / extent for side, extent in zip(sides, extents, strict=True))
        return (down, across), (down, across)
    down, across = (side / 2 / math.tan(extent / 2) for side, extent in zip(sides, extents, strict=True))
    edges = (focal / math.cos(extent / 2) ** 2 for focal, extent in zip((down, across), extents, strict=True))
    finest_down, finest_across = edges
    return (down, across), (finest_down, finest_across)
