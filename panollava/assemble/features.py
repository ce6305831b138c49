"""Opens the feature store of a frozen encoder and a crop, and says what is coming."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from panollava.crop.crop import Crop
from panollava.data.records import Source
from panollava.logs import LOG, in_words
from panollava.model.encoding import Encoding, device_kind
from panollava.model.hub import SHIPPED
from panollava.model.vision import VisionTower
from panollava.run_folder import short_name
from panollava.store.catalogue import GIB, open_store
from panollava.store.code import code_digest
from panollava.store.making import FeatureMaker
from panollava.store.options import StoreOptions
from panollava.store.quota import room

_SEEING = ("panollava.crop", "panollava.model.encoding", "panollava.model.families", "panollava.model.vision")
"""The code between a picture file and its features."""


def open_features(options: StoreOptions, tower: VisionTower, crop: Crop, *, quiet: bool = False) -> FeatureMaker | None:
    """Makes and keeps features of a tower with its weights as they are now, on the device where it is now.

    Args:
        options: ``store.*``.
        tower: the encoder.
        crop: cuts its views.
        quiet: whoever calls says itself what is coming.

    Returns:
        None where the store is switched off, here or by an encoder that trains; the log says so.
    """
    if not options.enabled:
        return None
    encoding = Encoding(tower)
    cameras, (height, width) = len(crop.camera_rows), tower.grid
    try:
        store = open_store(
            options,
            _name(tower, crop),
            {"encoder": encoding.signature(), "crop": _signature(crop), "code": code_digest(*_SEEING)},
            shape=(cameras, height * width, tower.width),
            dtype=tower.dtype,
        )
    except OSError as error:
        LOG.warning("Features are not kept: store.dir=%s cannot be used (%s).", options.dir, error)
        return None
    if not quiet:
        LOG.info("Features are kept in %s, which holds %d panoramas.", store.folder, store.count())
    return FeatureMaker(store, encoding, tower.mean.device)


def forecast(options: StoreOptions, tower: VisionTower, crop: Crop, sources: Iterable[Source]) -> str:
    """What the features of all panoramas of some splits will take, in a sentence.

    Args:
        options: ``store.*``.
        tower: the encoder.
        crop: cuts its views.
        sources: the splits.
    """
    pictures = {source.picture(index) for source in sources for index in range(len(source))}
    height, width = tower.grid
    each = len(crop.camera_rows) * height * width * tower.width * tower.dtype.itemsize
    whole, limit = len(pictures) * each, options.max_gib * GIB
    told = (
        f"Feature store: {len(pictures):,} panoramas of {in_words(each)} ({len(crop.camera_rows)} views x "
        f"{height * width} x {tower.width} in {str(tower.dtype).removeprefix('torch.')}) take up to "
        f"{in_words(whole)} in {Path(options.dir) / 'features'}"
    )
    spare = room(Path(options.dir).expanduser())
    if whole > spare:
        told += f", whose disk has {in_words(spare)} to spare"
    if whole <= limit:
        return f"{told}; store.max_gib={options.max_gib:g}."
    return (
        f"{told}, more than store.max_gib={options.max_gib:g}: features of about {int(limit // each):,} of them are "
        "kept, the others are made each time."
    )


def _signature(crop: Crop) -> dict[str, Any]:
    """What the views depend on; where a GPU renders them, its kind as well."""
    is_cpu = crop.device == "cpu"
    return {**crop.signature, "device": "cpu" if is_cpu else device_kind(torch.device(crop.device))}


def _name(tower: VisionTower, crop: Crop) -> str:
    """What a store is called, for people: the encoder and the crop."""
    source = str(tower.config.name_or_path or tower.config.model_type)
    name = next((name for name, folder in SHIPPED.items() if str(folder) == source), source)
    strategy = re.sub(r"(?<!^)(?=[A-Z])", "-", type(crop.strategy).__name__.removesuffix("Crop")).lower()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{short_name(name)}_{strategy}")
