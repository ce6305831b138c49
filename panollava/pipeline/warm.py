"""Fills a feature store ahead of training; several processes that do so at once share the work."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tqdm import tqdm

from panollava.crop.crop import Crop
from panollava.crop.device import check_workers
from panollava.data.dataset import PanoDataset
from panollava.data.loader import picture_batches
from panollava.data.records import Source
from panollava.logs import LOG
from panollava.store.making import FeatureMaker

BATCH = 4
"""Panoramas that are handed over at once; each is encoded on its own."""


def warm(sources: Sequence[Source], crop: Crop, features: FeatureMaker, *, num_workers: int) -> None:
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
