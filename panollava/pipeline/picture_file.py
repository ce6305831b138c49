"""What commands that draw one picture share: the panorama they draw, and the file they write."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from panollava.checkpoint import write_file
from panollava.crop.crop import Crop
from panollava.crop.grid import whole_view
from panollava.crop.read import read_panorama
from panollava.data.world import WorldSource
from panollava.evaluation.drawing import encode_png

PANORAMA_SIZE = (1024, 2048)
"""Rows and columns that do for the panorama in a picture, and the size of one of the built-in world."""


def checked_out(out: Path, image: Path | None, example: str) -> Path:
    """The file to write a picture of ``image`` to, before any work is done for it.

    Args:
        out: as the user wrote it.
        image: the panorama that must not be written over.
        example: a name for it to show in messages.

    Raises:
        ValueError: it is no PNG, a folder, or the panorama itself.
    """
    if out.suffix.lower() != ".png":
        raise ValueError(f"out={out}: the picture is a PNG file. Give it a name that ends in .png.")
    if out.is_dir():
        raise ValueError(f"out={out} is a folder. Name a file in it, such as out={out / example}.")
    if image is not None and out.exists() and image.exists() and out.samefile(image):
        raise ValueError(f"out={out} is the panorama itself, which would be lost. Choose another name.")
    return out


def read_twice(image: Path, crop: Crop) -> tuple[np.ndarray, np.ndarray]:
    """A panorama file as fine as a picture shows it, and as the crop reads it for its views."""
    whole = [whole_view("resize", PANORAMA_SIZE)]
    return read_panorama(image, whole, PANORAMA_SIZE, crop.panorama_fov_deg), crop.read(image)


def world_scene(split: Literal["train", "test"]) -> WorldSource:
    """One scene of the built-in world, as fine as a picture shows it."""
    return WorldSource(split=split, scenes=1, height=PANORAMA_SIZE[0])


def write_picture(out: Path, picture: np.ndarray) -> None:
    """Writes a picture (H, W, 3) uint8 RGB as PNG.

    Raises:
        OSError: naming the key, if the file cannot be written.
    """
    try:
        write_file(out, encode_png(picture))
    except OSError as error:
        raise OSError(f"out={out} cannot be written ({error.strerror}). Choose another folder.") from error
