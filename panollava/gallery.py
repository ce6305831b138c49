"""python -m panollava.gallery: draws the views that a crop cuts from a panorama, and their borders on it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from panollava.config.entrypoint import entrypoint
from panollava.logs import LOG, configure_console

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
    """Draws one gallery."""
    from panollava.crop.crop import Crop  # here, so that --help needs no picture libraries
    from panollava.data.fetch import FetchOptions
    from panollava.evaluation.drawing import encode_png
    from panollava.evaluation.gallery import gallery_picture
    from panollava.run.image_commands import checked_out, named_panorama, read_twice, world_scene, write_out
    from panollava.run.sections import read_config

    configure_console()
    options, sections = read_config(cfg, GalleryOptions, check=_crop_problems)
    spec = sections["crop"]
    image = None if options.image is None else named_panorama(options.image, FetchOptions(**sections["fetch"]))
    out = checked_out(Path(options.out).expanduser(), image, "gallery.png")
    size = spec.get("view_size") or VIEW_SIZE
    crop = Crop.from_spec(spec, view_size=(size, size))
    if image is None:
        panorama = seen = world_scene("train").panorama(0)
    else:
        panorama, seen = read_twice(image, crop)
    title = f"{spec['type']}: {crop.summary}"
    write_out(out, encode_png(gallery_picture(panorama, crop.views(seen), crop.cameras, title=title)))
    LOG.info("%s of %s", title, options.image or "a panorama of the built-in world")
    LOG.info("Picture: %s", out)


def _crop_problems(values: dict[str, Any]) -> list[str]:
    from panollava.run.sections import check_crop

    problems = check_crop(values["crop"])
    if values["crop"].get("panorama_fov_deg") is not None and values["image"] is None:
        problems.append("crop.panorama_fov_deg needs image=<file>: the panorama of the built-in world is a whole one.")
    return problems


if __name__ == "__main__":
    main()
