"""Where ``crop=adaptive`` looks: a map of a panorama's detail, and the tiles that show it best.

Everything after the map is in integers, and candidates stand on the map's columns: the tiles of a panorama do not
depend on threads, and a rotation by whole columns of the map rotates them exactly.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

ROWS, COLUMNS = 64, 128  # cells of the map; a cell is 2.8 degrees high, and as wide at the horizon
FOVS_DEG = (90.0, 75.0, 60.0, 45.0)  # of candidates, the widest first: it is taken where two are as good
PITCHES_DEG = (0.0, *(sign * angle for angle in (15.0, 30.0, 45.0, 60.0, 75.0, 90.0) for sign in (1, -1)))
NOISE = 8.0  # grey levels of contrast in a cell that count as nothing: noise, grain, blocks of JPEG files
LEAST = 0.01  # grey levels of mean contrast, beyond the noise, of a panorama that has detail
EVERYWHERE = 0.05  # share of the detail that is spread over the whole sphere, for the tiles that are left

_FINE = 2  # pixels along each side of a cell, between which contrast is measured
_ROWS_READ = 4  # rows of the panorama that are averaged to one, at least; others are skipped to save time
_BLACK = 12  # the brightest value in rows and columns that a picture of a part of the sphere does not reach
_UNIT = 2**24  # sum of a map
_EDGE = 0.125  # share of its gain that a candidate loses for what lies in its corners
_STEPS = 64  # integer steps of a gain, and of the sharpness of the widest candidate

Tile = tuple[int, int, int]
"""Positions of a tile's angles: field of view, pitch, and column of the map on which its yaw lies."""


def detail_map(panorama: np.ndarray) -> np.ndarray:
    """The detail of a panorama ``(H, W, 3)`` uint8: ``(ROWS, COLUMNS)`` int64, all 0 where it has none.

    Contrast is the root mean square of the differences of neighbouring pixels in a cell, over both directions and the
    three colours, of the panorama averaged to ``_FINE`` pixels a cell. What exceeds ``NOISE`` is weighted by the cell's
    solid angle. ``EVERYWHERE`` of the detail is spread evenly over the picture, and the sum is about ``_UNIT``, however
    strong the contrast is. The edge of a picture that covers a part of the sphere is no detail.
    """
    size = (COLUMNS * _FINE, ROWS * _FINE)
    is_finer = panorama.shape[0] >= size[1] and panorama.shape[1] >= size[0]
    step = max(1, panorama.shape[0] // (_ROWS_READ * size[1]))
    # Averages of whole pixels do not depend on their place. A coarse panorama is repeated, as cv2 would interpolate
    # without the pixels beyond the seam.
    interpolation = cv2.INTER_AREA if is_finer else cv2.INTER_NEAREST
    small = cv2.resize(np.asarray(panorama)[step // 2 :: step], size, interpolation=interpolation)
    colours = np.ascontiguousarray(small.transpose(2, 0, 1)).astype(np.int32)  # by planes, which is faster
    brightest = colours.max(axis=0)
    rows, columns = brightest.max(axis=1) > _BLACK, brightest.max(axis=0) > _BLACK
    squares = _squares(colours, 2) * _inner(columns)
    squares[:-1] += (_squares(colours, 1) * _inner(rows)[:, None])[:-1]
    is_shown = (rows[:, None] & columns).astype(np.int32)
    contrast = np.sqrt(_cells(squares * is_shown) / (3 * _FINE**2))
    weight = np.cos((0.5 - (np.arange(ROWS) + 0.5) / ROWS) * math.pi)[:, None]
    detail = np.rint(_STEPS * weight * np.maximum(0.0, contrast - NOISE)).astype(np.int64)
    if (total := int(detail.sum())) <= _STEPS * LEAST * COLUMNS * weight.sum():
        return np.zeros_like(detail)
    even = np.rint(_STEPS * weight * _cells(is_shown)).astype(np.int64)
    share = round(_UNIT * EVERYWHERE)
    return detail * (_UNIT - share) // total + even * share // int(even.sum())


def choose_tiles(detail: np.ndarray, count: int, shape: float = 1.0) -> list[Tile]:
    """The tiles that show a ``detail_map`` best, from yaw 0 to the right; fewer than ``count`` where all is shown.

    The value of a set of tiles is the sum over cells of detail times the sharpness of the sharpest tile that shows the
    cell: the square root of its focal length relative to that of the widest candidate, 0 where none shows it. Tiles are
    added one by one, each the candidate with the largest gain. Then each tile, in that order, is exchanged for the
    candidate with the largest gain beside the others, where that gains more and the value does not fall. Of equal
    candidates the widest is taken, then the one nearest to the horizon, the upper one, and the first one from a column
    that rotates with the map.

    Args:
        detail: of ``detail_map``.
        count: of tiles.
        shape: height of a view divided by its width.

    Source: Nemhauser, Wolsey, Fisher, "An analysis of approximations for maximizing submodular set functions I", 1978:
    the value is monotone and submodular, so that greedy sets reach at least 1 - 1/e of the best. A gain here is up to
    ``_EDGE`` lower for what lies in a candidate's corners, which centres it, and makes that at least 1 - 1/e^(1 - 1/8),
    or 58 % (Goundan, Schulz, "Revisiting the greedy approach to submodular set function maximization", 2007).
    """
    origin = _origin(detail)
    choice = _Choice(np.roll(detail, -origin, axis=1), shape)
    tiles: list[Tile] = []
    while len(tiles) < count:
        gain, tile = choice.best(tiles)
        if gain <= 0:
            break
        tiles.append(tile)
    for at, tile in enumerate(tiles):
        others = [*tiles[:at], *tiles[at + 1 :]]
        gain, other = choice.best(others)
        is_more = gain > choice.gain(tile, others, is_centred=True)
        if is_more and choice.gain(other, others) >= choice.gain(tile, others):
            tiles[at] = other
    turned = [(fov, pitch, (column + origin) % COLUMNS) for fov, pitch, column in tiles]
    return sorted(turned, key=lambda tile: (yaw_rad(tile[2]), -PITCHES_DEG[tile[1]], tile[0]))


class _Choice:
    """What candidates gain beside given tiles, on one map of detail."""

    def __init__(self, detail: np.ndarray, shape: float) -> None:
        self.detail = detail
        self.kernels, self.spectra, self.sharpness = _candidates(shape)

    def best(self, tiles: Sequence[Tile]) -> tuple[int, Tile]:
        """The largest gain, less what lies in corners, and its candidate."""
        lacking = self.sharpness[:, None, None] - self.shown(tiles)  # (fovs, ROWS, COLUMNS)
        missing = self.detail * np.maximum(0, lacking)
        waves = np.fft.rfft(missing, axis=2).transpose(2, 0, 1)[..., None]  # (waves, fovs, ROWS, 1)
        sums = self.spectra @ waves.view(np.float64)  # kernels are symmetric, their spectra real
        # The sums over cells are integers far below 2^53: rounding makes them exact.
        gains = np.rint(np.fft.irfft(sums.view(np.complex128)[..., 0].transpose(1, 2, 0), COLUMNS))
        fov, pitch, column = np.unravel_index(gains.argmax(), gains.shape)  # the first of equal ones
        return int(gains[fov, pitch, column]), (int(fov), int(pitch), int(column))

    def gain(self, tile: Tile, others: Sequence[Tile], *, is_centred: bool = False) -> int:
        """What a tile adds to the value of others; with ``is_centred`` less what lies in its corners."""
        fov, pitch, column = tile
        missing = self.detail * np.maximum(0, self.sharpness[fov] - self.shown(others))
        kernel = np.roll(self.kernels[fov, pitch], column, axis=1)
        return int((missing * (kernel if is_centred else _STEPS * (kernel > 0))).sum())

    def shown(self, tiles: Sequence[Tile]) -> np.ndarray:
        """Sharpness ``(ROWS, COLUMNS)`` with which the cells are shown, 0 where no tile shows them."""
        found = np.zeros((ROWS, COLUMNS), dtype=np.int64)
        for fov, pitch, column in tiles:
            is_shown = np.roll(self.kernels[fov, pitch] > 0, column, axis=1)
            np.maximum(found, is_shown * self.sharpness[fov], out=found)
        return found


def yaw_rad(column: int) -> float:
    """Yaw in [0, 2 pi) of the middle of a column of the map."""
    return ((2 * column + 1 + COLUMNS) % (2 * COLUMNS)) * math.pi / COLUMNS


def v_extent_rad(fov_deg: float, shape: float) -> float:
    """Height of the angle of a view with square pixels."""
    return 2 * math.atan(math.tan(math.radians(fov_deg) / 2) * shape)


@lru_cache(maxsize=4)
def _candidates(shape: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What candidates on the map's first column show: how much a cell counts, its spectrum, and the sharpness.

    Returns:
        ``(fovs, pitches, ROWS, COLUMNS)`` int64, ``(waves, fovs, pitches, ROWS)`` float64 and ``(fovs)`` int64.
    """
    pitch = (0.5 - (np.arange(ROWS) + 0.5) / ROWS)[:, None] * math.pi
    turn = np.arange(COLUMNS) * 2 * math.pi / COLUMNS
    # Directions as seen from the first column's yaw: to the right, up, ahead.
    right, up, ahead = np.cos(pitch) * np.sin(turn), np.sin(pitch) + 0 * turn, np.cos(pitch) * np.cos(turn)
    kernels = np.zeros((len(FOVS_DEG), len(PITCHES_DEG), ROWS, COLUMNS), dtype=np.int64)
    for row, fov in enumerate(FOVS_DEG):
        wide, high = math.tan(math.radians(fov) / 2), math.tan(v_extent_rad(fov, shape) / 2)
        for column, look in enumerate(map(math.radians, PITCHES_DEG)):
            depth = ahead * math.cos(look) + up * math.sin(look)
            x = right / np.maximum(depth, 1e-9) / wide
            y = (up * math.cos(look) - ahead * math.sin(look)) / np.maximum(depth, 1e-9) / high
            # Rounding must not decide about a cell on an edge: its mirror image would be decided in another way.
            is_shown = (depth > 1e-6) & (np.abs(x) <= 1 + 1e-9) & (np.abs(y) <= 1 + 1e-9)
            kernels[row, column] = np.rint(_STEPS * (1 - _EDGE * np.minimum(x**2 + y**2, 2) / 2)) * is_shown
    spectra = np.ascontiguousarray(np.fft.rfft(kernels, axis=3).real.transpose(3, 0, 1, 2))
    focal = 1 / np.tan(np.radians(FOVS_DEG) / 2)
    return kernels, spectra, np.rint(_STEPS * np.sqrt(focal / focal[0])).astype(np.int64)


def _origin(detail: np.ndarray) -> int:
    """A column of a map that rotates with it: the one from which its columns, as numbers, come first in order."""
    numbers = (detail * (2 * np.arange(ROWS)[:, None] + 1)).sum(axis=0).tolist()
    return min(range(COLUMNS), key=lambda column: numbers[column:] + numbers[:column])


def _squares(colours: np.ndarray, axis: int) -> np.ndarray:
    """Squared differences ``(h, w)`` of pixels ``(3, h, w)`` with the next ones along an axis, over all colours."""
    difference = np.roll(colours, -1, axis=axis)
    difference -= colours
    difference *= difference
    return difference.sum(axis=0, dtype=np.int32)


def _inner(is_shown: np.ndarray) -> np.ndarray:
    """Which differences, of each line with the next, lie more than a pixel inside: the edge is averaged over two."""
    near = is_shown & np.roll(is_shown, 1) & np.roll(is_shown, -1)
    return near & np.roll(near, -1)


def _cells(values: np.ndarray) -> np.ndarray:
    """Sums ``(ROWS, COLUMNS)`` over the pixels of each cell."""
    return values.reshape(ROWS, _FINE, COLUMNS, _FINE).sum(axis=(1, 3), dtype=np.int64)
