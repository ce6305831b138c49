"""Scenes: a function of (seed, split, index), no two splits alike, and turned exactly."""

from __future__ import annotations

import itertools

import pytest

from panollava.data.scenes.scene import HEIGHTS, SECTOR_DEG, SECTORS, SPLIT_CODES, scene_at, wrap_deg


def test_same_arguments_give_the_same_scene() -> None:
    assert scene_at(5, "train", 3) == scene_at(5, "train", 3)


def test_no_two_scenes_of_any_seed_and_split_coincide() -> None:
    seeds, splits = (0, 1, 2, 2**32 - 1), SPLIT_CODES
    scenes = [scene_at(seed, split, index) for seed in seeds for split in splits for index in range(25)]  # type: ignore[arg-type]
    assert len(set(scenes)) == len(scenes)


def test_solids_stand_where_their_words_say() -> None:
    for index in range(200):
        scene = scene_at(0, "val", index)
        assert 3 <= len(scene.solids) <= 5
        assert len({solid.colour for solid in scene.solids}) == len(scene.solids)
        assert [solid.sector for solid in scene.solids] == sorted({solid.sector for solid in scene.solids})
        for solid in scene.solids:
            assert abs(wrap_deg(solid.yaw_deg - solid.sector * SECTOR_DEG)) < SECTOR_DEG / 4
            nearest = min(HEIGHTS, key=lambda word: abs(HEIGHTS[word] - solid.pitch_deg))
            assert nearest == solid.height


def test_solids_never_touch() -> None:
    for index in range(100):
        solids = scene_at(1, "val", index).solids
        for one, other in itertools.combinations(solids, 2):
            gap = abs(wrap_deg(one.yaw_deg - other.yaw_deg)) - one.radius_deg - other.radius_deg
            assert gap > 0


def test_some_solids_cross_the_seam_and_some_discs_cover_a_pole() -> None:
    scenes = [scene_at(0, "test", index) for index in range(60)]
    assert any(abs(s.yaw_deg) + s.radius_deg > 180 for scene in scenes for s in scene.solids)
    assert any(abs(d.pitch_deg) + d.radius_deg > 90 for scene in scenes for d in scene.discs)


@pytest.mark.parametrize("turn_deg", [45.0, 90.0, -90.0, 270.0])
def test_turning_moves_every_solid_by_as_many_sectors(turn_deg: float) -> None:
    scene = scene_at(0, "test", 4)
    turned = {solid.name: solid for solid in scene.turned(turn_deg).solids}
    for solid in scene.solids:
        assert turned[solid.name].sector == (solid.sector + round(turn_deg / 45)) % len(SECTORS)
        assert wrap_deg(turned[solid.name].yaw_deg - solid.yaw_deg - turn_deg) == pytest.approx(0, abs=1e-9)


def test_turning_back_gives_the_scene_again() -> None:
    scene = scene_at(0, "test", 4)
    again = scene.turned(90.0).turned(-90.0)
    assert [solid.name for solid in again.solids] == [solid.name for solid in scene.solids]
    assert again.turn_deg == 0


def test_a_turn_between_sectors_is_refused() -> None:
    with pytest.raises(ValueError, match="turn_deg=30 is not a multiple of 45"):
        scene_at(0, "test", 0).turned(30)
