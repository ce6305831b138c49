"""The position code: one direction, one code, with no seam and no jump at the poles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from panollava.component import component_names
from panollava.crop.cameras import EQUIRECTANGULAR, PERSPECTIVE, Camera, camera_tensor
from panollava.model.components import position_class
from panollava.model.position import NonePosition, YawPitchPosition

WIDTH = 24


def tile(yaw_deg: float, pitch_deg: float = 0.0, fov_deg: float = 90.0) -> Camera:
    fov = math.radians(fov_deg)
    return Camera(PERSPECTIVE, math.radians(yaw_deg), math.radians(pitch_deg), 0.0, fov, fov)


def whole() -> Camera:
    return Camera(EQUIRECTANGULAR, 0.0, 0.0, 0.0, 2 * math.pi, math.pi, is_global=True)


def codes(cameras: list[Camera], grid: tuple[int, int] | None, position: YawPitchPosition | None = None) -> Tensor:
    """What is added to tokens, ``(V, Q, WIDTH)``, in float64 so that only the code's own error shows."""
    rows = camera_tensor(cameras, dtype=torch.float64)[None]
    count = 1 if grid is None else grid[0] * grid[1]
    tokens = torch.zeros(1, len(cameras), count, WIDTH, dtype=torch.float64)
    return (position or YawPitchPosition(width=WIDTH))(tokens, rows, grid)[0]


def code_at(yaw_deg: float, pitch_deg: float = 0.0) -> Tensor:
    return codes([tile(yaw_deg, pitch_deg)], None)[0, 0]


@pytest.mark.parametrize("grid", [(3, 4), None])
@pytest.mark.parametrize("name", component_names("model.position", "Position"))
def test_contract(name, grid):
    position = position_class(name)(width=WIDTH)
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


def test_rolled_cameras_give_rolled_codes():
    ring = [tile(45.0 * index) for index in range(8)]
    straight, rolled = codes(ring, (4, 4)), codes(ring[3:] + ring[:3], (4, 4))
    torch.testing.assert_close(rolled, straight.roll(-3, dims=0), rtol=0, atol=1e-6)


def test_turning_a_camera_turns_the_phase_of_its_code():
    position = YawPitchPosition(width=WIDTH, yaw_multiples=8, pitch_multiples=4)
    before, after = codes([tile(20, 10)], (4, 4), position)[0], codes([tile(57, 10)], (4, 4), position)[0]
    angles = math.radians(37) * torch.arange(1, 9, dtype=torch.float64)
    sine, cosine = before[:, :8], before[:, 8:16]
    torch.testing.assert_close(after[:, :8], sine * angles.cos() + cosine * angles.sin(), rtol=0, atol=1e-6)
    torch.testing.assert_close(after[:, 8:16], cosine * angles.cos() - sine * angles.sin(), rtol=0, atol=1e-6)
    torch.testing.assert_close(after[:, 16:], before[:, 16:], rtol=0, atol=1e-6)


def test_the_seam_is_nowhere():
    across = (code_at(359.9) - code_at(0.1)).norm()
    elsewhere = (code_at(10.0) - code_at(10.2)).norm()
    far = (code_at(10.0) - code_at(40.0)).norm()
    assert across.item() == pytest.approx(elsewhere.item(), rel=1e-6)
    assert far > 20 * elsewhere
    torch.testing.assert_close(code_at(-30), code_at(330), rtol=0, atol=1e-6)


def test_the_code_is_continuous_at_the_poles():
    for pole in (1, -1):
        around = torch.stack([code_at(yaw, pole * 89.999) for yaw in range(0, 360, 15)])
        assert (around - code_at(0, pole * 90.0)).abs().max() < 1e-4
    assert (code_at(0, 90) - code_at(0, -90)).norm() > 1


def test_two_views_that_see_one_direction_give_it_one_code():
    """The centre of an odd grid looks along the camera, whichever projection and field of view."""
    narrow, wide = codes([tile(90, 0, 40), tile(90, 0, 100)], (3, 3))[:, 4]
    panorama = codes([whole()], (5, 4))[0].unflatten(0, (5, 4))[2, :]
    torch.testing.assert_close(narrow, wide, rtol=0, atol=1e-6)
    torch.testing.assert_close(panorama[2], code_at(45), rtol=0, atol=1e-6)
    # Tiles turned so that the last column of one and the first of the other are the same rays.
    apart = math.degrees(2 * math.atan(2 * 3 / 8))
    left, right = (view.unflatten(0, (3, 4)) for view in codes([tile(0), tile(apart)], (3, 4)))
    torch.testing.assert_close(left[:, 3], right[:, 0], rtol=0, atol=1e-6)
    assert (left[:, 3] - right[:, 3]).norm(dim=-1).min() > 1


def test_gridless_tokens_take_their_views_centre():
    cameras = camera_tensor([tile(30), tile(200, 40)])[None]
    position = YawPitchPosition(width=WIDTH)
    out = position(torch.zeros(1, 2, 5, WIDTH), cameras, None)
    centres = position(torch.zeros(1, 2, 1, WIDTH), cameras, (1, 1))
    torch.testing.assert_close(out, centres.expand_as(out), rtol=0, atol=1e-5)


def test_every_direction_has_its_own_code():
    lattice = codes([whole()], (16, 32))[0]
    distances = torch.cdist(lattice, lattice) + 10 * torch.eye(len(lattice), dtype=lattice.dtype)
    assert distances.min() > 0.1


def test_the_code_fills_any_width():
    tokens = torch.zeros(1, 1, 1, 31)
    out = YawPitchPosition(width=31, yaw_multiples=3, pitch_multiples=2)(tokens, camera_tensor([tile(50)])[None], None)
    out = out.flatten()
    torch.testing.assert_close(out[10:20], out[:10])
    torch.testing.assert_close(out[20:30], out[:10])
    assert out[30] == out[0]


def test_a_width_too_small_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"width 24 or more .* these have 20: lower them to 10 in sum"):
        YawPitchPosition(width=20)
