"""Samples of a crop that chooses cameras: their own ones with every picture, blank, stored, rotated or labelled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from panollava.crop.cameras import camera_tensor
from panollava.crop.crop import Crop
from panollava.crop.partial import extent_of, rotate_yaw
from panollava.crop.places import PlaceEncoder, turned
from panollava.data.augment import Augment, AugmentOptions
from panollava.data.dataset import PanoDataset, QuestionDataset, Sample
from panollava.data.loader import Collate
from panollava.data.source import Question
from panollava.data.world import WorldSource
from panollava.prompt import Encoded
from panollava.store.catalogue import StoreOptions, open_store
from panollava.store.feature_maker import FeatureMaker, PartBatch
from panollava.store.features import FeatureStore

CROP = Crop.from_spec({"type": "adaptive", "views": 3}, view_size=(8, 8))


@pytest.fixture(scope="module")
def source() -> WorldSource:
    return WorldSource(split="test", scenes=3, height=256)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    rows = tuple(CROP.camera_rows.shape)
    options = StoreOptions(dir=str(tmp_path))
    return open_store(options, "x", {}, shape=(4, 1, 2), dtype=torch.float32, camera_shape=rows)


def words(question: Question) -> Encoded:
    return Encoded([0], [False], cut=0)


def chosen(source: WorldSource, index: int) -> torch.Tensor:
    return camera_tensor(CROP.cameras_of(source.panorama(index)))


def made(store: FeatureStore, samples: list[Sample]) -> list[torch.Tensor]:
    """Features of the samples of a batch, made where they are not stored: the mean of each view, twice."""
    maker = FeatureMaker(
        store, lambda views: views.float().mean((1, 2, 3))[:, None, None].repeat(1, 1, 2), torch.device("cpu")
    )
    part = Collate(padding_side="left")(samples)
    assert isinstance(part, PartBatch)
    batch = maker.complete(part)
    assert batch.vision_features is not None
    return [*batch.vision_features]


def test_samples_have_the_cameras_of_their_picture(source: WorldSource) -> None:
    samples = [PanoDataset(source, CROP)[(0, index)] for index in range(3)]
    for index, sample in enumerate(samples):
        assert torch.equal(sample.cameras, chosen(source, index))
        assert torch.equal(sample.views, CROP.views(source.panorama(index)))
    assert torch.equal(Collate()(samples).cameras, torch.stack([sample.cameras for sample in samples]))


def test_stored_features_come_with_their_cameras(
    source: WorldSource, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = PanoDataset(source, CROP, store=store)
    fresh = [dataset[(0, index)] for index in range(3)]
    features = made(store, fresh)
    monkeypatch.setattr(source, "panorama", None)  # no picture is drawn or decoded any more
    for index, sample in enumerate(dataset[(0, index)] for index in range(3)):
        assert sample.views is None
        assert torch.equal(sample.cameras, fresh[index].cameras)
        assert torch.equal(sample.features, features[index])


def test_a_shard_without_valid_cameras_is_not_used(source: WorldSource, store: FeatureStore) -> None:
    digest = store.identify(source.picture(0))
    store.put(digest, torch.zeros(4, 1, 2), chosen(source, 0))
    found = store.load(digest)
    assert found is not None
    assert torch.equal(found.cameras, chosen(source, 0))
    other = FeatureStore(
        store.folder, features_of={}, files=store.files, quota=store.quota, shape=(4, 1, 2), dtype=torch.float32,
        camera_shape=(5, 11),
    )  # fmt: skip
    assert other.load(digest) is None
    path = store.folder / digest[:2] / f"{digest}.safetensors"
    content = bytearray(path.read_bytes())
    at = bytes(content).index(np.float32(chosen(source, 0)[1, 1].item()).tobytes())
    content[at] ^= 1  # a bit of a camera
    path.write_bytes(content)
    again = FeatureStore(
        store.folder, features_of={}, files=store.files, quota=store.quota, shape=(4, 1, 2), dtype=torch.float32,
        camera_shape=tuple(CROP.camera_rows.shape),
    )  # fmt: skip
    assert again.load(digest) is None


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize("is_shared", [False, True])
def test_blank_pictures_have_the_cameras_of_the_sample(
    source: WorldSource, store: FeatureStore, is_stored: bool, is_shared: bool
) -> None:
    dataset = QuestionDataset(source, CROP, words, store=store if is_stored else None, blank=127)
    indices = range(0, len(dataset), 2)
    samples = dataset.shared(indices) if is_shared else [dataset[index] for index in indices]
    batch = Collate(padding_side="left")(samples)
    cameras = (batch.batch if isinstance(batch, PartBatch) else batch).cameras
    images = [dataset.questions[index].image_id for index in indices]
    names = list(dict.fromkeys(images)) if is_shared else images
    of_image = {source.image_id(index): chosen(source, index) for index in range(len(source))}
    assert torch.equal(cameras, torch.stack([of_image[name] for name in names]))
    for sample in samples:
        assert sample.views is None or bool((sample.views == 127).all())
    if is_stored:
        assert all(torch.equal(one, torch.full((4, 1, 2), 127.0)) for one in made(store, samples))


def test_a_panorama_is_rotated_first(source: WorldSource) -> None:
    augment = Augment(
        AugmentOptions(
            augment=True, augment_brightness=0.0, augment_contrast=0.0, augment_saturation=0.0, augment_hue_deg=0.0
        ),
        seed=0,
    )
    encoder = PlaceEncoder(CROP.camera_rows, (2, 2), 2)
    sample = PanoDataset(source, CROP, augment=augment, places=encoder)[(1, 0)]
    turn = augment.change(1, 0, source.directions(0)).turn
    panorama = source.panorama(0)
    columns = round(turn * extent_of(panorama)[1])
    assert columns
    rotated = rotate_yaw(panorama, columns)
    assert torch.equal(sample.cameras, camera_tensor(CROP.cameras_of(rotated)))
    assert torch.equal(sample.views, CROP.views(rotated))
    own = PlaceEncoder(sample.cameras, (2, 2), 2)
    assert sample.places is not None
    assert torch.equal(sample.places.cells, own(turned(source.places(0), columns, extent_of(panorama)[1])).cells)
