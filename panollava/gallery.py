"""python -m panollava.gallery: draws the views that a crop cuts from a panorama, and their borders on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from panollava.assemble.sections import check_crop
from panollava.checkpoint import write_file
from panollava.config.check import check_section
from panollava.config.entrypoint import entrypoint
from panollava.crop.crop import Crop
from panollava.crop.grid import whole_view
from panollava.crop.read import read_panorama
from panollava.data.world import WorldSource
from panollava.evaluation.drawing import encode_png
from panollava.evaluation.gallery import gallery_picture
from panollava.logs import LOG, configure_console

VIEW_SIZE = 256
"""Side of a view in pixels where ``crop.view_size`` is null: no encoder is opened that would know better."""

PANORAMA_SIZE = (1024, 2048)
"""Rows and columns that do for the panorama in the picture, and the size of one of the built-in world."""


@dataclass(frozen=True)
class GalleryOptions:
    """Plain keys of ``conf/gallery.yaml``; see there."""

    image: str | None
    out: str


@entrypoint("gallery")
def main(cfg: DictConfig) -> None:
    """Draws one gallery.

    Args:
        cfg: composed from ``conf/gallery.yaml`` and the command line.
    """
    configure_console()
    options, spec = _checked(cfg)
    image = None if options.image is None else Path(options.image).expanduser()
    out = _checked_out(Path(options.out).expanduser(), image)
    size = spec.get("view_size") or VIEW_SIZE
    crop = Crop.from_spec(spec, view_size=(size, size))
    panorama, seen = _panoramas(image, crop)
    title = f"{spec['type']}: {crop.summary}"
    _write(out, encode_png(gallery_picture(panorama, crop.views(seen), crop.cameras, title=title)))
    LOG.info("%s of %s", title, image or "a panorama of the built-in world")
    LOG.info("Picture: %s", out)


def _checked(cfg: DictConfig) -> tuple[GalleryOptions, dict[str, Any]]:
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    spec = values.pop("crop")
    problems = check_section(values, GalleryOptions, "") + check_crop(spec)
    if problems:
        raise ValueError("\n  ".join(["the config is not right:", *problems]))
    return GalleryOptions(**values), spec


def _checked_out(out: Path, image: Path | None) -> Path:
    if out.suffix.lower() != ".png":
        raise ValueError(f"out={out}: the picture is a PNG file. Give it a name that ends in .png.")
    if out.is_dir():
        raise ValueError(f"out={out} is a folder. Name a file in it, such as out={out / 'gallery.png'}.")
    if image is not None and out.exists() and image.exists() and out.samefile(image):
        raise ValueError(f"out={out} is the panorama itself, which would be lost. Choose another name.")
    return out


def _panoramas(image: Path | None, crop: Crop) -> tuple[np.ndarray, np.ndarray]:
    """The panorama as fine as the picture shows it, and as the crop reads it for its views."""
    if image is None:
        panorama = WorldSource(split="train", scenes=1, height=PANORAMA_SIZE[0]).panorama(0)
        return panorama, panorama
    return read_panorama(image, [whole_view("resize", PANORAMA_SIZE)], PANORAMA_SIZE), crop.read(image)


def _write(out: Path, content: bytes) -> None:
    try:
        write_file(out, content)
    except OSError as error:
        raise OSError(f"out={out} cannot be written ({error.strerror}). Choose another folder.") from error


if __name__ == "__main__":
    main()
