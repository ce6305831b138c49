"""python -m panollava.gallery: draws the views that a crop cuts from a panorama, their borders, and its boxes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval
from omegaconf import DictConfig

from panollava.config.entrypoint import entrypoint
from panollava.logs import LOG

if TYPE_CHECKING:
    import numpy as np

    from panollava.crop.crop import Crop

VIEW_SIZE = 256
"""Side of a view in pixels where ``crop.view_size`` is null: no encoder is opened."""


@dataclass(frozen=True)
class GalleryOptions:
    """Plain keys of ``conf/gallery.yaml``; see there."""

    image: str | None
    split: Literal["train", "val", "test"]
    index: Annotated[int, Interval(ge=0)]
    places: bool
    out: str
    allow: str | list[str]


@entrypoint("gallery", positional=("image",))
def main(cfg: DictConfig) -> None:
    """Draws one gallery."""
    from panollava.crop.crop import Crop  # here, so that --help needs no picture libraries
    from panollava.data.fetch import FetchOptions
    from panollava.evaluation.drawing import encode_png
    from panollava.evaluation.gallery import gallery_picture
    from panollava.run.image_commands import checked_out, named_panorama, read_twice, write_out
    from panollava.run.sections import read_config

    options, sections = read_config(cfg, GalleryOptions, check=_problems)
    spec = sections["crop"]
    image = None if options.image is None else named_panorama(options.image, FetchOptions(**sections["fetch"]))
    out = checked_out(Path(options.out).expanduser(), [] if image is None else [image], "gallery.png")
    size = spec.get("view_size") or VIEW_SIZE
    crop = Crop.from_spec(spec, view_size=(size, size))
    if image is None:
        panorama, seen, what = _of_data(sections["data"], options, crop)
    else:
        (panorama, seen), what = read_twice(image, crop), str(options.image)
    title = f"{spec['type']}: {crop.summary}"
    write_out(out, encode_png(gallery_picture(panorama, crop.views(seen), crop.cameras_of(seen), title=title)))
    LOG.info("%s of %s", title, what)
    LOG.info("Picture: %s", out)


def _of_data(data: dict[str, Any], options: GalleryOptions, crop: "Crop") -> "tuple[np.ndarray, np.ndarray, str]":
    """A panorama of a data set at a picture's resolution, perhaps with its places; the one to cut views from; its name.

    Raises a ValueError for an index that the split does not have, and where ``places`` needs a data set with boxes.
    """
    from panollava.data.source import PlacesSource
    from panollava.evaluation.gallery import with_boxes, with_masks
    from panollava.run.image_commands import PANORAMA_SIZE, read_twice
    from panollava.run.sources import open_source

    is_world = data["type"] == "world"
    source = open_source({**data, "height": PANORAMA_SIZE[0]} if is_world else data, options.split, crop)
    if options.index >= len(source):
        raise ValueError(f"index={options.index}: the split {options.split} has the records 0 to {len(source) - 1}.")
    picture = source.picture(options.index)
    panorama, seen = read_twice(picture, crop) if isinstance(picture, Path) else (source.panorama(options.index),) * 2
    if options.places:
        if not isinstance(source, PlacesSource):
            raise ValueError(f"places=true: data={data['name']} has no boxes. Choose data=boxes or data=world.")
        found = source.places(options.index)
        panorama = panorama if found.pixels is None else with_masks(panorama, found.pixels, source.class_names)
        panorama = with_boxes(panorama, found.boxes, source.class_names)
    name = "a panorama of the built-in world" if is_world else str(picture)
    return panorama, seen, name


def _problems(values: dict[str, Any]) -> list[str]:
    from panollava.run.sections import check_crop
    from panollava.run.sources import check_data

    problems = check_crop(values["crop"]) + check_data(values["data"])
    is_world = values["image"] is None and values["data"].get("type") == "world"
    if values["crop"].get("panorama_fov_deg") is not None and is_world:
        problems.append("crop.panorama_fov_deg needs image=<file>: the panorama of the built-in world is a whole one.")
    if values["places"] is True and values["image"] is not None:
        problems.append("places=true draws boxes of a data set, and image=<file> has none. Leave one of them out.")
    return problems


if __name__ == "__main__":
    main()
