"""Rays of an equirectangular panorama, written out anew as an oracle."""

from __future__ import annotations

import numpy as np


def directions(height: int) -> np.ndarray:
    """Unit rays (H, W, 3), x right, y up, z forward."""
    lon = ((np.arange(2 * height) + 0.5) / (2 * height) - 0.5) * 2 * np.pi
    lat = (0.5 - (np.arange(height) + 0.5) / height) * np.pi
    lat, lon = np.meshgrid(lat, lon, indexing="ij")
    return np.stack([np.cos(lat) * np.sin(lon), np.sin(lat), np.cos(lat) * np.cos(lon)], axis=-1)
