"""One perspective view of a panorama file, for people to look at."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from panollava.crop.cameras import PERSPECTIVE, Camera
from panollava.crop.partial import Covered
from panollava.crop.read import read_panorama
from panollava.crop.render import render_views


def look(
    path: Path,
    yaw_deg: float,
    pitch_deg: float,
    *,
    covered: Covered | None = None,
    fov_deg: float = 90.0,
    side: int = 512,
) -> np.ndarray:
    """What lies in a direction.

    Args:
        path: a panorama, JPEG or PNG.
        yaw_deg: degrees to the right of the panorama's centre.
        pitch_deg: degrees up.
        covered: degrees that the picture covers, horizontally and vertically; None for the whole sphere.
        fov_deg: extent of the view, each way.
        side: pixels, each way.

    Returns:
        ``(side, side, 3)`` uint8 RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no panorama, or there is no such direction.
    """
    if not (math.isfinite(yaw_deg) and -90 <= pitch_deg <= 90):
        raise ValueError(
            f"yaw {yaw_deg:g}, pitch {pitch_deg:g} is no direction: pitch goes from -90 (down) to 90 (up) degrees."
        )
    extent = math.radians(fov_deg)
    camera = Camera(PERSPECTIVE, math.radians(yaw_deg), math.radians(pitch_deg), 0.0, extent, extent)
    return render_views(read_panorama(path, [camera], (side, side), covered), [camera], (side, side))[0]
