"""The crop of a run, from file to views."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
import torch

from panollava.crop.crop import Crop
from panollava.crop.strategies import AnyresE2pCrop, CubemapCrop, E2pCrop, ResizeCrop


def noise(height: int = 64, width: int = 128) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("strategy", [AnyresE2pCrop(), E2pCrop(), CubemapCrop(poles=True), ResizeCrop()])
def test_views_and_camera_rows_go_together(strategy):
    crop = Crop(strategy, view_size=(24, 40))
    views = crop.views(noise())
    assert views.dtype == torch.uint8
    assert views.is_contiguous()
    assert views.shape == (len(crop.camera_rows), 3, 24, 40)
    assert crop.camera_rows.shape == (len(strategy.cameras()), 11)


def test_a_file_becomes_views(tmp_path):
    path = tmp_path / "a.png"
    picture = noise()
    path.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
    crop = Crop(AnyresE2pCrop(), view_size=(16, 16))
    assert (crop.read(path) == picture).all()
    assert (crop.views(crop.read(str(path))) == crop.views(picture)).all()


def test_the_renderer_is_the_one_asked_for(monkeypatch):
    by_torch = Crop(E2pCrop(), view_size=(16, 16), renderer="torch")
    picture = cv2.blur(noise(), (3, 3))
    expected = Crop(E2pCrop(), view_size=(16, 16)).views(picture)
    monkeypatch.setattr(cv2, "remap", None)
    assert (by_torch.views(picture).int() - expected.int()).abs().max() <= 2


def test_a_worker_process_gets_the_same_crop():
    crop = Crop(AnyresE2pCrop(), view_size=(16, 16))
    twin = pickle.loads(pickle.dumps(crop))
    assert (twin.views(noise()) == crop.views(noise())).all()
    assert twin.cameras == crop.cameras


def test_turning_the_panorama_by_the_step_of_a_ring_turns_the_views():
    """Tiles are 45 degrees apart: an eighth to the left, and each shows what its right neighbour did."""
    crop = Crop(E2pCrop(), view_size=(32, 32))
    before = crop.views(noise()).int()
    after = crop.views(np.roll(noise(), -128 // 8, axis=1)).int()
    assert (after - before.roll(-1, dims=0)).abs().max() <= 1
