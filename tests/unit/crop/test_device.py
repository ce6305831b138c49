"""Where views are cut: what is refused, and what a run that travels does."""

from __future__ import annotations

import pytest
import torch

from panollava.crop.crop import Crop
from panollava.crop.render import available_device, check_device, check_workers

SPEC = {"type": "resize", "renderer": "torch"}


@pytest.fixture
def devices(monkeypatch):
    """``devices(cuda=2, mps=0)``: what torch finds."""

    def found(cuda: int = 0, mps: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps > 0)

    found()
    return found


@pytest.mark.parametrize("renderer", ["cv2", "equilib"])
def test_only_the_torch_renderer_leaves_the_cpu(devices, renderer):
    devices(cuda=1)
    check_device("cpu", renderer)
    with pytest.raises(ValueError, match=rf"crop\.device=cuda needs crop\.renderer=torch: {renderer} runs on the CPU"):
        check_device("cuda", renderer)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:2", "mps"])
def test_a_device_that_is_not_there_is_refused(devices, device):
    with pytest.raises(ValueError, match=rf"crop\.device={device} is not there: torch finds 0 .*crop\.device=cpu"):
        check_device(device, "torch")
    devices(cuda=2, mps=1)
    if device == "cuda:2":
        with pytest.raises(ValueError, match="torch finds 2 cuda devices"):
            check_device(device, "torch")
    else:
        check_device(device, "torch")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1", "", "cpu:0", "meta"])
def test_words_that_name_no_device(devices, device):
    devices(cuda=1)
    with pytest.raises(ValueError, match="allowed are cpu, cuda, cuda:<number> and mps"):
        check_device(device, "torch")


def test_workers_stay_on_the_cpu():
    check_workers("cpu", 8)
    check_workers("cuda", 0)
    with pytest.raises(ValueError, match=r"crop\.device=cuda:1 needs num_workers=0, not 2: .* crop\.device=cpu"):
        check_workers("cuda:1", 2)


def test_a_run_that_travels_falls_back_to_the_cpu(devices):
    devices(cuda=1)
    assert Crop.from_spec({**SPEC, "device": "cuda"}, view_size=(8, 8)).device == "cuda"
    assert available_device("cuda:1") == "cpu"
    devices()
    assert Crop.from_spec({**SPEC, "device": "cuda"}, view_size=(8, 8)).device == "cpu"
    assert Crop.from_spec(SPEC, view_size=(8, 8)).device == "cpu"
