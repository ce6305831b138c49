"""Labels of the miniature encoder's views: they say what the patch shows, checked against the scene's directions."""

from __future__ import annotations

import numpy as np

from experiments.tiny.seeing import (
    COLOUR_CLASSES,
    GRID,
    IGNORED,
    OFFSET_UNIT_DEG,
    SHAPE_CLASSES,
    banks,
    default_bank,
    label_views,
)
from panollava.crop.cameras import camera_tensor, token_directions
from panollava.data.scenes.scene import scene_at


def test_direction_plus_offset_is_where_the_thing_stands() -> None:
    bank = default_bank()
    directions = token_directions(camera_tensor(bank.cameras), (GRID, GRID)).reshape(len(bank.cameras), -1, 3).numpy()
    yaw = np.degrees(np.arctan2(directions[..., 0], directions[..., 2]))
    pitch = np.degrees(np.arcsin(directions[..., 1]))
    for index in range(6):
        scene = scene_at(4, "backbones", index)
        by_look = {(solid.colour, solid.shape): solid for solid in scene.solids}
        labelled = label_views(scene, bank)
        found = set()
        for view, patch in (~labelled.offset.isnan().any(-1)).nonzero().tolist():
            look = COLOUR_CLASSES[labelled.colour[view, patch]], SHAPE_CLASSES[labelled.shape[view, patch]]
            solid = by_look[look]
            offset = labelled.offset[view, patch].numpy() * OFFSET_UNIT_DEG
            turn = (yaw[view, patch] + offset[0] - solid.yaw_deg + 180) % 360 - 180
            assert abs(turn) < 0.01
            assert abs(pitch[view, patch] + offset[1] - solid.pitch_deg) < 0.01
            found.add(look)
        assert found == set(by_look)


def test_the_global_view_is_asked_about_discs_alone() -> None:
    bank = default_bank()
    assert bank.cameras[0].is_global
    for index in range(6):
        scene = scene_at(4, "backbones", index)
        labelled = label_views(scene, bank)
        shown = {SHAPE_CLASSES[shape] for shape in labelled.shape[0].tolist() if shape > 0}
        assert shown == {disc.shape for disc in scene.discs}
        assert (labelled.colour[0, :GRID] == 0).all()


def test_padding_shows_nothing() -> None:
    labelled = label_views(scene_at(4, "backbones", 0), default_bank())
    top, bottom = labelled.colour[0, :GRID], labelled.colour[0, -GRID:]
    assert (top == 0).all()
    assert (bottom == 0).all()


def test_a_rolled_panorama_has_rolled_labels() -> None:
    """A roll by a quarter turn moves every tile's content two tiles on."""
    scene, bank = scene_at(4, "backbones", 3), default_bank()
    here, there = label_views(scene, bank), label_views(scene, bank, shift=128)
    agree = here.colour[1:].roll(2, 0) == there.colour[1:]
    sure = (here.colour[1:].roll(2, 0) != IGNORED) & (there.colour[1:] != IGNORED)
    assert agree[sure].float().mean() > 0.98


def test_banks_are_the_same_for_the_same_seed() -> None:
    assert banks(0)[0].cameras == banks(0)[0].cameras
    assert banks(1)[0].cameras != banks(0)[0].cameras
