"""The methods that the benchmark of views compares: from a JPEG file to eight tiles and the whole panorama.

All views are RGB, uint8, ``SIDE`` pixels square: the whole panorama letterboxed first, then tiles of 90 degrees
every 45 degrees, beginning ahead.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import torch
from equilib import equi2pers
from PIL import Image

from panollava.crop.crop import Crop
from panollava.crop.maps import ViewGroup, fixed_maps, float_maps, row_span
from panollava.crop.render import bordered, render_views
from panollava.crop.strategies import AnyresE2pCrop

SIDE, TILE_SIDE = 256, 672
"""Pixels of a view, and of the tiles that py360convert renders before they are shrunk to it."""

REFERENCE_SAMPLES = 8
"""Samples of a pixel of the reference, each way."""

VIEW_SIZE = (SIDE, SIDE)
CROP = Crop(AnyresE2pCrop(fov_deg=90, overlap=0.5), view_size=VIEW_SIZE)
CAMERAS = CROP.cameras
YAWS_DEG = [math.degrees(camera.yaw_rad) for camera in CAMERAS[1:]]
CONTENT = slice(SIDE // 4, SIDE - SIDE // 4)
"""Rows of the letterboxed panorama."""

Way = Callable[[Path], list[np.ndarray]]
Shrink = Callable[[np.ndarray], np.ndarray]


def ours(path: Path) -> list[np.ndarray]:
    return list(CROP.views(CROP.read(path)).permute(0, 2, 3, 1).numpy())


def decode_alone(path: Path, divisor: int) -> np.ndarray:
    """The file decoded by OpenCV at a fraction of its size: what no way that decodes so can beat."""
    flags = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
    return cv2.imdecode(np.fromfile(path, dtype=np.uint8), flags[divisor])


def load_py360convert(with_opencv: bool) -> ModuleType:
    """py360convert with its own requirements (SciPy), or with OpenCV, which it uses where it can be imported.

    Each is a module of its own, so that both keep their maps between pictures.
    """
    names = [name for name in sys.modules if name.partition(".")[0] == "py360convert"]
    for name in names:
        del sys.modules[name]
    opencv = sys.modules["cv2"]
    try:
        if not with_opencv:
            sys.modules["cv2"] = None  # type: ignore[assignment]
        return importlib.import_module("py360convert")
    finally:
        sys.modules["cv2"] = opencv


def by_bicubic(tile: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(tile).resize(VIEW_SIZE, Image.Resampling.BICUBIC))


def by_mean(tile: np.ndarray) -> np.ndarray:
    return cv2.resize(tile, VIEW_SIZE, interpolation=cv2.INTER_AREA)


def pillow_py360convert(module: ModuleType, shrink: Shrink = by_bicubic) -> Way:
    """Pillow decodes the whole file, py360convert cuts tiles of 672 pixels, which are shrunk to 256."""

    def way(path: Path) -> list[np.ndarray]:
        with Image.open(path) as picture:
            panorama = np.asarray(picture.convert("RGB"))
        whole = Image.fromarray(panorama).resize((SIDE, SIDE // 2), Image.Resampling.BICUBIC)
        turns = [(yaw + 180) % 360 - 180 for yaw in YAWS_DEG]
        tiles = [module.e2p(panorama, 90, turn, 0, (TILE_SIDE, TILE_SIDE)) for turn in turns]
        return [letterboxed(np.asarray(whole)), *(shrink(tile) for tile in tiles)]

    return way


def opencv_equilib(path: Path) -> list[np.ndarray]:
    """OpenCV decodes the whole file, pyequilib cuts the tiles."""
    panorama = _decoded(path)
    return [_whole(panorama), *equilib_tiles(panorama)]


def opencv_remap(path: Path) -> list[np.ndarray]:
    """OpenCV decodes the whole file, and cached maps take one sample a pixel."""
    panorama = _decoded(path)
    return [_whole(panorama), *remap_tiles(panorama)]


def our_tiles(panorama: np.ndarray) -> list[np.ndarray]:
    return list(render_views(panorama, CAMERAS[1:], VIEW_SIZE))


def remap_tiles(panorama: np.ndarray) -> list[np.ndarray]:
    height, width = panorama.shape[:2]
    plain = ViewGroup(tuple(range(1, len(CAMERAS))), (height, width), (height, width), 1, (0, 0, SIDE, SIDE))
    padded = bordered(panorama, plain.extent, row_span(plain, CAMERAS, VIEW_SIZE))
    return [cv2.remap(padded, *maps, cv2.INTER_LINEAR) for maps in fixed_maps(plain, CAMERAS, VIEW_SIZE)]


def equilib_tiles(panorama: np.ndarray, side: int = SIDE) -> list[np.ndarray]:
    pixels = np.moveaxis(panorama, 2, 0)
    return [np.moveaxis(equi2pers(pixels, **_turn(yaw, side)), 0, 2) for yaw in YAWS_DEG]


def equilib_tiles_of_means(panorama: np.ndarray) -> list[np.ndarray]:
    """As many samples a pixel as ours."""
    return [by_mean(np.ascontiguousarray(tile)) for tile in equilib_tiles(panorama, 2 * SIDE)]


def equilib_torch_tiles(panorama: np.ndarray) -> list[np.ndarray]:
    """The fastest of pyequilib's options on a CPU: a float tensor, whose values are not clipped."""
    pixels = torch.from_numpy(panorama).permute(2, 0, 1).float()
    views = [equi2pers(pixels, clip_output=False, **_turn(yaw, SIDE)) for yaw in YAWS_DEG]
    return [view.round().to(torch.uint8).permute(1, 2, 0).numpy() for view in views]


def reference(path: Path) -> list[np.ndarray]:
    """Every pixel the mean of 8 x 8 samples of the whole picture: float64, not rounded."""
    picture = _decoded(path)
    size, views = picture.shape[:2], []
    panorama = bordered(picture.astype(np.float32), size)
    for view in range(len(CAMERAS)):
        dense = ViewGroup(
            (view,),
            size,
            size,
            REFERENCE_SAMPLES,
            (CONTENT.start, 0, CONTENT.stop, SIDE) if view == 0 else (0, 0, SIDE, SIDE),
        )
        columns, rows = float_maps(dense, CAMERAS, VIEW_SIZE)
        samples = cv2.remap(panorama, columns[0], rows[0], cv2.INTER_LINEAR).astype(np.float64)
        parts = samples.reshape(-1, REFERENCE_SAMPLES, SIDE, REFERENCE_SAMPLES, 3)
        views.append(parts.mean((1, 3)))
    return views


def letterboxed(content: np.ndarray) -> np.ndarray:
    view = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    view[CONTENT] = content
    return view


def _whole(panorama: np.ndarray) -> np.ndarray:
    return letterboxed(cv2.resize(panorama, (SIDE, SIDE // 2), interpolation=cv2.INTER_AREA))


def _decoded(path: Path) -> np.ndarray:
    return cv2.cvtColor(decode_alone(path, 1), cv2.COLOR_BGR2RGB)


def _turn(yaw_deg: float, side: int) -> dict[str, object]:
    turn = {"yaw": math.radians(yaw_deg), "pitch": 0.0, "roll": 0.0}
    return {"rots": turn, "height": side, "width": side, "fov_x": 90.0, "z_down": True}
