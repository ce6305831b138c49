"""A perspective view of a file in any direction, against a panorama whose pixels are their own direction."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from panollava.run.image_commands import look


@pytest.fixture
def painted(tmp_path: Path) -> Path:
    """Red is the longitude, green the latitude, each from 0 to 255."""
    height, width = 512, 1024
    red = np.broadcast_to(np.linspace(0, 255, width)[None], (height, width))
    green = np.broadcast_to(np.linspace(255, 0, height)[:, None], (height, width))
    picture = np.stack([np.zeros_like(red), green, red], axis=2).round().astype(np.uint8)
    cv2.imwrite(str(tmp_path / "painted.png"), picture)
    return tmp_path / "painted.png"


@pytest.mark.parametrize(("yaw", "pitch"), [(0, 0), (90, 0), (-120, 30), (450, -60)])
def test_the_middle_shows_the_direction(painted: Path, yaw: float, pitch: float) -> None:
    view = look(painted, yaw, pitch)
    assert (view.shape, view.dtype) == ((512, 512, 3), np.uint8)
    turn = (yaw + 180) % 360 / 360
    assert view[255:257, 255:257].mean(axis=(0, 1)) == pytest.approx([255 * turn, 255 * (pitch + 90) / 180, 0], abs=2)
    edge = view[255:257, -1].mean(axis=0)
    if pitch == 0:  # its right edge lies half the field of view further right
        at = math.degrees(math.atan(511 / 512))
        assert edge[0] == pytest.approx(255 * ((yaw + at + 180) % 360) / 360, abs=2)


@pytest.mark.parametrize("direction", [(0, 91), (0, -90.5), (math.nan, 0), (math.inf, 0), (0, math.nan)])
def test_no_direction(painted: Path, direction: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="is no direction: pitch goes from -90"):
        look(painted, *direction)
