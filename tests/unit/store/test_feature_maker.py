"""Batches are completed with the same bits whoever made them, and nobody makes what another has or makes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from support.toy_data import SHAPE
from torch import Tensor

from panollava.batch import Batch
from panollava.store.feature_maker import FeatureMaker, PartBatch
from panollava.store.features import FeatureStore

Opened = Callable[..., FeatureStore]


class Encoder:
    """Knows how often it saw what; features are ten times the value of a view's pixels."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls: Counter[int] = Counter()
        self.seconds = seconds

    def __call__(self, views: Tensor) -> Tensor:
        self.calls[int(views[0, 0, 0, 0])] += 1
        time.sleep(self.seconds)
        return views[:, 0, 0, :1, None].expand(SHAPE).to(torch.bfloat16) * 10


def part(store: FeatureStore, values: list[int]) -> PartBatch:
    """What a worker makes of pictures that are their value."""
    digests = [f"{value:064x}" for value in values]
    found = [store.get(digest) for digest in digests]
    known = [one for one in found if one is not None]
    views = [torch.full((2, 3, 8, 8), v, dtype=torch.uint8) for v, f in zip(values, found, strict=True) if f is None]
    return PartBatch(
        batch=Batch([str(v) for v in values], None, torch.zeros(len(values), 2, 11), torch.ones(len(values), 2).bool()),
        pictures=digests,
        known=[one is not None for one in found],
        features=torch.stack(known) if known else None,
        views=torch.stack(views) if views else None,
    )


def values_of(batch: Batch) -> list[float]:
    assert batch.vision_features is not None
    assert batch.pixel_values is None
    assert batch.vision_features.shape == (len(batch), *SHAPE)
    return (batch.vision_features[:, 0, 0, 0] / 10).tolist()


@pytest.mark.parametrize("values", [[1, 2, 3], [3, 1], [2, 5, 2, 1, 5], [1, 1]])
def test_each_sample_gets_the_features_of_its_picture(opened: Opened, values: list[int]) -> None:
    """Known, new, and twice in a batch."""
    encoder = Encoder()
    maker = FeatureMaker(opened(), encoder, torch.device("cpu"))
    maker.complete(part(maker.store, [1, 2]))
    assert values_of(maker.complete(part(maker.store, values))) == values
    assert set(encoder.calls.values()) == {1}
    assert maker.made == len({1, 2, *values})


def test_a_picture_that_came_into_the_store_since_the_worker_looked_is_read(opened: Opened) -> None:
    encoder = Encoder()
    one, other = (FeatureMaker(opened(), encoder, torch.device("cpu")) for _ in range(2))
    prefetched = part(other.store, [1, 2])
    one.complete(part(one.store, [2, 3]))
    assert values_of(other.complete(prefetched)) == [1, 2]
    assert encoder.calls == {1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize("same_order", [True, False])
def test_four_jobs_at_once_encode_each_panorama_once(opened: Opened, same_order: bool) -> None:
    encoder = Encoder(seconds=0.002)

    def job(number: int) -> list[float]:
        maker = FeatureMaker(opened(), encoder, torch.device("cpu"))
        order = np.random.default_rng(0 if same_order else number).permutation(24)
        found: list[float] = []
        for start in range(0, 24, 4):
            values = order[start : start + 4].tolist()
            found += values_of(maker.complete(part(maker.store, values)))
            assert found[start:] == values
        return sorted(found)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(job, range(4))) == [list(range(24))] * 4
    assert encoder.calls == dict.fromkeys(range(24), 1)


def test_without_room_everything_is_made_in_the_same_way(opened: Opened) -> None:
    encoder = Encoder()
    maker = FeatureMaker(opened(max_gib=1e-9), encoder, torch.device("cpu"))
    for _ in range(2):
        assert values_of(maker.complete(part(maker.store, [1, 2, 1]))) == [1, 2, 1]
    assert encoder.calls == {1: 2, 2: 2}


def test_features_of_another_shape_than_the_stores_are_refused(opened: Opened) -> None:
    maker = FeatureMaker(opened(), lambda views: torch.zeros(2, 3, 5), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"features \(2, 3, 5\).*its store is for \(2, 3, 4\)"):
        maker.complete(part(maker.store, [1]))
