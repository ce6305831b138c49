"""Draws a scene as an equirectangular panorama, exact across the seam and over the poles.

Every thing is drawn in the tangent plane of its own direction, only where it can be seen.
"""

from functools import lru_cache

import cv2
import numpy as np

from panollava.data.scenes.scene import Backdrop, Decoy, Disc, Scene, Solid

PAINTS = {
    "red": (212, 42, 38),
    "yellow": (236, 200, 36),
    "green": (44, 168, 56),
    "blue": (44, 82, 226),
    "purple": (166, 58, 200),
    "white": (246, 246, 246),
}
BACKGROUND_ID = -1


@lru_cache(maxsize=4)
def _rays(height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit rays (H,W,3), latitudes (H,) and longitudes (W,) of the pixel centres of a panorama, radians."""
    width = 2 * height
    lon = ((np.arange(width) + 0.5) / width - 0.5) * 2.0 * np.pi
    lat = (0.5 - (np.arange(height) + 0.5) / height) * np.pi
    rays = np.empty((height, width, 3), np.float32)
    rays[..., 0] = np.cos(lat)[:, None] * np.sin(lon)
    rays[..., 1] = np.sin(lat)[:, None]
    rays[..., 2] = np.cos(lat)[:, None] * np.cos(lon)
    return rays, lat.astype(np.float32), lon.astype(np.float32)


@lru_cache(maxsize=4)
def _floor_plane(height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the rays below the horizon meet a floor one unit down: x, z (H/2,W) and how near it is (H/2,1)."""
    rays, lat, _ = _rays(height)
    below = rays[height // 2 :]
    reach = 1.0 / np.maximum(-below[..., 1], 1e-3)
    nearness = np.clip(-np.sin(lat[height // 2 :]) * 3.0 - 0.3, 0.0, 1.0)[:, None]
    return below[..., 0] * reach, below[..., 2] * reach, nearness


def paint(scene: Scene, height: int = 256) -> np.ndarray:
    """The scene as a panorama.

    Args:
        height: rows of the panorama; it has twice as many columns.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    return paint_with_ids(scene, height)[0]


def paint_with_ids(scene: Scene, height: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """The panorama and which thing each pixel shows.

    Returns:
        (H, W, 3) uint8 RGB, and (H, W) int8: index into ``scene.things`` or ``BACKGROUND_ID``.
    """
    canvas = _paint_backdrop(scene.backdrop, height)
    if scene.turn_deg:
        canvas = np.roll(canvas, round(scene.turn_deg / 360.0 * 2 * height), axis=1)
    brightness = scene.backdrop.brightness
    for decoy in scene.decoys:
        _draw(canvas, decoy, decoy.paint, height, brightness)
    ids = np.full(canvas.shape[:2], BACKGROUND_ID, np.int8)
    for index, thing in enumerate(scene.things):
        window, covered = _draw(canvas, thing, PAINTS[thing.colour], height, brightness)
        ids[window] = np.where(covered, np.int8(index), ids[window])
    np.minimum(canvas, 255.0, out=canvas)
    return canvas.astype(np.uint8), ids


def _draw(
    canvas: np.ndarray, thing: Solid | Disc | Decoy, paint: tuple[float, float, float], height: int, brightness: float
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Draws a thing on the canvas in place; the window that can see it, and which of its pixels it covers."""
    rows, columns, alpha, shade = _stamp(thing, height)
    window = np.ix_(rows, columns)
    colour = np.asarray(paint, np.float32) * brightness
    region = canvas[window]
    region += alpha[..., None] * (shade[..., None] * colour - region)
    canvas[window] = region
    return window, alpha > 0.5


def _paint_backdrop(backdrop: Backdrop, height: int) -> np.ndarray:
    """Sky over floor, (H, W, 3) float32."""
    _, lat, lon = _rays(height)
    half = height // 2
    rng = np.random.default_rng(backdrop.noise_seed)
    canvas = np.empty((height, 2 * height, 3), np.float32)
    rise = np.sin(lat[:half])[:, None, None]
    zenith, horizon = np.asarray(backdrop.zenith, np.float32), np.asarray(backdrop.horizon, np.float32)
    glow = 1.0 + 0.1 * np.cos(lon - np.deg2rad(backdrop.sun_yaw_deg))[None, :] * np.cos(lat[:half])[:, None]
    clouds = 1.0 + backdrop.cloud_contrast * _noise(rng, half, 2 * height, 8) * np.cos(lat[:half])[:, None]
    canvas[:half] = (horizon + (zenith - horizon) * rise) * (glow * clouds)[..., None]
    canvas[half:] = np.asarray(backdrop.floor, np.float32) * _floor_pattern(backdrop, rng, height)[..., None]
    canvas *= np.float32(backdrop.brightness)
    return canvas


def _floor_pattern(backdrop: Backdrop, rng: np.random.Generator, height: int) -> np.ndarray:
    """Brightness of the floor, (H/2, W) float32 around 1; it fades towards the horizon, where it would alias."""
    x, z, nearness = _floor_plane(height)
    scale = np.float32(backdrop.texture_scale)
    if backdrop.texture == "checker":
        pattern = np.sign(np.sin(x * scale * np.pi) * np.sin(z * scale * np.pi))
    elif backdrop.texture == "stripes":
        pattern = np.sin(x * scale * np.pi)
    elif backdrop.texture == "speckle":
        pattern = _noise(rng, height // 2, 2 * height, 32)
    else:
        pattern = np.zeros_like(x)
    return 1.0 + np.float32(backdrop.texture_contrast) * pattern * nearness


def _noise(rng: np.random.Generator, height: int, width: int, columns: int) -> np.ndarray:
    """Smooth noise in -1..1 that closes across the seam, (height, width) float32."""
    coarse = rng.uniform(-1.0, 1.0, (max(2, columns // 4), columns)).astype(np.float32)
    cell = width // columns
    wrapped = np.concatenate([coarse[:, -1:], coarse, coarse[:, :1]], axis=1)
    fine = cv2.resize(wrapped, (width + 2 * cell, height), interpolation=cv2.INTER_LINEAR)
    return fine[:, cell : cell + width]


def _stamp(thing: Solid | Disc | Decoy, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What a thing puts on the panorama.

    Returns:
        Rows and columns of the region that can see it, its coverage there (0..1) and its shade, (rows, columns).
    """
    rays, lat, lon = _rays(height)
    yaw, pitch, radius = np.deg2rad([thing.yaw_deg, thing.pitch_deg, thing.radius_deg])
    # No form reaches beyond its unit circle but the cube's corners.
    reach = radius * (1.02 if isinstance(thing, Disc) else 1.25) + np.pi / height
    rows = np.flatnonzero(np.abs(lat - pitch) <= reach)
    over_pole = abs(pitch) + reach >= np.pi / 2
    spread = np.pi if over_pole else np.arcsin(min(1.0, np.sin(reach) / np.cos(pitch)))
    columns = np.flatnonzero(np.abs((lon - yaw + np.pi) % (2.0 * np.pi) - np.pi) <= spread)
    forward = np.array([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)])
    right = np.array([np.cos(yaw), 0.0, -np.sin(yaw)])
    up = np.cross(forward, right)
    local = rays[np.ix_(rows, columns)] @ np.stack([right, up, forward], axis=1).astype(np.float32)
    depth = np.maximum(local[..., 2], 1e-3) * np.float32(np.tan(radius))
    x, y = local[..., 0] / depth, local[..., 1] / depth
    distance, shade = _FORMS[thing.shape](x, y)
    pixel = np.pi / height / np.tan(radius)
    alpha = np.clip(0.5 - distance / np.float32(pixel), 0.0, 1.0) * (local[..., 2] > 0)
    return rows, columns, alpha.astype(np.float32), shade.astype(np.float32)


def _ball(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r2 = x * x + y * y
    facing = np.sqrt(np.maximum(0.0, 0.9 - r2))
    return np.sqrt(r2) - 0.95, 0.62 + 0.42 * np.clip(0.35 * x + 0.5 * y + 0.8 * facing, 0.0, 1.0)


def _cube(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distance = np.maximum(np.abs(x), np.abs(y)) - 0.84
    shade = np.where(y > 0.42, 1.05, np.where(x > 0.42, 0.62, 0.86))
    return distance, shade


def _cone(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    slope = (2.0 * np.abs(x) + y - 0.95) / np.sqrt(5.0)
    across = np.clip(x / np.maximum(0.5 * (0.95 - y), 0.05), -1.0, 1.0)
    return np.maximum(slope, -0.85 - y), 0.85 + 0.2 * across


def _cylinder(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distance = np.maximum(np.abs(x) - 0.45, np.abs(y) - 1.0)
    return distance, np.where(y > 0.75, 1.05, 0.88 - 0.5 * np.clip(x, -0.5, 0.5))


def _ring(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r = np.sqrt(x * x + y * y)
    return np.abs(r - 0.74) - 0.26, 0.86 + 0.16 * y / np.maximum(r, 0.1)


def _diamond(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distance = (np.abs(x) / 0.8 + np.abs(y) - 1.0) / np.hypot(1.0 / 0.8, 1.0)
    return distance, 0.84 + np.where(y > 0, 0.12, -0.12) + np.where(x > 0, -0.08, 0.08)


def _light(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r = np.sqrt(x * x + y * y)
    return r - 0.98, 1.05 - 0.2 * np.clip(r, 0.0, 1.0)


def _mat(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r = np.sqrt(x * x + y * y)
    return r - 0.98, 0.88 + 0.1 * np.sign(np.sin(12.0 * r))


_FORMS = {
    "ball": _ball,
    "cube": _cube,
    "cone": _cone,
    "cylinder": _cylinder,
    "ring": _ring,
    "diamond": _diamond,
    "light": _light,
    "mat": _mat,
}
