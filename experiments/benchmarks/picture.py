"""A generated panorama for the benchmark: soft structure of every size, hard edges and fine patterns."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

SIZE = (3000, 6000)
JPEG_QUALITY = 92


def write_picture(path: Path, seed: int = 0) -> None:
    """Writes a JPEG of ``SIZE`` (H, W) that compresses about as well as a photograph."""
    draw = np.random.default_rng(seed)
    picture = np.full((*SIZE, 3), 128, dtype=np.float32)
    for octave in range(2, 12):
        # Twice as fine and 0.6 times as strong each time; grey for the most part, as in photographs.
        coarse = draw.normal(size=(2**octave, 2 ** (octave + 1), 1)) + 0.3 * draw.normal(
            size=(2**octave, 2 ** (octave + 1), 3)
        )
        picture += 40 * 0.6 ** (octave - 2) * _enlarged(coarse)
    for _ in range(150):
        _draw_block(picture, draw)
    cv2.imwrite(str(path), picture.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def _enlarged(coarse: np.ndarray) -> np.ndarray:
    """Noise brought to ``SIZE``, going on around the seam."""
    columns = coarse.shape[1]
    wrapped = np.concatenate((coarse[:, -2:], coarse, coarse[:, :2]), axis=1).astype(np.float32)
    step = SIZE[1] / columns
    x = (np.arange(SIZE[1], dtype=np.float32) + 0.5) / step + 1.5
    y = (np.arange(SIZE[0], dtype=np.float32) + 0.5) * coarse.shape[0] / SIZE[0] - 0.5
    columns_at, rows_at = np.meshgrid(x, y)
    return cv2.remap(wrapped, columns_at, rows_at, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _draw_block(picture: np.ndarray, draw: np.random.Generator) -> None:
    """A rectangle around the horizon with windows of a few pixels."""
    height, width = draw.integers(60, 700), draw.integers(60, 500)
    top, left = draw.integers(700, 2300 - height // 2), draw.integers(0, SIZE[1] - width)
    block = picture[top : top + height, left : left + width]
    block[:] = draw.uniform(20, 235, size=3)
    pitch = int(draw.integers(6, 60))
    rows, columns = np.indices(block.shape[:2]) % pitch
    block[(rows > 0.4 * pitch) & (columns > 0.4 * pitch)] = draw.uniform(20, 235, size=3)
