"""python -m panollava.gallery: draws the views that a crop cuts from a panorama, and their borders on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from panollava.config.check import check_section, refuse
from panollava.config.entrypoint import entrypoint
from panollava.crop.crop import Crop
from panollava.data.fetch import FetchOptions
from panollava.evaluation.gallery import gallery_picture
from panollava.logs import LOG, configure_console
from panollava.run.image_commands import (
    check_fetch,
    checked_out,
    named_panorama,
    read_twice,
    world_scene,
    write_picture,
)
from panollava.run.sections import check_crop

VIEW_SIZE = 256
"""Side of a view in pixels where ``crop.view_size`` is null: no encoder is opened."""


@dataclass(frozen=True)
class GalleryOptions:
    """Plain keys of ``conf/gallery.yaml``; see there."""

    image: str | None
    out: str
    allow: str | list[str]


@entrypoint("gallery")
def main(cfg: DictConfig) -> None:
    """Draws one gallery.

    Args:
        cfg: composed from ``conf/gallery.yaml`` and the command line.
    """
    configure_console()
    options, fetch, spec = _checked(cfg)
    image = None if options.image is None else named_panorama(options.image, fetch)
    out = checked_out(Path(options.out).expanduser(), image, "gallery.png")
    size = spec.get("view_size") or VIEW_SIZE
    crop = Crop.from_spec(spec, view_size=(size, size))
    panorama, seen = _panoramas(image, crop)
    title = f"{spec['type']}: {crop.summary}"
    write_picture(out, gallery_picture(panorama, crop.views(seen), crop.cameras, title=title))
    LOG.info("%s of %s", title, options.image or "a panorama of the built-in world")
    LOG.info("Picture: %s", out)


def _checked(cfg: DictConfig) -> tuple[GalleryOptions, FetchOptions, dict[str, Any]]:
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    spec, fetch = values.pop("crop"), values.pop("fetch")
    problems = check_section(values, GalleryOptions, "") + check_fetch(fetch) + check_crop(spec)
    if spec.get("panorama_fov_deg") is not None and values["image"] is None:
        problems.append("crop.panorama_fov_deg needs image=<file>: the panorama of the built-in world is a whole one.")
    refuse(problems)
    return GalleryOptions(**values), FetchOptions(**fetch), spec


def _panoramas(image: Path | None, crop: Crop) -> tuple[np.ndarray, np.ndarray]:
    """The panorama at the resolution of the picture, and as the crop reads it for its views."""
    if image is None:
        panorama = world_scene("train").panorama(0)
        return panorama, panorama
    return read_twice(image, crop)


if __name__ == "__main__":
    main()
