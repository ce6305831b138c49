"""Scenes: a function of (seed, split, index), no two splits alike, and turned exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from panollava.data.scenes.scene import HEIGHTS, LEVELS, SECTOR_DEG, SECTORS, SPLIT_CODES, Solid, scene_at, wrap_deg


def test_same_arguments_give_the_same_scene() -> None:
    assert scene_at(5, "train", 3) == scene_at(5, "train", 3)


def test_no_two_scenes_of_any_seed_split_and_level_coincide() -> None:
    made = itertools.product((0, 1, 2, 2**32 - 1), SPLIT_CODES, range(25), LEVELS)
    scenes = [scene_at(*each) for each in made]  # type: ignore[arg-type]
    assert len(set(scenes)) == len(scenes) == 4 * 4 * 25 * len(LEVELS)
    assert len({scene.backdrop.noise_seed for scene in scenes}) == len(scenes)


def test_solids_stand_where_their_words_say(level: int) -> None:
    for index in range(200):
        scene = scene_at(0, "val", index, level)
        assert LEVELS[level].solids[0] <= len(scene.solids) <= LEVELS[level].solids[1]
        assert len({solid.colour for solid in scene.solids}) == len(scene.solids)
        assert [solid.sector for solid in scene.solids] == sorted({solid.sector for solid in scene.solids})
        for solid in scene.solids:
            assert abs(wrap_deg(solid.yaw_deg - solid.sector * SECTOR_DEG)) < SECTOR_DEG / (4 if level == 1 else 2) - 1
            nearest = min(HEIGHTS, key=lambda word: abs(HEIGHTS[word] - solid.pitch_deg))
            assert nearest == solid.height


def test_solids_never_touch(level: int) -> None:
    for index in range(150):
        solids = scene_at(1, "val", index, level).solids
        for one, other in itertools.combinations(solids, 2):
            assert np.degrees(np.arccos(axis(one) @ axis(other))) > one.radius_deg + other.radius_deg


def axis(solid: Solid) -> np.ndarray:
    yaw, pitch = np.radians([solid.yaw_deg, solid.pitch_deg])
    return np.array([np.cos(pitch) * np.sin(yaw), np.sin(pitch), np.cos(pitch) * np.cos(yaw)])


def test_each_level_is_harder_than_the_one_before() -> None:
    """More and smaller solids closer to the borders of their words, higher counts, more decoys, smaller discs."""
    found = []
    for level in LEVELS:
        scenes = [scene_at(0, "val", index, level) for index in range(200)]
        solids = [solid for scene in scenes for solid in scene.solids]
        from_centre = [abs(wrap_deg(solid.yaw_deg - solid.sector * SECTOR_DEG)) for solid in solids]
        repeats = [len(scene.solids) - len({solid.shape for solid in scene.solids}) for scene in scenes]
        found.append(
            (
                len(solids),
                -np.mean([solid.radius_deg for solid in solids]),
                np.mean(from_centre),
                np.mean([abs(solid.pitch_deg - HEIGHTS[solid.height]) for solid in solids]),
                np.mean(repeats),
                sum(len(scene.decoys) for scene in scenes),
                -np.mean([disc.radius_deg for scene in scenes for disc in scene.discs]),
            )
        )
    assert (np.diff(np.array(found), axis=0) > 0).all()
    assert found[0][5] == 0


def test_some_solids_cross_the_seam_and_some_discs_cover_a_pole(level: int) -> None:
    scenes = [scene_at(0, "test", index, level) for index in range(60)]
    assert any(abs(s.yaw_deg) + s.radius_deg > 180 for scene in scenes for s in scene.solids)
    assert any(abs(d.pitch_deg) + d.radius_deg > 90 for scene in scenes for d in scene.discs)


@pytest.mark.parametrize("turn_deg", [45.0, 90.0, -90.0, 270.0])
def test_turning_moves_every_solid_by_as_many_sectors(turn_deg: float, level: int) -> None:
    scene = scene_at(0, "test", 4, level)
    turned = {solid.name: solid for solid in scene.turned(turn_deg).solids}
    for solid in scene.solids:
        assert turned[solid.name].sector == (solid.sector + round(turn_deg / 45)) % len(SECTORS)
        assert wrap_deg(turned[solid.name].yaw_deg - solid.yaw_deg - turn_deg) == pytest.approx(0, abs=1e-9)
    for decoy, other in zip(scene.decoys, scene.turned(turn_deg).decoys, strict=True):
        assert wrap_deg(other.yaw_deg - decoy.yaw_deg - turn_deg) == pytest.approx(0, abs=1e-9)


def test_turning_back_gives_the_scene_again() -> None:
    scene = scene_at(0, "test", 4)
    again = scene.turned(90.0).turned(-90.0)
    assert [solid.name for solid in again.solids] == [solid.name for solid in scene.solids]
    assert again.turn_deg == 0


def test_a_turn_between_sectors_is_refused() -> None:
    with pytest.raises(ValueError, match="turn_deg=30 is not a multiple of 45"):
        scene_at(0, "test", 0).turned(30)
