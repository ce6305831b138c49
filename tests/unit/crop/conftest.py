"""An oracle for views: a panorama whose pixels are their own direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from panollava.crop.cameras import Camera, camera_tensor, point_directions
from panollava.crop.sphere import pixel_to_direction

Oracle = Callable[[Sequence[Camera], tuple[int, int]], np.ndarray]


def direction_panorama(height: int, width: int) -> np.ndarray:
    row, column = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    return pixel_to_direction(column, row, (height, width)).float().numpy()


@pytest.fixture(scope="session")
def panorama() -> np.ndarray:
    """``(1024, 2048, 3)`` float32."""
    return direction_panorama(1024, 2048)


@pytest.fixture(scope="session")
def odd_panorama() -> np.ndarray:
    """The same of odd sides, a little wider than twice as wide as high."""
    return direction_panorama(1001, 2021)


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """What views of that panorama should hold: ``(V, h, w, 3)``."""

    def directions(cameras: Sequence[Camera], view_size: tuple[int, int]) -> np.ndarray:
        y, x = ((torch.arange(side, dtype=torch.float64) + 0.5) / side for side in view_size)
        return point_directions(camera_tensor(cameras, torch.float64), x, y).numpy()

    return directions
