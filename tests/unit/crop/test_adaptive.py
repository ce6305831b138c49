"""crop=adaptive: the map of detail, and the tiles that are chosen from it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panollava.crop import adaptive
from panollava.crop.adaptive import COLUMNS, FOVS_DEG, PITCHES_DEG, ROWS, Tile, choose_tiles, detail_map
from panollava.crop.cameras import Camera, camera_tensor, locate, needed_panorama_size
from panollava.crop.crop import Crop, Cut
from panollava.crop.partial import Part, pad_to_sphere, rotate_yaw
from panollava.crop.sphere import angles_to_direction
from panollava.crop.strategies import AdaptiveCrop, AnyresE2pCrop
from panollava.data.world import WorldSource

HEIGHT, WIDTH = 256, 512
COLUMN = WIDTH // COLUMNS


def plain(level: int = 128) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), level, dtype=np.uint8)


def with_object(yaw_deg: float, pitch_deg: float, radius_deg: float = 12.0) -> np.ndarray:
    """A plain panorama with a chequered disc on the sphere."""
    latitude, longitude = np.meshgrid(
        (0.5 - (np.arange(HEIGHT) + 0.5) / HEIGHT) * math.pi,
        ((np.arange(WIDTH) + 0.5) / WIDTH - 0.5) * 2 * math.pi,
        indexing="ij",
    )
    rays = angles_to_direction(torch.from_numpy(longitude), torch.from_numpy(latitude)).numpy()
    centre = angles_to_direction(torch.tensor(math.radians(yaw_deg)), torch.tensor(math.radians(pitch_deg))).numpy()
    right = np.cross([0.0, 1.0, 0.0] if abs(pitch_deg) < 80 else [1.0, 0.0, 0.0], centre)
    right /= np.linalg.norm(right)
    x, y = rays @ right, rays @ np.cross(centre, right)
    is_inside = rays @ centre > math.cos(math.radians(radius_deg))
    is_dark = (np.floor(x / 0.07) + np.floor(y / 0.07)) % 2 > 0
    picture = plain()
    picture[is_inside & is_dark], picture[is_inside & ~is_dark] = 20, 230
    return picture


@pytest.fixture(scope="module")
def world() -> list[np.ndarray]:
    source = WorldSource(split="test", scenes=12, height=HEIGHT)
    return [np.asarray(source.panorama(index)) for index in range(12)]


def shown_detail(detail: np.ndarray, tiles: Sequence[Tile]) -> tuple[float, float]:
    """Share of a map's detail that some tile shows, and its mean sharpness, which ``choose_tiles`` maximises."""
    shown, total = adaptive._Choice(detail, 1.0).shown(tiles), max(1, int(detail.sum()))
    return float((detail * (shown > 0)).sum() / total), float((detail * shown).sum() / total / adaptive._STEPS)


def angles(cameras: list[Camera]) -> set[tuple[int, int, int]]:
    """Yaw in columns of the map (times two), pitch and field of view of the tiles."""
    tiles = [camera for camera in cameras if not camera.is_global]
    return {
        (
            round(tile.yaw_rad / math.pi * COLUMNS),
            *(round(math.degrees(x)) for x in (tile.pitch_rad, tile.h_extent_rad)),
        )
        for tile in tiles
    }


def shows(cameras: list[Camera], yaw_deg: float, pitch_deg: float) -> list[Camera]:
    direction = angles_to_direction(*torch.deg2rad(torch.tensor([yaw_deg, pitch_deg], dtype=torch.float64)))
    x, y, is_ahead = locate(camera_tensor(cameras, torch.float64), direction[None])
    inside = (is_ahead & (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1))[:, 0]
    return [camera for camera, seen in zip(cameras, inside.tolist(), strict=True) if seen and not camera.is_global]


def test_a_panorama_without_detail_gets_the_ring_of_anyres_e2p() -> None:
    sky = np.repeat(np.linspace(250, 90, HEIGHT, dtype=np.uint8)[:, None, None], WIDTH, axis=1).repeat(3, axis=2)
    noise = np.random.default_rng(0).normal(128, 5, (HEIGHT, WIDTH, 3)).round().astype(np.uint8)
    for picture in (plain(), plain(0), sky, noise):
        assert AdaptiveCrop().choose(picture) == AnyresE2pCrop().cameras() == AdaptiveCrop().cameras()


@pytest.mark.parametrize("views", [1, 2, 5, 8, 40])
@pytest.mark.parametrize("view_size", [(64, 64), (48, 96)])
def test_the_number_of_views_is_known_beforehand(
    views: int, view_size: tuple[int, int], world: list[np.ndarray]
) -> None:
    crop = AdaptiveCrop(views=views)
    for picture in (world[0], plain(), with_object(30, 0)):
        cameras = crop.choose(picture, view_size)
        assert len(cameras) == len(crop.cameras(view_size)) == views + 1
        assert cameras[0].is_global
        assert not any(camera.is_global for camera in cameras[1:])
        assert len({camera.row() for camera in cameras}) == views + 1
        assert all(45 <= round(math.degrees(camera.h_extent_rad)) <= 90 for camera in cameras[1:])
        for camera in cameras[1:]:
            ratio = math.tan(camera.v_extent_rad / 2) / math.tan(camera.h_extent_rad / 2)
            assert ratio == pytest.approx(view_size[0] / view_size[1])


@pytest.mark.parametrize(("yaw", "pitch"), [(0, 0), (180, 10), (-179, -20), (90, 90), (0, -90), (37, 55)])
def test_a_single_object_is_seen_closely_in_the_middle_of_a_view(yaw: float, pitch: float) -> None:
    """On the seam and at the poles as well."""
    found = shows(AdaptiveCrop().choose(with_object(yaw, pitch)), yaw, pitch)
    closest = min(found, key=lambda camera: camera.h_extent_rad)
    assert round(math.degrees(closest.h_extent_rad)) == 45
    there, centre = (
        angles_to_direction(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
        for a, b in ((math.radians(yaw), math.radians(pitch)), (closest.yaw_rad, closest.pitch_rad))
    )
    assert math.degrees(math.acos(min(1.0, float(there @ centre)))) < 12  # within one step of pitch


@pytest.mark.parametrize("columns", [1, 5, 64, 127])
def test_a_rotation_by_whole_columns_rotates_the_tiles_exactly(columns: int, world: list[np.ndarray]) -> None:
    for picture in (*world[:4], with_object(180, 10), with_object(33, -40)):
        before = angles(AdaptiveCrop().choose(picture))
        after = angles(AdaptiveCrop().choose(np.roll(picture, columns * COLUMN, axis=1)))
        assert after == {((yaw + 2 * columns) % (2 * COLUMNS), pitch, fov) for yaw, pitch, fov in before}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), columns=st.integers(0, COLUMNS - 1), levels=st.integers(1, 3))
def test_equal_candidates_are_taken_alike_in_rotated_maps(seed: int, columns: int, levels: int) -> None:
    """Maps of few cells and values have many equal candidates."""
    rng = np.random.default_rng(seed)
    detail = np.zeros((ROWS, COLUMNS), dtype=np.int64)
    detail[rng.integers(0, ROWS, 5), rng.integers(0, COLUMNS, 5)] = rng.integers(1, levels + 1, 5) * 1000
    before = {(fov, pitch, (column + columns) % COLUMNS) for fov, pitch, column in choose_tiles(detail, 4)}
    assert set(choose_tiles(np.roll(detail, columns, axis=1), 4)) == before


def test_other_rotations_move_a_tile_by_a_candidate_step_at_most() -> None:
    step_deg = 360 / COLUMNS
    for yaw, pitch in itertools.product((10.0, 10.9, 11.7, 12.5), (0.0, 4.0, 8.0)):
        (tile, *_) = sorted(
            shows(AdaptiveCrop().choose(with_object(yaw, pitch)), yaw, pitch), key=lambda one: one.h_extent_rad
        )
        assert abs(math.degrees(tile.yaw_rad) - yaw) <= step_deg
        assert abs(math.degrees(tile.pitch_rad) - pitch) <= 15


def changed(picture: np.ndarray, how: str) -> np.ndarray:
    if how == "noise":
        noise = np.random.default_rng(1).normal(0, 5, picture.shape)
        return (picture + noise).round().clip(0, 255).astype(np.uint8)
    _, file = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 60])
    return cv2.imdecode(file, cv2.IMREAD_COLOR)


@pytest.mark.parametrize("how", ["noise", "jpeg"])
def test_noise_and_compression_hardly_change_what_is_shown(how: str, world: list[np.ndarray]) -> None:
    for picture in world:
        detail = detail_map(picture)
        (share, value), (other_share, other_value) = (
            shown_detail(detail, choose_tiles(detail_map(one), 8)) for one in (picture, changed(picture, how))
        )
        assert other_value == pytest.approx(value, rel=0.02)
        assert abs(other_share - share) <= 0.05  # tiles of about equal gain are exchanged


def test_tiles_show_more_detail_than_the_ring(world: list[np.ndarray]) -> None:
    for picture in world:
        detail = detail_map(picture)
        ring = [(0, 0, index * COLUMNS // 8) for index in range(8)]
        (_, sharpness), (_, of_ring) = shown_detail(detail, choose_tiles(detail, 8)), shown_detail(detail, ring)
        assert sharpness > 1.3 * of_ring


def test_no_exchange_of_one_tile_would_have_a_clearly_higher_value(world: list[np.ndarray]) -> None:
    for picture in world[:4]:
        detail = detail_map(picture)
        tiles, choice = choose_tiles(detail, 8), adaptive._Choice(detail, 1.0)
        total = shown_detail(detail, tiles)[1] * adaptive._STEPS * detail.sum()
        for at, tile in enumerate(tiles):
            others = [*tiles[:at], *tiles[at + 1 :]]
            assert choice.gain(choice.best(others)[1], others) - choice.gain(tile, others) < 0.05 * total


def test_the_choice_is_within_the_bound_of_the_best_one() -> None:
    """Against every pair of candidates of a map with few cells."""
    detail = np.zeros((ROWS, COLUMNS), dtype=np.int64)
    rng = np.random.default_rng(0)
    cells = rng.integers(20, 44, 12), rng.integers(0, 40, 12)
    detail[cells] = rng.integers(1, 1000, 12)
    kernels, _, sharpness = adaptive._candidates(1.0)
    values = []  # (candidates, 12): what each candidate gives each cell
    for fov, pitch, column in itertools.product(range(len(FOVS_DEG)), range(7), range(0, COLUMNS, 2)):
        values.append((np.roll(kernels[fov, pitch], column, axis=1)[cells] > 0) * sharpness[fov])
    each = np.unique(np.stack(values), axis=0)
    best = max(int((np.maximum(one, each) * detail[cells]).sum(axis=1).max()) for one in each)
    _, found = shown_detail(detail, choose_tiles(detail, 2))
    assert found * adaptive._STEPS * detail.sum() >= (1 - math.exp(-7 / 8)) * best


def test_kernels_agree_with_the_cameras() -> None:
    """A cell counts for a candidate where ``locate`` finds its centre in the view."""
    kernels, _, _ = adaptive._candidates(0.75)
    rows, columns = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    rays = angles_to_direction(
        ((columns.double() + 0.5) / COLUMNS - 0.5) * 2 * math.pi, (0.5 - (rows.double() + 0.5) / ROWS) * math.pi
    ).flatten(0, 1)
    for fov, pitch in itertools.product(range(len(FOVS_DEG)), range(len(PITCHES_DEG))):
        fov_rad, column = math.radians(FOVS_DEG[fov]), 100
        height = adaptive.v_extent_rad(FOVS_DEG[fov], 0.75)
        camera = Camera(0, adaptive.yaw_rad(column), math.radians(PITCHES_DEG[pitch]), 0.0, fov_rad, height)
        x, y, is_ahead = locate(camera_tensor([camera], torch.float64), rays[None])
        inside = (is_ahead & ((x - 0.5).abs() <= 0.5 + 1e-9) & ((y - 0.5).abs() <= 0.5 + 1e-9)).view(ROWS, COLUMNS)
        assert np.array_equal(np.roll(kernels[fov, pitch] > 0, column, axis=1), inside.numpy())


def test_the_edge_of_a_part_of_the_sphere_is_no_detail() -> None:
    part = np.full((150, 300, 3), 200, dtype=np.uint8)
    whole = pad_to_sphere(part, Part(200.0, 100.0), (HEIGHT, WIDTH))
    assert not detail_map(whole).any()
    assert not detail_map(rotate_yaw(whole, 200)).any()  # the covered part goes over the seam
    part[60:90, 130:160] = 20
    detail = detail_map(pad_to_sphere(part, Part(200.0, 100.0), (HEIGHT, WIDTH)))
    assert detail.any()
    assert detail[: ROWS // 5].sum() == detail[:, : COLUMNS // 5].sum() == 0  # no tile is drawn to the black part


@pytest.mark.parametrize("size", [(2, 4), (100, 200), (129, 258), (1001, 2002), (640, 1280)])
def test_panoramas_of_every_size(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    assert len(AdaptiveCrop(views=3).choose(picture)) == 4


def test_a_crop_gives_each_panorama_its_own_cameras(world: list[np.ndarray]) -> None:
    crop = Crop.from_spec({"type": "adaptive"}, view_size=(16, 16))
    cuts = [crop.cut(picture) for picture in world[:2]]
    assert cuts[0].cameras.shape == cuts[1].cameras.shape == crop.camera_rows.shape
    assert not torch.equal(cuts[0].cameras, cuts[1].cameras)
    assert torch.equal(cuts[0].cameras, camera_tensor(crop.cameras_of(world[0])))
    assert torch.equal(cuts[0].views, crop.views(world[0]))
    assert crop.is_adaptive
    assert "chosen for each panorama" in crop.summary
    assert crop.with_cameras(cuts[0]) is cuts[0]
    with pytest.raises(ValueError, match=r"crop=adaptive chooses the cameras of each panorama.*cut\(\)"):
        crop.with_cameras(cuts[0].views)
    fixed = Crop.from_spec({"type": "anyres_e2p"}, view_size=(16, 16))
    assert not fixed.is_adaptive
    assert fixed.cut(world[0]).cameras is fixed.camera_rows
    assert isinstance(fixed.with_cameras(cuts[0].views), Cut)


def test_pictures_are_decoded_as_finely_as_the_narrowest_candidate_needs(tmp_path: Path) -> None:
    crop = Crop.from_spec({"type": "adaptive"}, view_size=(64, 64))
    rows, columns = needed_panorama_size(AdaptiveCrop().finest(), (64, 64))
    assert math.degrees(AdaptiveCrop().finest().h_extent_rad) == pytest.approx(45)
    path = tmp_path / "large.jpg"
    cv2.imwrite(str(path), np.zeros((5 * rows, 10 * rows, 3), dtype=np.uint8))
    read, ring = (
        Crop.from_spec({"type": kind}, view_size=(64, 64)).read(path).shape for kind in ("adaptive", "anyres_e2p")
    )
    assert rows <= read[0] < 2 * rows + 8
    assert read[1] >= columns
    assert ring[0] < read[0]
    covered = crop.whole(np.zeros((5 * rows, 10 * rows, 3), dtype=np.uint8))
    assert covered.shape[0] == 5 * rows  # pictures of the whole sphere in memory stay as they are


def test_the_signature_names_the_rule() -> None:
    adaptive_, ring = (
        Crop.from_spec({"type": kind}, view_size=(8, 8)).signature for kind in ("adaptive", "anyres_e2p")
    )
    assert adaptive_.pop("choice") == {"rule": "AdaptiveCrop", "views": "8", "global_view": "letterbox"}
    assert adaptive_ == ring


@pytest.mark.parametrize("views", [0, 41, -3])
def test_a_wrong_number_of_views_is_refused(views: int) -> None:
    with pytest.raises(ValueError, match=rf"crop\.views={views} is out of range: 1 <= views <= 40"):
        AdaptiveCrop(views=views)
