"""Where the edge of a view runs in a panorama: curves that part at the seam and at the poles."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from panollava.crop.cameras import EQUIRECTANGULAR, Camera, camera_tensor, point_directions
from panollava.crop.sphere import angles_to_pixel, direction_to_pixel

_FIRST_POINTS = 128
"""Points around a view to begin with, a whole number an edge, so that the corners are among them."""

_STEPS = 256
"""Neighbouring points end up no further apart than the panorama's width divided by this."""

_FINEST = 1e-9
"""Shortest step along an edge: what is still far apart then lies on two sides of a pole."""


def narrowed(camera: Camera, across_rad: float, down_rad: float) -> Camera:
    """The camera of a view whose edges lie further in by these angles, but never beyond a quarter of the view.

    Args:
        camera: the view.
        across_rad: at the left and the right.
        down_rad: at the top and the bottom.
    """
    h_extent, v_extent = camera.h_extent_rad, camera.v_extent_rad
    return replace(
        camera,
        h_extent_rad=h_extent - 2 * min(across_rad, h_extent / 4),
        v_extent_rad=v_extent - 2 * min(down_rad, v_extent / 4),
    )


def border_curves(camera: Camera, panorama_size: tuple[int, int]) -> list[np.ndarray]:
    """The edge of a view's content, once around, as curves in a panorama.

    A curve that meets the seam ends there, and the next one goes on at the other side; one that meets a pole ends
    at the panorama's upper or lower edge, and the next one comes down, or up, half a panorama away.

    Args:
        camera: the view.
        panorama_size: (H, W).

    Returns:
        Curves ``(P, 2)`` float64 of columns in [-1/2, W - 1/2] and rows in [-1/2, H - 1/2]; whole numbers are pixel
        centres, and from one point to the next it is never more than a few pixels in a thousand.
    """
    width = panorama_size[1]
    along = np.linspace(0, 4, _FIRST_POINTS + 1)
    while True:
        points = _edge_points(camera, along, panorama_size)
        is_far = _distances(points, width) > width / _STEPS
        is_coarse = is_far & (np.diff(along) > _FINEST)
        if not is_coarse.any():
            return _parted(points, is_far, panorama_size)
        along = np.sort(np.concatenate((along, (along[:-1] + along[1:])[is_coarse] / 2)))


def _edge_points(camera: Camera, along: np.ndarray, panorama_size: tuple[int, int]) -> np.ndarray:
    """Columns and rows (P, 2) of points from 0 to 4 around a view: over the top, right, bottom and left edge."""
    x = torch.from_numpy(np.interp(along, np.arange(5), (0.0, 1.0, 1.0, 0.0, 0.0)))
    y = torch.from_numpy(np.interp(along, np.arange(5), (0.0, 0.0, 1.0, 1.0, 0.0)))
    if camera.projection == EQUIRECTANGULAR:
        # By angles, not directions: an edge that lies on a pole has a longitude here, and a line in the picture.
        longitude = camera.yaw_rad + (x - 0.5) * camera.h_extent_rad
        latitude = camera.pitch_rad - (y - 0.5) * camera.v_extent_rad
        turned = torch.remainder(longitude + math.pi, 2 * math.pi) - math.pi
        column, row = angles_to_pixel(turned, latitude.clamp(-math.pi / 2, math.pi / 2), panorama_size)
    else:
        filled = camera_tensor([replace(camera, box=(0.0, 0.0, 1.0, 1.0))], torch.float64)
        directions = point_directions(filled.expand(len(along), -1), x[:, None], y[:, None])
        column, row = direction_to_pixel(directions[:, 0, 0], panorama_size)
    return torch.stack((column, row), dim=-1).numpy()


def _distances(points: np.ndarray, width: int) -> np.ndarray:
    """How far it is (P - 1) from each point to the next, the shorter way around the panorama."""
    columns, rows = np.diff(points, axis=0).T
    return np.maximum(np.abs(columns - width * np.round(columns / width)), np.abs(rows))


def _parted(points: np.ndarray, is_far: np.ndarray, panorama_size: tuple[int, int]) -> list[np.ndarray]:
    """The points (P, 2) as curves; `is_far` (P - 1) tells steps over a pole."""
    height, width = panorama_size
    curves = [[points[0]]]
    for start, end, over_pole in zip(points[:-1], points[1:], is_far, strict=True):
        turn = width * round((start[0] - end[0]) / width)
        if over_pole:
            pole = -0.5 if start[1] < height / 2 else height - 0.5
            curves[-1].append(np.array((start[0], pole)))
            curves.append([np.array((end[0], pole)), end])
        elif turn:
            seam = width - 0.5 if turn > 0 else -0.5
            step = end[0] + turn - start[0]
            row = start[1] + (end[1] - start[1]) * ((seam - start[0]) / step if step else 1.0)
            curves[-1].append(np.array((seam, row)))
            curves.append([np.array((seam - turn, row)), end])
        else:
            curves[-1].append(end)
    return [np.stack(curve) for curve in curves if np.ptp(curve, axis=0).max() > 1e-6]
