"""Changes of panoramas and views: where rotations move things, and which views a change gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panollava.crop.crop import Crop
from panollava.crop.sphere import pixel_to_direction
from panollava.data.scenes.paint import paint
from panollava.data.scenes.questions import ask_all
from panollava.data.scenes.scene import SECTOR_DEG, scene_at
from panollava.data.source import Question
from panollava.evaluation.asked_things import (
    angles_deg,
    asked_things,
    at_pitch,
    direction,
    keeps_words,
    sector_of,
    single_solid,
    stands_alone,
)
from panollava.evaluation.changes import (
    UNCHANGED,
    Change,
    changed_cameras,
    circle_share,
    rotated,
    rotation,
    shows,
    shuffle,
    tile_step_deg,
    tiles_of,
)

CAMERAS = Crop.from_spec({"type": "anyres_e2p", "overlap": 0.5}, view_size=(64, 64)).cameras


def smooth(height: int, matrix: np.ndarray | None = None) -> np.ndarray:
    """A panorama whose colours are the direction of each pixel, or that before a rotation."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(2 * height), indexing="ij")
    found = pixel_to_direction(columns.double(), rows.double(), (height, 2 * height)).numpy()
    return np.rint(127.5 + 120 * (found if matrix is None else found @ matrix)).astype(np.uint8)


@given(
    turn=st.sampled_from([0.0, 45.0, 90.0, 225.0]),
    tilt=st.floats(0.5, 60.0),
    axis=st.floats(-180.0, 180.0),
)
@settings(max_examples=25, deadline=None)
def test_a_rotation_moves_pixels_as_its_matrix_moves_directions(turn: float, tilt: float, axis: float) -> None:
    change = Change(turn_deg=turn, tilt_deg=tilt, axis_deg=axis)
    matrix = rotation(change)
    assert np.allclose(matrix @ matrix.T, np.eye(3))
    assert math.isclose(np.linalg.det(matrix), 1.0, abs_tol=1e-9)
    difference = rotated(smooth(64), change).astype(int) - smooth(64, matrix)
    assert np.abs(difference).max() <= 2


def test_a_yaw_moves_whole_columns_and_draws_the_turned_scene() -> None:
    scene = scene_at(0, "test", 3)
    panorama = paint(scene)
    turned = rotated(panorama, Change(turn_deg=90.0))
    assert np.array_equal(turned, np.roll(panorama, 128, axis=1))
    assert np.abs(turned.astype(int) - paint(scene.turned(90.0))).mean() < 0.5
    assert np.array_equal(rotated(panorama, UNCHANGED), panorama)


def test_a_tilt_about_the_axis_ahead_lifts_neither_ahead_nor_behind() -> None:
    matrix = rotation(Change(tilt_deg=5.0))
    assert np.allclose(matrix @ [0.0, 0.0, 1.0], [0.0, 0.0, 1.0])
    _, pitch = angles_deg(matrix @ np.array([1.0, 0.0, 0.0]))
    assert abs(float(pitch)) == pytest.approx(5.0)


def test_the_tiles_of_a_phase_are_rotated_and_the_global_view_stays() -> None:
    assert tile_step_deg(CAMERAS) == pytest.approx(45.0)
    changed = changed_cameras(CAMERAS, Change(phase=0.5))
    assert changed[0] == CAMERAS[0]
    moved = [math.degrees(one.yaw_rad - other.yaw_rad) for one, other in zip(changed, CAMERAS, strict=True)]
    assert moved == [0.0, *[pytest.approx(22.5)] * 8]


@pytest.mark.parametrize("count", [2, 3, 8, 20])
def test_an_order_is_a_permutation_that_moves_most_views(count: int) -> None:
    for seed in range(1, 6):
        found = shuffle(range(count), seed)
        assert sorted(found) == list(range(count))
        assert sum(at == place for at, place in enumerate(found)) <= max(1, count // 3)
    changed = changed_cameras(CAMERAS, Change(order=1))
    assert changed[0].is_global
    assert sorted(map(str, changed)) == sorted(map(str, CAMERAS))
    assert changed != CAMERAS


@pytest.mark.parametrize(
    ("spec", "tiles", "step"),
    [
        ({"type": "resize"}, 0, None),
        ({"type": "cubemap", "poles": True}, 6, 90.0),
        ({"type": "sliding_window", "overlap": 0.0}, 4, 90.0),
        ({"type": "e2p", "overlap": 0.0, "pitch_rows_deg": (-45.0, 0.0, 45.0)}, 12, 90.0),
    ],
)
def test_steps_of_crops(spec: dict[str, object], tiles: int, step: float | None) -> None:
    cameras = Crop.from_spec(spec, view_size=(64, 64)).cameras
    assert (len(tiles_of(cameras)), tile_step_deg(cameras)) == (tiles, step)


def test_what_a_tile_shows() -> None:
    ahead = CAMERAS[1]
    assert circle_share(ahead) == pytest.approx(0.25)
    for yaw, radius, is_shown in ((0, 5, True), (44, 5, True), (48, 5, True), (51, 5, False), (180, 30, False)):
        centre = np.array([math.sin(math.radians(yaw)), 0.0, math.cos(math.radians(yaw))])
        assert shows(ahead, centre, radius) == is_shown, yaw


@given(index=st.integers(0, 200), level=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_each_question_is_about_things_of_its_scene(index: int, level: int) -> None:
    """Without them there is another answer or none; with them alone the question can be answered."""
    scene = scene_at(0, "test", index, level)
    asked = ask_all(
        scene, ["what", "where", "colour", "shape", "height", "pole", "relation", "turns"], np.random.default_rng(index)
    )
    for one in asked:
        question = Question("q", "p", one.history, one.question, (one.answer,), one.kind)
        things = asked_things(scene, question)
        if one.kind == "pole":
            assert [thing.colour for thing in things] == [one.answer]
        elif one.kind == "relation":
            assert things[0].name in one.question
            assert [f"a {thing.name}" for thing in things[1:]] == ([] if one.answer == "nothing" else [one.answer])
        elif one.answer == "nothing":
            assert things == ()
        else:
            solid = single_solid(scene, question)
            assert solid is not None
            said = {"what": f"a {solid.name}", "colour": solid.colour, "shape": solid.shape, "height": solid.height}
            assert one.answer == said.get(one.kind) or sector_of(solid.yaw_deg) == solid.sector


def test_small_tilts_keep_the_words_of_level_1() -> None:
    for index in range(30):
        for solid in scene_at(0, "test", index).solids:
            assert sector_of(solid.yaw_deg) == round(solid.yaw_deg / SECTOR_DEG) % 8 == solid.sector
            assert all(keeps_words(solid, rotation(Change(tilt_deg=5.0, axis_deg=axis))) for axis in (0.0, 90.0))
    tall = next(one for one in scene_at(0, "test", 0).solids)
    assert not keeps_words(tall, rotation(Change(turn_deg=45.0)))


def test_a_thing_at_another_pitch() -> None:
    scene = scene_at(0, "test", 0)
    name = scene.solids[0].name
    moved = at_pitch(scene, name, -45.0)
    assert (moved.solids[0].pitch_deg, moved.solids[0].height, moved.discs) == (-45.0, "low", ())
    assert moved.solids[1:] == scene.solids[1:]
    assert stands_alone(moved, name)
    assert np.allclose(direction(moved.solids[0])[1], math.sin(math.radians(-45)))


def test_a_change_in_words() -> None:
    assert str(UNCHANGED) == ""
    assert str(Change(turn_deg=90.0)) == "turn_deg=90"
    assert str(Change(crop=(("overlap", 0.25),), grey=2)) == "grey=2, crop.overlap=0.25"
    assert Change(grey=0).record == {"grey": 0}
