"""Directions and boxes of the sets: yaw is 0 in the centre of the picture and to the right, and pitch is up."""

import numpy as np

from panollava.crop.boxes import box_frames
from panollava.data.scenes.scene import wrap_deg
from panollava.evaluation.benchmarks.protocol import Box


def as_box(box: Box) -> np.ndarray:
    """A box of a set as one of this package, ``(5,)``: yaw in [-180, 180), no roll."""
    yaw, *rest = box
    return np.array([wrap_deg(yaw), *rest, 0.0])


def unit(yaw: float, pitch: float) -> np.ndarray:
    """Unit vector ``(3,)`` of a direction in degrees; a pitch may go on past a pole."""
    return box_frames(np.array([[yaw, pitch, 1.0, 1.0, 0.0]]))[0, 2]


def angle_between(first: np.ndarray, second: np.ndarray) -> float:
    """Degrees between two unit vectors ``(3,)``; exact for small and for large angles."""
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(first, second)), first @ second)))
