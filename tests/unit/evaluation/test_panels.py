"""Panels: heat keeps the panorama's shades, a mark lies at its direction, and a page holds every panel."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from panollava.crop.sphere import angles_to_direction
from panollava.evaluation.drawing import (
    GAP,
    HEAT,
    LIKENESS,
    MARGIN,
    PANEL,
    UNSEEN,
    Panel,
    colours,
    fitted,
    heat,
    marked,
    page,
)

BLACK, WHITE = np.zeros((4, 8, 3), np.uint8), np.full((4, 8, 3), 255, np.uint8)


def plain(shade: int) -> np.ndarray:
    return np.full((*PANEL, 3), shade, np.uint8)


def blank_of(title: str = "", caption: str = "", scale: tuple[int, str, str] | None = None) -> Panel:
    return Panel(title, plain(7), caption, scale)


def direction(yaw_deg: float, pitch_deg: float) -> torch.Tensor:
    return angles_to_direction(*torch.tensor([yaw_deg, pitch_deg], dtype=torch.float64).deg2rad())


def test_colours_are_the_values_and_grey_where_there_is_none() -> None:
    values = torch.tensor([[[0.0, 0.5, 1.0], [math.nan] * 3]])
    assert colours(values).tolist() == [[[0, 128, 255], [UNSEEN] * 3]]


@pytest.mark.parametrize("colour_map", [HEAT, LIKENESS])
def test_heat_goes_from_the_first_colour_to_the_last(colour_map: int) -> None:
    values = torch.linspace(2, 6, 32).view(4, 8)
    shown = heat(BLACK, values, colour_map, 2, 6).reshape(-1, 3).astype(int)
    ends = cv2.applyColorMap(np.array([[0, 255]], np.uint8), colour_map)[0, :, ::-1]
    assert np.abs(shown[[0, -1]] - 0.7 * ends).max() <= 1
    assert (np.diff(shown.sum(axis=1)) >= 0).all()  # lighter and lighter
    beyond = heat(BLACK, values, colour_map, 3, 5).reshape(-1, 3)
    assert (beyond[:8] == beyond[0]).all()
    assert (beyond[-8:] == beyond[-1]).all()


def test_heat_lets_the_panorama_through_and_hides_nothing_where_it_is_not() -> None:
    values = torch.ones(4, 8)
    dark, light = (heat(picture, values, HEAT, 0, 2).astype(int) for picture in (BLACK, WHITE))
    assert (light - dark >= 70).all()
    values[1, 2] = math.nan
    assert heat(WHITE, values, HEAT, 0, 2)[1, 2].tolist() == [255] * 3


def test_values_that_are_all_one_have_one_colour() -> None:
    assert len(np.unique(heat(BLACK, torch.ones(4, 8), LIKENESS, 1, 1).reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize(("yaw", "pitch"), [(0, 0), (90, 45), (-120, -60), (179.9, 0), (-179.9, 10)])
def test_a_mark_lies_at_its_direction(yaw: float, pitch: float) -> None:
    before = plain(100)
    rows, columns = np.nonzero((marked(before, direction(yaw, pitch)) != 100).any(axis=-1))
    turned = np.remainder((columns + 0.5) / PANEL[1] * 360 - 180 - yaw + 180, 360) - 180
    assert abs(turned.mean()) < 0.5
    assert np.abs(turned).max() < 7
    assert abs(((0.5 - (rows + 0.5) / PANEL[0]) * 180 - pitch).mean()) < 0.5
    assert (before == 100).all()  # the picture itself stays
    assert (columns.max() - columns.min() > PANEL[1] / 2) == (abs(yaw) > 175)  # both sides of the seam


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_every_panel_has_its_place(count: int) -> None:
    panels = [Panel("", plain(20 + 10 * number)) for number in range(count)]
    picture = page("", [], panels, [])
    assert picture.shape[1] == 2 * PANEL[1] + GAP + 2 * MARGIN
    for number in range(count):
        rows, columns = np.nonzero((picture == 20 + 10 * number).all(axis=-1))
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == PANEL
        assert columns.min() == MARGIN + number % 2 * (PANEL[1] + GAP)
    tops = [np.nonzero((picture == 20 + 10 * number).all(axis=-1))[0].min() for number in range(count)]
    assert tops == sorted(tops)
    assert len(set(tops)) == -(-count // 2)


def test_words_stand_around_the_panels_and_never_on_them() -> None:
    empty = page("", [], [blank_of()], [])
    titled = page("what it is", [], [blank_of()], [])
    captioned = page("", [], [blank_of("title", "a caption " * 60, (HEAT, "-0.27", "12.5"))], [])
    for picture in (titled, captioned):
        assert picture.shape == empty.shape
        assert (picture != empty).any()
        at = (empty == 7).all(axis=-1)
        assert (picture[at] == 7).all()
    asked = page("", ["Question: what? " * 40, "Answer: 보라색"], [blank_of()], ["a note " * 100])
    assert asked.shape[0] > empty.shape[0] + 5 * 18
    at = np.nonzero((asked == 7).all(axis=-1))
    assert (np.ptp(at[0]) + 1, np.ptp(at[1]) + 1) == PANEL


def test_a_panorama_of_any_size_fits() -> None:
    assert fitted(np.zeros((50, 99, 3), np.uint8)).shape == (*PANEL, 3)
