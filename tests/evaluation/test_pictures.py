"""Pictures: borders lie where the tiles look, and no text is too odd to be drawn."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panollava.crop.cameras import EQUIRECTANGULAR, PERSPECTIVE, Camera, camera_tensor
from panollava.evaluation.drawing import PAPER, draw_text, palette, text_width, wrap_text
from panollava.evaluation.pictures import answers_picture, views_picture

WIDTH, HEIGHT = 640, 320
HALF = math.pi / 4
GREY = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)


def _camera(yaw: float = 0.0, pitch: float = 0.0, **more) -> Camera:
    return Camera(PERSPECTIVE, math.radians(yaw), math.radians(pitch), 0.0, 2 * HALF, 2 * HALF, **more)


def _views(count: int) -> torch.Tensor:
    shades = torch.arange(count, dtype=torch.uint8) * 20 + 10
    return shades[:, None, None, None].expand(count, 3, 8, 8)


def _drawn(cameras: list[Camera]) -> np.ndarray:
    """Mask of what was drawn onto the panorama, but for the numbers at the centres of the views."""
    picture = views_picture(GREY, _views(len(cameras)), camera_tensor(cameras), width=WIDTH)
    return (picture[:HEIGHT] != 128).any(-1)


def test_the_border_of_a_tile_goes_through_its_edges() -> None:
    drawn = _drawn([_camera()])
    rows, columns = np.nonzero(drawn)
    assert abs(columns.min() - WIDTH * 3 / 8) <= 2  # 45 degrees to the left of the centre
    assert abs(columns.max() - WIDTH * 5 / 8) <= 2
    assert abs(rows.min() - HEIGHT / 4) <= 2  # the middle of the upper edge is 45 degrees up
    corner_row = round((0.5 - math.atan(math.cos(HALF)) / math.pi) * HEIGHT)  # and its corners less
    assert drawn[corner_row - 2 : corner_row + 3, round(WIDTH * 3 / 8)].any()
    assert not drawn[round(HEIGHT / 4), round(WIDTH * 3 / 8)]


def test_a_tile_across_the_seam_is_drawn_at_both_sides_and_not_between() -> None:
    drawn = _drawn([_camera(yaw=180.0)])
    assert drawn[:, : WIDTH // 8 + 2].any(axis=1).sum() > HEIGHT / 3
    assert drawn[:, -WIDTH // 8 - 2 :].any(axis=1).sum() > HEIGHT / 3
    assert not drawn[:, WIDTH // 4 : WIDTH * 3 // 4].any()


def test_a_tile_over_the_pole_encloses_it() -> None:
    drawn = _drawn([_camera(pitch=90.0)])
    assert drawn.any(axis=0).all()
    assert not drawn[HEIGHT // 2 :].any()


def test_the_global_view_has_no_border_and_views_are_shown_in_order() -> None:
    whole = Camera(EQUIRECTANGULAR, 0.0, 0.0, 0.0, 2 * math.pi, math.pi, (0.0, 0.25, 1.0, 0.75), is_global=True)
    assert not _drawn([whole]).any()
    cameras = [whole, _camera(), _camera(90.0)]
    picture = views_picture(GREY, _views(3), camera_tensor(cameras), width=WIDTH)
    below = picture[HEIGHT + 100]
    shades = [below[WIDTH * position // 6].tolist() for position in (1, 3, 5)]
    assert shades == [[10] * 3, [30] * 3, [50] * 3]


def test_answers_stand_beside_the_panorama(answer) -> None:
    right = [answer("red", "red", question="What color?")]
    wrong = [answer("blue", "red", question="What color?")]
    pictures = [answers_picture(GREY, rows, width=1000) for rows in (right, wrong, [])]
    assert all((picture[:300, :600] == 128).all() for picture in pictures)
    ink = [(picture[:, 600:] != 255).any(-1).sum() for picture in pictures]
    assert ink[1] > ink[0] > ink[2] == 0
    many = answers_picture(GREY, wrong * 20, width=1000)
    assert many.shape[0] > pictures[0].shape[0]


@settings(max_examples=30, deadline=None)
@given(text=st.text(st.characters(codec=None), max_size=30))
def test_any_text_is_drawn_within_its_width(text) -> None:
    canvas = np.full((30, 300, 3), 255, np.uint8)
    draw_text(canvas, text, (-5, 4), size=14, background=PAPER)
    for line in wrap_text(text, 100, 14, max_lines=3):
        assert text_width(line, 14) <= 100 or len(line) == 1


def test_long_text_is_cut_with_a_mark() -> None:
    lines = wrap_text("word " * 100, 120, 16, max_lines=3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert max(text_width(line, 16) for line in lines) <= 120
    assert wrap_text("", 120, 16, max_lines=3) == [""]


def test_colours_differ() -> None:
    assert len(set(palette(12))) == 12
