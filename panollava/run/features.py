"""Opens a feature store for an encoder and a crop, and estimates its size."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from panollava.component import snake
from panollava.crop.crop import Crop
from panollava.crop.maps import is_strip
from panollava.data.source import DataSource
from panollava.logs import LOG, in_words, log_once
from panollava.model.hub import SHIPPED
from panollava.model.vision import Encoding, VisionTower, device_kind
from panollava.run_folder import short_name
from panollava.store.catalogue import GIB, StoreOptions, open_store
from panollava.store.feature_maker import FeatureMaker
from panollava.store.identity import class_digest, code_digest
from panollava.store.quota import room

ENCODED_BY = (
    *(Crop.read, Crop.whole, Crop.views),
    *(Encoding.__call__, VisionTower.__init__, VisionTower.train, VisionTower.forward),
)
"""The code that makes features of a picture file."""


def open_features(
    options: StoreOptions, tower: VisionTower, crop: Crop, *, announce: bool = True
) -> FeatureMaker | None:
    """Makes and stores features of a tower with its present weights, on its present device.

    Args:
        announce: log where they are kept.

    Returns:
        None if the store is disabled, or cannot be used, which is logged.
    """
    if not options.enabled:
        return None
    encoding = Encoding(tower)
    cameras, (height, width) = len(crop.camera_rows), tower.grid
    try:
        store = open_store(
            options,
            _name(tower, crop),
            {"encoder": encoding.signature(), "crop": _signature(crop), "code": code_digest(*ENCODED_BY)},
            shape=(cameras, height * width, tower.width),
            dtype=tower.dtype,
            camera_shape=tuple(crop.camera_rows.shape) if crop.is_adaptive else None,
        )
    except OSError as error:
        LOG.warning("Features are not kept: store.dir=%s cannot be used (%s).", options.dir, error)
        return None
    if announce:
        log_once(f"Features are kept in {store.folder}, which holds {store.count()} panoramas.")
    return FeatureMaker(store, encoding, tower.mean.device)


def forecast(options: StoreOptions, tower: VisionTower, crop: Crop, sources: Iterable[DataSource]) -> str:
    """A sentence about the disk space that the features of all panoramas of some splits need."""
    pictures = {source.picture(index) for source in sources for index in range(len(source))}
    height, width = tower.grid
    each = len(crop.camera_rows) * height * width * tower.width * tower.dtype.itemsize
    whole, limit = len(pictures) * each, options.max_gib * GIB
    line = (
        f"Feature store: {len(pictures):,} panoramas of {in_words(each)} ({len(crop.camera_rows)} views x "
        f"{height * width} x {tower.width} in {str(tower.dtype).removeprefix('torch.')}) take up to "
        f"{in_words(whole)} in {Path(options.dir) / 'features'}"
    )
    spare = room(Path(options.dir).expanduser())
    if whole > spare:
        line += f", whose disk has {in_words(spare)} to spare"
    if whole <= limit:
        return f"{line}; store.max_gib={options.max_gib:g}."
    return (
        f"{line}, more than store.max_gib={options.max_gib:g}: features of about {int(limit // each):,} of them are "
        "kept, the others are made each time."
    )


def _signature(crop: Crop) -> dict[str, Any]:
    """What the views depend on; if a GPU renders them, its model as well, and the code that chooses them."""
    is_cpu = crop.device == "cpu"
    kind: Any = type(crop.strategy)
    choice = {"choice_version": class_digest(kind, "choose", "finest")} if crop.is_adaptive else {}
    # Other pixels than in version 0.2, whose features of all other views are still valid.
    strips = {"strips": "sides halved apart"} if any(is_strip(one, crop.view_size) for one in crop.cameras) else {}
    return {**crop.signature, "device": "cpu" if is_cpu else device_kind(torch.device(crop.device)), **choice, **strips}


def _name(tower: VisionTower, crop: Crop) -> str:
    """The readable part of a store's name: encoder and crop."""
    source = str(tower.config.name_or_path or tower.config.model_type)
    name = next((name for name, folder in SHIPPED.items() if str(folder) == source), source)
    strategy = snake(type(crop.strategy).__name__.removesuffix("Crop")).replace("_", "-")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{short_name(name)}_{strategy}")
