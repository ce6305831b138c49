"""Position codes: one direction, one code, with no seam and no jump at the poles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from panollava.component import component_names
from panollava.crop.cameras import EQUIRECTANGULAR, PERSPECTIVE, Camera, camera_tensor
from panollava.model.components import component_class
from panollava.model.position import FourierPosition, NonePosition, YawPitchPosition

WIDTH = 8 * 27
"""Whole repetitions of each code: nine of the 24 numbers of ``yaw_pitch``, eight of the 27 of ``fourier``."""
NAMES = component_names("model.position", "Position")
CODES = [name for name in NAMES if name != "none"]
Position = NonePosition | YawPitchPosition | FourierPosition


def tile(yaw_deg: float, pitch_deg: float = 0.0, fov_deg: float = 90.0) -> Camera:
    fov = math.radians(fov_deg)
    return Camera(PERSPECTIVE, math.radians(yaw_deg), math.radians(pitch_deg), 0.0, fov, fov)


def whole() -> Camera:
    return Camera(EQUIRECTANGULAR, 0.0, 0.0, 0.0, 2 * math.pi, math.pi, is_global=True)


def codes(cameras: list[Camera], grid: tuple[int, int] | None, position: str | Position) -> Tensor:
    """What is added to tokens, ``(V, Q, WIDTH)``, in float64 so that only the code's own error shows."""
    rows = camera_tensor(cameras, dtype=torch.float64)[None]
    count = 1 if grid is None else grid[0] * grid[1]
    tokens = torch.zeros(1, len(cameras), count, WIDTH, dtype=torch.float64)
    module = component_class("position", position)(width=WIDTH) if isinstance(position, str) else position
    return module(tokens, rows, grid)[0]


def code_at(name: str, yaw_deg: float, pitch_deg: float = 0.0) -> Tensor:
    return codes([tile(yaw_deg, pitch_deg)], None, name)[0, 0]


@pytest.mark.parametrize("grid", [(3, 4), None])
@pytest.mark.parametrize("name", NAMES)
def test_contract(name, grid):
    position = component_class("position", name)(width=WIDTH)
    cameras = camera_tensor([whole(), tile(0), tile(90)])[None].repeat(2, 1, 1)
    tokens = torch.randn(2, 3, 12, WIDTH, requires_grad=True)
    out = position(tokens, cameras, grid)
    assert out.shape == tokens.shape
    assert torch.isfinite(out).all()
    out.sum().backward()
    torch.testing.assert_close(tokens.grad, torch.ones_like(tokens))
    assert position(tokens.bfloat16(), cameras, grid).dtype == torch.bfloat16
    assert not position.state_dict()


def test_none_leaves_tokens_alone():
    tokens = torch.randn(1, 2, 4, WIDTH)
    assert NonePosition(width=WIDTH)(tokens, camera_tensor([tile(0), tile(90)])[None], (2, 2)) is tokens


@pytest.mark.parametrize("grid", [(4, 4), (1, 3), None])
@pytest.mark.parametrize("count", [4, 6, 8])
@pytest.mark.parametrize("name", NAMES)
def test_a_ring_turned_by_one_tile_has_the_codes_of_the_next_tile(
    name: str, count: int, grid: tuple[int, int] | None
) -> None:
    step = 360 / count
    ring = [tile(step * index, pitch) for pitch in (0.0, 35.0) for index in range(count)]
    turned = [tile(step * (index + 1), pitch) for pitch in (0.0, 35.0) for index in range(count)]
    straight = codes(ring, grid, name).unflatten(0, (2, count))
    after = codes(turned, grid, name).unflatten(0, (2, count))
    torch.testing.assert_close(after, straight.roll(-1, dims=1), rtol=0, atol=1e-6)
    if name != "none":
        assert (straight.roll(-1, dims=1) - straight).flatten(2).norm(dim=-1).min() > 0.5


def test_turning_a_camera_turns_the_phase_of_its_code():
    position = YawPitchPosition(width=WIDTH, yaw_multiples=8, pitch_multiples=4)
    before, after = (codes([tile(yaw, 10)], (4, 4), position)[0, :, :24] for yaw in (20, 57))
    angles = math.radians(37) * torch.arange(1, 9, dtype=torch.float64)
    sine, cosine = before[:, :8], before[:, 8:16]
    torch.testing.assert_close(after[:, :8], sine * angles.cos() + cosine * angles.sin(), rtol=0, atol=1e-6)
    torch.testing.assert_close(after[:, 8:16], cosine * angles.cos() - sine * angles.sin(), rtol=0, atol=1e-6)
    torch.testing.assert_close(after[:, 16:], before[:, 16:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_seam_is_nowhere(name: str) -> None:
    across = (code_at(name, 359.9) - code_at(name, 0.1)).norm()
    elsewhere = (code_at(name, 10.0) - code_at(name, 10.2)).norm()
    # The waves of a Fourier code bend: near to exact, not quite.
    assert across.item() == pytest.approx(elsewhere.item(), rel=1e-4 if name == "fourier" else 1e-6)
    torch.testing.assert_close(code_at(name, -30), code_at(name, 330), rtol=0, atol=1e-6)
    if name != "none":
        assert (code_at(name, 10.0) - code_at(name, 40.0)).norm() > 20 * elsewhere > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_code_is_continuous_at_the_poles(name: str) -> None:
    for pole in (1, -1):
        around = torch.stack([code_at(name, yaw, pole * 89.9999) for yaw in range(0, 360, 15)])
        assert (around - code_at(name, 0, pole * 90.0)).abs().max() < 1e-4
    if name != "none":
        assert (code_at(name, 0, 90) - code_at(name, 0, -90)).norm() > 1


@pytest.mark.parametrize("name", NAMES)
def test_two_views_that_see_one_direction_give_it_one_code(name: str) -> None:
    """The centre of an odd grid looks along the camera, whichever projection and field of view."""
    narrow, wide = codes([tile(90, 0, 40), tile(90, 0, 100)], (3, 3), name)[:, 4]
    panorama = codes([whole()], (5, 4), name)[0].unflatten(0, (5, 4))[2, :]
    torch.testing.assert_close(narrow, wide, rtol=0, atol=1e-6)
    torch.testing.assert_close(panorama[2], code_at(name, 45), rtol=0, atol=1e-6)
    # Tiles turned so that the last column of one and the first of the other are the same rays.
    apart = math.degrees(2 * math.atan(2 * 3 / 8))
    left, right = (view.unflatten(0, (3, 4)) for view in codes([tile(0), tile(apart)], (3, 4), name))
    torch.testing.assert_close(left[:, 3], right[:, 0], rtol=0, atol=1e-6)
    if name != "none":
        assert (left[:, 3] - right[:, 3]).norm(dim=-1).min() > 1


@pytest.mark.parametrize("name", NAMES)
def test_gridless_tokens_take_their_views_centre(name: str) -> None:
    cameras = camera_tensor([tile(30), tile(200, 40)])[None]
    position = component_class("position", name)(width=WIDTH)
    out = position(torch.zeros(1, 2, 5, WIDTH), cameras, None)
    centres = position(torch.zeros(1, 2, 1, WIDTH), cameras, (1, 1))
    torch.testing.assert_close(out, centres.expand_as(out), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CODES)
def test_every_direction_has_its_own_code(name: str) -> None:
    lattice = codes([whole()], (16, 32), name)[0]
    axes = codes([tile(0), tile(90), tile(180), tile(270), tile(0, 90), tile(0, -90)], None, name)[:, 0]
    for vectors in (lattice, axes):
        distances = torch.cdist(vectors, vectors) + 10 * torch.eye(len(vectors), dtype=vectors.dtype)
        assert distances.min() > 0.1


def test_fourier_is_the_vector_and_its_waves() -> None:
    x, y, z = 0.6, 0.48, 0.64
    direction = torch.tensor([x, y, z], dtype=torch.float64)
    expected = [x, y, z]
    for wave in (math.sin, math.cos):
        expected += [wave(2**band * math.pi * component) for band in range(3) for component in (x, y, z)]
    code = FourierPosition(width=21, bands=3).code(direction)
    torch.testing.assert_close(code, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("position", "terms"),
    [(YawPitchPosition(width=31, yaw_multiples=3, pitch_multiples=2), 10), (FourierPosition(width=31, bands=1), 9)],
)
def test_the_code_fills_any_width(position: Position, terms: int) -> None:
    out = position(torch.zeros(1, 1, 1, 31), camera_tensor([tile(50)])[None], None).flatten()
    torch.testing.assert_close(out[terms:], out[:-terms])
    assert out[:terms].unique().numel() > terms / 2


def test_a_width_too_small_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"width 24 or more .* these have 20: lower them to 10 in sum"):
        YawPitchPosition(width=20)
    with pytest.raises(ValueError, match=r"bands=4 needs tokens of width 27 or more .* these have 20: lower it to 2"):
        FourierPosition(width=20)
    with pytest.raises(ValueError, match=r"these have 8: choose a larger latent width"):
        FourierPosition(width=8, bands=1)
