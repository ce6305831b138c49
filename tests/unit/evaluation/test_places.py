"""Boxes and masks on panoramas: across the seam, over the poles, half a sphere, and in the colours of classes."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panollava.crop.boxes import IGNORED, NOTHING, PictureBoxes, Places, as_boxes, box_frames
from panollava.crop.sphere import pixel_to_direction
from panollava.evaluation.drawing import PANEL, palette
from panollava.evaluation.gallery import box_curves, places_page, with_boxes, with_masks

SIZE = (256, 512)
GREY = np.full((*SIZE, 3), 128, np.uint8)
NAMES = ("chair", "lamp")


def drawn(*rows: list[float], kinds: list[int] | None = None, scores: list[float] | None = None) -> np.ndarray:
    found = np.array(kinds or [0] * len(rows))
    return with_boxes(GREY, PictureBoxes(as_boxes(rows), found, None if scores is None else np.array(scores)), NAMES)


def changed(picture: np.ndarray) -> np.ndarray:
    return (picture != GREY).any(axis=2)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-180, 180),
    st.floats(-90, 90) | st.sampled_from([-90.0, 0.0, 90.0]),
    st.floats(1, 180) | st.just(180.0),
    st.floats(1, 180) | st.just(180.0),
    st.floats(-180, 180),
)
def test_each_point_of_a_curve_lies_on_a_side(yaw: float, pitch: float, wide: float, high: float, roll: float) -> None:
    box = np.array([yaw, pitch, wide, high, roll])
    for curve in box_curves(box, SIZE):
        inner = curve[(np.abs(curve[:, 1] - SIZE[0] / 2 + 0.5) < SIZE[0] / 2 - 1e-6)]  # not the ends at the poles
        points = pixel_to_direction(*torch.from_numpy(inner).T, SIZE).numpy()
        right, up, ahead = box_frames(box[None])[0] @ points.T
        half = np.radians(box[2:4])[:, None] / 2
        beyond = np.abs([right, up]) * np.cos(half) - ahead * np.sin(half)  # 0 on a side, negative within
        assert np.abs(beyond.max(axis=0)).max(initial=0) < 2e-4
        assert np.ptp(curve[:, 0]) <= SIZE[1]


def test_a_box_over_the_seam_is_at_both_edges() -> None:
    found = changed(drawn([180, 0, 40, 30, 0]))
    assert found[:, 0].any()
    assert found[:, -1].any()
    assert not found[:, 100:400].any()


def test_a_box_over_the_pole_surrounds_it() -> None:
    """Its edge crosses every column; one beside the pole whose side runs over it reaches the top row."""
    assert changed(drawn([0, 90, 60, 60, 0])).any(axis=0).all()
    assert changed(drawn([0, 70, 40, 40, 0]))[0].any()
    assert changed(drawn([0, -70, 40, 40, 0]))[-1].any()
    assert not changed(drawn([0, 0, 40, 40, 0]))[[0, -1]].any()


def test_half_a_sphere_is_a_circle() -> None:
    found = changed(drawn([0, 0, 180, 180, 0]))
    assert found[20:-20, 126:130].any(axis=1).all()  # 90 degrees to the left
    assert found[20:-20, 382:386].any(axis=1).all()


def test_colours_are_those_of_the_classes() -> None:
    picture = drawn([-90, 0, 40, 30, 0], [90, 0, 40, 30, 0], kinds=[0, 1])
    for half, colour in ((picture[:, :256], palette(2)[0]), (picture[:, 256:], palette(2)[1])):
        assert (np.abs(half.astype(int) - colour).max(axis=2) < 4).sum() > 50
    assert (changed(drawn([0, 0, 90, 60, 0], scores=[0.5])) != changed(drawn([0, 0, 90, 60, 0]))).any()  # in the tag
    assert (drawn() == GREY).all()


def test_masks_have_the_colours_of_their_classes() -> None:
    pixels = np.full((128, 256), NOTHING, np.int16)
    pixels[:32], pixels[32:64, :128] = 1, IGNORED
    picture = with_masks(GREY, pixels, NAMES)
    assert np.abs(picture[10, 10] - (0.55 * np.array(palette(2)[1]) + 0.45 * 128)).max() <= 0.5
    assert (picture[100, 10] == 128).all()  # grey upon grey
    assert (picture[100:200, 300:] == GREY[100:200, 300:]).all()
    assert changed(picture)[-8:, :40].any()  # the name of the class that occurs


def test_a_page_of_pictures() -> None:
    place = Places(PictureBoxes(as_boxes([[0, 0, 30, 30]]), np.array([1])), np.zeros((64, 128), np.int16))
    page = places_page("Boxes", [("train: a.jpg", GREY, place), ("train: b.jpg", GREY, place)], NAMES)
    assert page.dtype == np.uint8
    assert page.shape[1] > 2 * PANEL[1]
