"""Directions and boxes of a set and of this package, and pixels of the panorama.

A set differs from this package in where its yaw is 0 and from which value it counts. Yaw is to the right and pitch up
in all of them. Pixels are those of ``panollava.crop.sphere``: whole numbers are centres. Legend: ``W, H`` size of the
panorama.
"""

from dataclasses import dataclass

import numpy as np

from panollava.crop.boxes import box_frames
from panollava.evaluation.benchmarks.protocol import Box


@dataclass(frozen=True)
class Convention:
    """How a set counts yaw."""

    centre_deg: float  # yaw of the centre of the picture
    least_deg: float  # smallest yaw; the set's values are in [least, least + 360)

    def ours(self, box: Box) -> np.ndarray:
        """A box of the set as one of this package, ``(5,)``: yaw in [-180, 180), no roll."""
        yaw, pitch, horizontal, vertical = box
        return np.array([_wrapped(yaw - self.centre_deg, -180.0), pitch, horizontal, vertical, 0.0])

    def theirs(self, box: np.ndarray) -> Box:
        """A box ``(5,)`` of this package as one of the set; its roll is left out."""
        yaw, pitch, horizontal, vertical = (float(value) for value in box[:4])
        return _wrapped(yaw + self.centre_deg, self.least_deg), pitch, horizontal, vertical

    def pixel(self, yaw: float, pitch: float, size: tuple[int, int]) -> tuple[float, float]:
        """Column in [-1/2, W - 1/2) and row in [-1/2, H - 1/2] of a direction of the set; `size` is (H, W)."""
        height, width = size
        turn = _wrapped(yaw - self.centre_deg, -180.0)
        return (turn / 360 + 0.5) * width - 0.5, (0.5 - pitch / 180) * height - 0.5

    def direction(self, column: float, row: float, size: tuple[int, int]) -> tuple[float, float]:
        """Yaw and pitch of the set of a column and a row; `size` is (H, W)."""
        height, width = size
        yaw = ((column + 0.5) / width - 0.5) * 360 + self.centre_deg
        return _wrapped(yaw, self.least_deg), (0.5 - (row + 0.5) / height) * 180


def unit(yaw: float, pitch: float) -> np.ndarray:
    """Unit vector ``(3,)`` of a direction in degrees; a pitch may go on past a pole."""
    return box_frames(np.array([[yaw, pitch, 1.0, 1.0, 0.0]]))[0, 2]


def angle_between(first: np.ndarray, second: np.ndarray) -> float:
    """Degrees between two unit vectors ``(3,)``; exact for small and for large angles."""
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(first, second)), first @ second)))


def _wrapped(yaw: float, least: float) -> float:
    found = (yaw - least) % 360 + least
    return least if found >= least + 360 else found  # a tiny negative number is 360 after the modulo
