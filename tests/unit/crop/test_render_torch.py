"""Batches of panoramas on tensors: the same views as cv2 cuts, with gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from panollava.component import component_names, find_component
from panollava.crop import render_torch
from panollava.crop.cameras import EQUIRECTANGULAR, PERSPECTIVE, Camera
from panollava.crop.maps import view_groups
from panollava.crop.render import render_views
from panollava.crop.render_torch import render_batch
from panollava.crop.strategies import AnyresE2pCrop, E2pCrop, SlidingWindowCrop

STRATEGIES = component_names("crop.strategies", "Crop")
SIZES = [(8, 16), (128, 256), (333, 667), (501, 1001), (1024, 2048)]
VIEW_SIZES = [(64, 64), (17, 17), (24, 40)]
TILE = Camera(PERSPECTIVE, 2.9, 0.8, 0.4, 1.3, 1.3)
LETTERBOX = AnyresE2pCrop().cameras()[0]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cameras_of(name: str, view_size: tuple[int, int]) -> list[Camera]:
    return find_component("crop.strategies", name, "Crop")().cameras(view_size)


def as_tensor(panorama: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(panorama).permute(2, 0, 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_uint8_views_are_those_of_cv2_within_a_grey_level(name: str, size: tuple[int, int]) -> None:
    """On noise, where neighbouring pixels have nothing in common; halved and averaged ones included."""
    panorama = noise(*size)
    for view_size in VIEW_SIZES:
        cameras = cameras_of(name, view_size)
        by_cv2, by_torch = (render_views(panorama, cameras, view_size, renderer) for renderer in ("cv2", "torch"))
        assert by_torch.dtype == np.uint8
        assert np.abs(by_cv2.astype(int) - by_torch).max() <= 1


def test_that_comparison_covers_halved_and_averaged_views() -> None:
    plans = [
        group
        for size in SIZES
        for view_size in VIEW_SIZES
        for name in STRATEGIES
        for group in view_groups(size, tuple(cameras_of(name, view_size)), view_size)
    ]
    assert {group.samples for group in plans} == {1, 2, 3, 4}
    assert {(501, 1001), (251, 501), (126, 251), (512, 1024), (256, 512)} <= {group.source_size for group in plans}


@pytest.mark.parametrize("size", [(64, 128), (333, 667)])
def test_float_views_are_those_of_cv2(size: tuple[int, int], odd_panorama: np.ndarray) -> None:
    panorama = np.ascontiguousarray(odd_panorama[: size[0], : size[1]])
    for name in STRATEGIES:
        cameras = cameras_of(name, (24, 24))
        by_cv2, by_torch = (render_views(panorama, cameras, (24, 24), renderer) for renderer in ("cv2", "torch"))
        assert np.abs(by_cv2 - by_torch).max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_a_batch_holds_the_views_of_each_panorama(dtype: torch.dtype) -> None:
    batch = torch.stack([as_tensor(noise(60, 120, seed)) for seed in range(3)]).to(dtype)
    cameras = [LETTERBOX, TILE, *E2pCrop(fov_deg=70).cameras()]
    views = render_batch(batch, cameras, (14, 18))
    assert views.shape == (3, len(cameras), 3, 14, 18)
    assert (views.dtype, views.device) == (dtype, batch.device)
    for alone, together in zip(batch, views, strict=True):
        torch.testing.assert_close(render_batch(alone[None], cameras, (14, 18))[0], together)


@pytest.mark.parametrize(("size", "view_size"), [((4, 8), (3, 3)), ((5, 9), (2, 3)), ((11, 23), (1, 1))])
def test_gradients_with_respect_to_the_panorama(size: tuple[int, int], view_size: tuple[int, int]) -> None:
    """Enlarged; of odd width, so that a pole is half of two pixels; halved and averaged."""
    strip = Camera(EQUIRECTANGULAR, 3.0, 0.0, 0.0, 1.5, math.pi)
    panorama = torch.rand(1, 3, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda source: render_batch(source, [LETTERBOX, TILE, strip], view_size), panorama)


def test_each_pixel_passes_on_the_whole_of_its_gradient() -> None:
    panorama = torch.rand(2, 3, 40, 80, requires_grad=True)
    render_batch(panorama, [LETTERBOX, TILE], (12, 12)).sum().backward()
    assert panorama.grad is not None
    content = 12 * 12 + 12 * 6  # the letterbox leaves half of its view black
    torch.testing.assert_close(panorama.grad.sum((2, 3)), torch.full((2, 3), float(content)))


def test_grids_are_kept_between_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, cameras = torch.zeros(1, 3, 32, 64), E2pCrop(fov_deg=81).cameras()
    render_batch(batch, cameras, (10, 10))
    monkeypatch.setattr(render_torch, "float_maps", None)
    render_batch(batch, cameras, (10, 10))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_views_cut_on_a_gpu_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    batch = as_tensor(noise(501, 1001))[None].to(dtype)
    for name in STRATEGIES:
        cameras = cameras_of(name, (32, 32))
        views = render_batch(batch.cuda(), cameras, (32, 32))
        assert views.is_cuda
        assert (views.cpu().double() - render_batch(batch, cameras, (32, 32)).double()).abs().max() <= 1


@pytest.mark.parametrize(
    ("shape", "dtype", "view_size", "message"),
    [
        ((3, 8, 16), torch.uint8, (4, 4), r"not \(3, 8, 16\) of torch\.uint8"),
        ((1, 4, 8, 16), torch.uint8, (4, 4), r"\(panoramas, 3, height, width\) .* not \(1, 4, 8, 16\)"),
        ((1, 3, 8, 16), torch.int64, (4, 4), r"of uint8 or floating point, not .* of torch\.int64"),
        ((1, 3, 8, 16), torch.uint8, (4, 0), r"crop\.view_size=\[4, 0\]"),
    ],
)
def test_wrong_input_is_named(shape, dtype: torch.dtype, view_size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_batch(torch.zeros(shape, dtype=dtype), [TILE], view_size)


@pytest.mark.parametrize("fov_deg", [30.0, 45.0, 60.0, 90.0])
def test_lines_finer_than_a_narrow_strip_fade(fov_deg: float) -> None:
    """Level lines of two pixels: a strip needs far fewer rows of the panorama than columns."""
    lines = np.where(np.arange(1000) % 4 < 2, 20, 235).astype(np.uint8)
    panorama = np.ascontiguousarray(np.broadcast_to(lines[:, None, None], (1000, 2000, 3)))
    cameras = [LETTERBOX, *SlidingWindowCrop(fov_deg=fov_deg).cameras((56, 56))[:2]]
    for renderer in ("cv2", "torch"):
        assert render_views(panorama, cameras, (56, 56), renderer)[1:].std() < 1


@pytest.mark.parametrize("size", SIZES)
def test_strips_among_other_views_are_those_of_cv2(size: tuple[int, int]) -> None:
    panorama, view_size = noise(*size), (24, 24)
    upright = Camera(EQUIRECTANGULAR, 0.4, 0.0, 0.0, 0.3, math.pi)
    level = Camera(EQUIRECTANGULAR, 1.0, 0.3, 0.0, 2 * math.pi, 0.3)
    cameras = (upright, LETTERBOX, level, TILE)
    by_cv2, by_torch = (render_views(panorama, cameras, view_size, renderer) for renderer in ("cv2", "torch"))
    assert np.abs(by_cv2.astype(int) - by_torch).max() <= 1
    for view in (1, 3):  # of whose panorama no strip is a source
        assert np.array_equal(by_cv2[view], render_views(panorama, [cameras[view]], view_size)[0])
    if size == SIZES[-1]:
        plan = view_groups(size, cameras, view_size)
        shapes = {view: group.source_size[0] / group.source_size[1] for group in plan for view in group.views}
        assert shapes[0] < shapes[1] == 0.5 < shapes[2]
