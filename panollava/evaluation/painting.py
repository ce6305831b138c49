"""Tokens of views painted back on the panorama: which of them show a direction, through the cameras alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from panollava.crop.cameras import Column, locate, view_directions
from panollava.crop.sphere import pixel_to_direction

_EDGE_TOLERANCE = 1e-5
"""How far beyond a view's edge, as a share of its side, a direction still counts as shown: cameras are float32."""


def showing_tokens(cameras: Tensor, grid: tuple[int, int], directions: Tensor) -> Tensor:
    """The token of each view in whose patch a direction falls.

    Args:
        cameras: ``(V, C)``.
        grid: (H', W') tokens of a view.
        directions: ``(n, 3)``, unit vectors.

    Returns:
        ``(V, n)`` int64, counted row by row in the view; -1 where the view does not show the direction.
    """
    height, width = grid
    found = []
    for camera in cameras.double():  # one by one: all views of a fine panorama at once take gigabytes
        x, y, is_ahead = locate(camera, directions.double())
        x0, y0, x1, y1 = camera[Column.BOX_X0 : Column.BOX_Y1 + 1]
        inside_x = (x >= x0 - _EDGE_TOLERANCE) & (x <= x1 + _EDGE_TOLERANCE)
        inside_y = (y >= y0 - _EDGE_TOLERANCE) & (y <= y1 + _EDGE_TOLERANCE)
        column = (x * width).floor().long().clamp(0, width - 1)
        row = (y * height).floor().long().clamp(0, height - 1)
        found.append(torch.where(is_ahead & inside_x & inside_y, row * width + column, -1))
    return torch.stack(found)


def nearest_tokens(cameras: Tensor, grid: tuple[int, int], directions: Tensor) -> Tensor:
    """The token that stands for each direction: of the tile in which it lies nearest to the centre.

    Where no tile looks it is the global view's.

    Args:
        cameras: ``(V, C)``; likewise the others as for ``showing_tokens``.
        grid: (H', W').
        directions: ``(n, 3)``.

    Returns:
        ``(n)`` int64, counted through all views; -1 where no view looks.
    """
    return _nearest(showing_tokens(cameras, grid, directions), cameras, grid, directions)


class TokenMap:
    """Where the tokens of views lie on a panorama.

    Args:
        cameras: ``(V, C)``.
        grid: (H', W') tokens of a view; (1, 1) for whole views.
        size: (H, W) of the panorama that is painted.

    Attributes:
        cameras: the same.
        grid: the same.
        nearest: ``(H, W)`` int64, see ``nearest_tokens``.
    """

    def __init__(self, cameras: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> None:
        self.cameras, self.grid, self._size = cameras.cpu(), grid, size
        rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in size), indexing="ij")
        directions = pixel_to_direction(columns, rows, size).flatten(0, 1)
        self._showing = showing_tokens(self.cameras, grid, directions)  # (V, H·W)
        self.nearest = _nearest(self._showing, self.cameras, grid, directions).view(size)
        latitude = (0.5 - (rows + 0.5) / size[0]) * math.pi
        # Between two rows' edges, so that all pixels together are the whole sphere and not nearly.
        strip = 2 * torch.cos(latitude) * math.sin(math.pi / size[0] / 2)
        self.steradians = strip * (2 * math.pi / size[1])

    @property
    def is_painted(self) -> Tensor:
        """Tokens ``(V·Q)`` bool that stand for some pixel."""
        painted = torch.zeros(len(self.cameras) * math.prod(self.grid) + 1, dtype=torch.bool)
        painted[self.nearest.flatten()] = True  # -1 marks the last, which is cut off
        return painted[:-1]

    def paint(self, values: Tensor) -> Tensor:
        """Each pixel takes the value of its nearest token.

        Args:
            values: ``(V·Q, ...)`` of floats.

        Returns:
            ``(H, W, ...)``; not a number where no view looks.
        """
        nothing = values.new_full((1, *values.shape[1:]), math.nan)
        return torch.cat((values, nothing))[self.nearest]

    def spread(self, weights: Tensor) -> Tensor:
        """The weight of each token spread evenly over the directions its patch shows, those of all views added up.

        Args:
            weights: ``(V, Q)``.

        Returns:
            ``(H, W)`` of weight a steradian. Its integral is the sum of the weights, those of tokens excepted that
            show nothing but the padding of a letterboxed view.
        """
        density = torch.zeros(self.nearest.numel(), dtype=torch.float64)
        area = self.steradians.flatten()
        for showing, own in zip(self._showing, weights.double().cpu(), strict=True):
            shown = showing >= 0
            token = showing[shown]
            areas = torch.zeros(len(own), dtype=torch.float64).index_add_(0, token, area[shown])
            density[shown] += (own / areas.clamp(min=1e-12))[token]
        return density.view(self._size)


def _nearest(showing: Tensor, cameras: Tensor, grid: tuple[int, int], directions: Tensor) -> Tensor:
    closeness = view_directions(cameras.double()) @ directions.double().T  # (V, n), cosines
    closeness -= 4 * cameras[:, Column.IS_GLOBAL, None]  # behind every tile
    closeness[showing < 0] = -math.inf
    view = closeness.argmax(dim=0)
    token = showing.gather(0, view[None])[0]
    return torch.where(token < 0, -1, view * math.prod(grid) + token)
