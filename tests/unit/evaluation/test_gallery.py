"""The gallery: borders lie where the tiles look, each in its colour, and every view has its place and its label."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from panollava.crop.cameras import PERSPECTIVE, Camera
from panollava.crop.crop import Crop
from panollava.crop.strategies import (
    AnyresCrop,
    AnyresE2pCrop,
    CropStrategy,
    CubemapCrop,
    E2pCrop,
    ResizeCrop,
    SlidingWindowCrop,
)
from panollava.evaluation.gallery import FRAME, MARGIN, gallery_picture, view_colours, view_label, with_borders

WIDTH, HEIGHT = 640, 320
GREY = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
NEAR = 5
"""Pixels that a line, its shadow and its distance to the edge take."""


def tile(yaw: float = 0.0, pitch: float = 0.0) -> Camera:
    return Camera(PERSPECTIVE, math.radians(yaw), math.radians(pitch), 0.0, math.pi / 2, math.pi / 2)


def drawn(cameras: list[Camera]) -> np.ndarray:
    """Mask of what was drawn onto the panorama, the numbers in the middle of the views among it."""
    return (with_borders(GREY, cameras) != 128).any(-1)


def in_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Mask of the pixels of a colour, or so close to it that no other line is meant."""
    return np.abs(picture.astype(int) - colour).max(axis=-1) < 12


def views(count: int, height: int = 8, width: int = 8) -> torch.Tensor:
    """Views of one shade each."""
    shades = torch.arange(count, dtype=torch.uint8) * 5 + 10
    return shades[:, None, None, None].expand(count, 3, height, width)


def test_the_border_of_a_tile_goes_through_its_edges() -> None:
    mask = drawn([tile()])
    rows, columns = np.nonzero(mask)
    assert 0 <= columns.min() - WIDTH * 3 / 8 + 2 <= NEAR  # 45 degrees to the left of the centre
    assert 0 <= WIDTH * 5 / 8 + 2 - columns.max() <= NEAR
    assert 0 <= rows.min() - HEIGHT / 4 + 2 <= NEAR  # the middle of the upper edge is 45 degrees up
    corner_row = round((0.5 - math.atan(math.cos(math.pi / 4)) / math.pi) * HEIGHT)  # and its corners less
    assert mask[corner_row : corner_row + NEAR, round(WIDTH * 3 / 8) : round(WIDTH * 3 / 8) + NEAR].any()
    assert not mask[round(HEIGHT / 4), round(WIDTH * 3 / 8)]


def test_a_line_has_the_colour_of_its_tile_and_a_shadow() -> None:
    (colour,) = view_colours([tile()])
    across = with_borders(GREY, [tile()])[HEIGHT * 2 // 5, round(WIDTH * 3 / 8) - 8 : round(WIDTH * 3 / 8) + 12]
    assert in_colour(across, colour).sum() in (1, 2)
    assert (across.max(axis=-1) < 100).sum() in (1, 2, 3)


def test_a_tile_across_the_seam_is_drawn_at_both_sides_and_not_between() -> None:
    mask = drawn([tile(yaw=180.0)])
    assert mask[:, : WIDTH // 8 + 2].any(axis=1).sum() > HEIGHT / 3
    assert mask[:, -WIDTH // 8 - 2 :].any(axis=1).sum() > HEIGHT / 3
    assert not mask[:, WIDTH // 4 : WIDTH * 3 // 4].any()


def test_a_tile_over_the_pole_encloses_it() -> None:
    mask = drawn([tile(pitch=90.0)])
    assert mask.any(axis=0).all()
    assert not mask[HEIGHT // 2 :].any()


def test_a_line_along_the_seam_shows_at_both_ends_of_the_picture() -> None:
    """The left edge of this tile is less than a line's width from the seam."""
    mask = drawn([tile(yaw=-135.0 - 0.5)])
    assert mask[HEIGHT * 2 // 5, :3].any()
    assert mask[HEIGHT * 2 // 5, -2:].any()


def test_touching_tiles_keep_their_lines_side_by_side() -> None:
    cameras = CubemapCrop().cameras()
    picture, colours = with_borders(GREY, cameras), view_colours(cameras)
    edge = slice(round(WIDTH * 5 / 8) - NEAR, round(WIDTH * 5 / 8) + NEAR)  # between front and right
    left, right = (np.nonzero(in_colour(picture[HEIGHT * 2 // 5, edge], colour))[0] for colour in colours[:2])
    assert left.max() < right.min()


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_overlapping_strips_hide_nothing_of_each_other(overlap: float) -> None:
    cameras = SlidingWindowCrop(overlap=overlap).cameras()
    picture, colours = with_borders(GREY, cameras), view_colours(cameras)
    for camera, colour in zip(cameras, colours, strict=True):
        middle = round((math.remainder(camera.yaw_rad, 2 * math.pi) / (2 * math.pi) + 0.5) * WIDTH)
        columns = (np.arange(middle - WIDTH // 8 + 8, middle + WIDTH // 8 - 8)) % WIDTH
        upper = in_colour(picture[: HEIGHT // 8, columns], colour).any(axis=0)
        assert upper.mean() > 0.7  # the rest is where others' sides cross it


def test_views_of_the_whole_panorama_have_no_border() -> None:
    for strategy in (ResizeCrop(), AnyresE2pCrop()):
        whole = [camera for camera in strategy.cameras() if camera.is_global]
        assert len(whole) == 1
        assert not drawn(whole).any()


def test_numbers_count_all_views() -> None:
    """With a global view first the tile ahead is number 1, and its tag has the shape of a 1 and not of a 0."""
    alone = with_borders(GREY, [tile()])
    second = with_borders(GREY, [*ResizeCrop().cameras(), tile()])
    middle = (slice(HEIGHT // 2 - 12, HEIGHT // 2 + 12), slice(WIDTH // 2 - 12, WIDTH // 2 + 12))
    assert (alone != second).any(-1)[middle].sum() > 10
    elsewhere = (alone != second).any(-1)
    elsewhere[middle] = False
    assert not elsewhere.any()


CROPS = [
    (ResizeCrop(), 1),
    (CubemapCrop(poles=True), 6),
    (AnyresE2pCrop(), 9),
    (AnyresCrop(max_tiles=18), 19),
    (E2pCrop(fov_deg=90.0, overlap=0.9), 40),
]


@pytest.mark.parametrize(("strategy", "count"), CROPS)
def test_every_view_is_shown_in_order_in_its_colour(strategy: CropStrategy, count: int) -> None:
    cameras = strategy.cameras()
    assert len(cameras) == count
    picture = gallery_picture(GREY, views(count), cameras, title="what it is")
    assert picture.shape[1] == 1600
    assert 900 < picture.shape[0] < 2100
    top = MARGIN + (1600 - 2 * MARGIN) // 2
    found = []
    for number, colour in enumerate(view_colours(cameras)):
        rows, columns = np.nonzero((picture[top:] == 10 + 5 * number).all(-1))
        middle = (int(np.median(rows)) + top, int(np.median(columns)))
        shade = (picture[middle[0], :, :] == 10 + 5 * number).all(-1)
        left, right = np.nonzero(shade)[0][[0, -1]]
        assert 150 < right - left < 430
        assert (picture[middle[0], left - FRAME : left] == colour).all()
        found.append((middle[0] // 8, middle[1]))
    assert found == sorted(found)


def test_a_view_keeps_its_shape() -> None:
    picture = gallery_picture(GREY, views(1, height=30, width=60), ResizeCrop().cameras(), title="")
    rows, columns = np.nonzero((picture[820:] == 10).all(-1))
    assert (np.ptp(columns) + 1) / (np.ptp(rows) + 1) == pytest.approx(2, rel=0.02)


def test_a_title_is_written_above_the_panorama() -> None:
    plain, titled = (gallery_picture(GREY, views(1), [tile()], title=title) for title in ("", "anyres_e2p: 7 views"))
    rows, _ = np.nonzero((plain != titled).any(-1))
    assert len(rows) > 100
    assert rows.max() < 2.5 * MARGIN


def test_pixels_of_the_panorama_are_kept_away_from_the_lines() -> None:
    panorama = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    picture = with_borders(panorama, [tile()])
    away = ~drawn([tile()])
    assert away.mean() > 0.9
    assert (picture[away] == panorama[away]).all()


@pytest.mark.parametrize(
    ("camera", "label"),
    [
        (tile(), "yaw 0°  pitch 0°"),
        (tile(180), "yaw 180°  pitch 0°"),
        (tile(-180, -0.01), "yaw 180°  pitch 0°"),
        (tile(300, -45), "yaw -60°  pitch -45°"),
        (tile(360 / 7, 22.5), "yaw 51.4°  pitch 22.5°"),
        (ResizeCrop().cameras()[0], "whole panorama"),
        (AnyresE2pCrop().cameras()[0], "whole panorama"),
    ],
)
def test_labels(camera: Camera, label: str) -> None:
    assert view_label(camera) == label


def test_real_views_are_those_of_the_crop() -> None:
    """The front view of a panorama whose right half is white is half white; its picture in the gallery too."""
    panorama = np.zeros((256, 512, 3), np.uint8)
    panorama[:, 256:] = 255
    crop = Crop(CubemapCrop(), view_size=(64, 64))
    picture = gallery_picture(panorama, crop.views(panorama), crop.cameras, title="")
    row = picture[1000, MARGIN + FRAME : MARGIN + FRAME + 350].max(axis=-1)
    assert (row[:165] < 5).all()
    assert (row[185:] > 250).all()
