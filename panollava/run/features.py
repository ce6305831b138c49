"""Fills a feature store ahead of training; several processes that do so at once share the work."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from panollava.crop.crop import Crop
from panollava.crop.render import check_workers
from panollava.data.dataset import PanoDataset
from panollava.data.loader import picture_batches
from panollava.data.source import DataSource
from panollava.logs import LOG, in_words
from panollava.model.hub import SHIPPED
from panollava.model.vision import Encoding, VisionTower, device_kind
from panollava.run_folder import short_name
from panollava.store.catalogue import GIB, StoreOptions, open_store
from panollava.store.feature_maker import FeatureMaker
from panollava.store.identity import code_digest
from panollava.store.quota import room

ENCODED_BY = (
    *(Crop.read, Crop.whole, Crop.views),
    *(Encoding.__call__, VisionTower.__init__, VisionTower.train, VisionTower.forward),
)
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
            {"encoder": encoding.signature(), "crop": _signature(crop), "code": code_digest(*ENCODED_BY)},
            shape=(cameras, height * width, tower.width),
            dtype=tower.dtype,
        )
    except OSError as error:
        LOG.warning("Features are not kept: store.dir=%s cannot be used (%s).", options.dir, error)
        return None
    if not quiet:
        LOG.info("Features are kept in %s, which holds %d panoramas.", store.folder, store.count())
    return FeatureMaker(store, encoding, tower.mean.device)


def forecast(options: StoreOptions, tower: VisionTower, crop: Crop, sources: Iterable[DataSource]) -> str:
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


BATCH = 4
"""Panoramas that are handed over at once; each is encoded on its own."""


def warm(sources: Sequence[DataSource], crop: Crop, features: FeatureMaker, *, num_workers: int) -> None:
    """Makes the features of every panorama of some splits that has none yet.

    Args:
        sources: the splits.
        crop: cuts the views.
        features: makes and keeps them.
        num_workers: processes that read and cut panoramas.

    Raises:
        ValueError: the store is full, and encoding would be in vain.
    """
    check_workers(crop.device, num_workers)
    started = time.perf_counter()
    for source in sources:
        first = {source.picture(index): index for index in reversed(range(len(source)))}
        places = sorted(first.values())
        dataset = PanoDataset(source, crop, store=features.store)
        made = features.made
        with tqdm(total=len(places), desc=source.name, unit="panorama", disable=None) as bar:
            for batch in picture_batches(dataset, places, BATCH, num_workers, features.complete):
                bar.update(len(batch))
                if features.store.is_full and features.made > made:
                    raise ValueError(
                        f"{features.store.folder} holds {features.store.count():,} panoramas, and nothing more can be "
                        "kept, as told above. Make room or raise store.max_gib, and start the same command again."
                    )
    LOG.info(
        "%d panoramas encoded in %.1f s, %d were there; %s holds %d.",
        features.made, time.perf_counter() - started, features.read, features.store.folder, features.store.count(),
    )  # fmt: skip
